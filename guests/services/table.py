"""The key-value store's entries, and the answers to requests on them: see ``guests.services.kv``.

This module is compiled (``guests.compiled``).  The service itself is not: others inherit from it.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

from guests.protocol.message import Reply, Request
from guests.service import ServiceError
from guests.services.requests import (
    RequestRefused,
    check_conditions,
    decode_percent,
    parse_query,
)

__all__ = ["ENTRY_COST", "MAX_KEY", "MAX_PAGE", "MAX_VALUE", "PIECE", "Table"]

MAX_KEY = 1024
MAX_VALUE = 1 << 20
ENTRY_COST = 256
"""Bytes of memory that an entry needs in addition to key and value (measured, rounded up)."""
PIECE = 1 << 16
"""Largest piece of a snapshot, in bytes."""
MAX_PAGE = 1 << 19
"""Most bytes of encoded keys in one page of a list, so that the reply stays below its limit."""

_KEY_METHODS = "DELETE, GET, HEAD, POST, PUT"
_LIST_METHODS = "GET, HEAD"
_INT64 = 1 << 63
_RAW = ("content-type", "application/octet-stream")

# A snapshot: this header, then entries by rising key (key size, value size, version, key, value).
_MAGIC = b"TVKV"
_FORMAT = 1
_HEADER = struct.Struct(">4sHQQ")  # magic, format, last version, count
_ENTRY = struct.Struct(">HIQ")


class Table:
    """The entries: value and number of its write by key; all keys sorted; the number of writes.

    ``size``: bytes of keys, values and ENTRY_COST per entry, together at most ``capacity``.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: dict[bytes, tuple[bytes, int]] = {}
        self.keys: list[bytes] = []
        self.version = 0
        self.size = 0

    def apply(self, request: Request) -> Reply:
        """Answer one request (see ``guests.services.kv``)."""
        target = request.target
        if not target.startswith("/kv/"):
            return Reply(404, "keys are at /kv/KEY\n")
        try:
            if "?" in target or "%" in target:
                path, mark, query = target.partition("?")
                key = decode_percent(path[4:])
            else:  # the fast path
                mark = query = ""
                key = target[4:].encode()
            if not key:
                return self._list(request, query)
            if len(key) > MAX_KEY:
                return Reply(414, f"a key of {len(key)} bytes is over the limit of {MAX_KEY}\n")
            method = request.method
            if mark and method != "POST":
                parse_query(query, ())
            if method == "GET" or method == "HEAD":
                return self._get(request, key)
            if method == "PUT":
                return self._put(request, key)
            if method == "DELETE":
                return self._delete(request, key)
            if method == "POST":
                return self._increment(request, key, query)
        except RequestRefused as refusal:
            return refusal.reply
        return _not_allowed(method, _KEY_METHODS)

    # ------------------------------------------------------------ one key

    def _get(self, request: Request, key: bytes) -> Reply:
        entry = self.entries.get(key)
        etag = None if entry is None else f'"{entry[1]}"'
        if request.mentions(b"if-") and (reply := check_conditions(request, etag)):
            return reply
        if entry is None or etag is None:
            return Reply(404, "no such key\n")
        return Reply(200, entry[0], (_RAW, ("etag", etag)))

    def _put(self, request: Request, key: bytes) -> Reply:
        value = request.body
        if len(value) > MAX_VALUE:
            return Reply(413, f"a value of {len(value)} bytes is over the limit of {MAX_VALUE}\n")
        if request.mentions(b"if-") and (reply := self._check(request, key)):
            return reply
        new = self.store(key, value)
        return Reply(201 if new else 204, b"", (("etag", f'"{self.version}"'),))

    def _delete(self, request: Request, key: bytes) -> Reply:
        if request.mentions(b"if-") and (reply := self._check(request, key)):
            return reply
        entry = self.entries.pop(key, None)
        if entry is None:
            return Reply(404, "no such key\n")
        del self.keys[bisect_left(self.keys, key)]
        self.size -= len(key) + len(entry[0]) + ENTRY_COST
        return Reply(204)

    def _increment(self, request: Request, key: bytes, query: str) -> Reply:
        parameters = parse_query(query, ("increment",))
        if "increment" not in parameters:
            return Reply(400, "POST adds to a number: POST /kv/KEY?increment=N\n")
        step = _parse_int(parameters["increment"] or b"1")
        if step is None:
            return Reply(400, "increment must be a whole number that fits in 64 bits\n")
        if request.mentions(b"if-") and (reply := self._check(request, key)):
            return reply
        entry = self.entries.get(key)
        current = 0 if entry is None else _parse_int(entry[0])
        if current is None:
            return Reply(409, "the value is not a whole number\n", self._etag_header(key))
        total = current + step
        if not -_INT64 <= total < _INT64:
            return Reply(409, "the sum does not fit in 64 bits\n", self._etag_header(key))
        value = b"%d" % total
        self.store(key, value)
        return Reply(200, value, (_RAW, ("etag", f'"{self.version}"')))

    def _check(self, request: Request, key: bytes) -> Reply | None:
        entry = self.entries.get(key)
        return check_conditions(request, None if entry is None else f'"{entry[1]}"')

    def _etag_header(self, key: bytes) -> tuple[tuple[str, str], ...]:
        entry = self.entries.get(key)
        return () if entry is None else (("etag", f'"{entry[1]}"'),)

    def store(self, key: bytes, value: bytes) -> bool:
        """Write an entry as the next version; return whether the key is new.  Refuses with 507."""
        old = self.entries.get(key)
        growth = len(value) - len(old[0]) if old else len(key) + len(value) + ENTRY_COST
        if growth > 0 and self.size + growth > self.capacity:
            raise RequestRefused(507, f"the store is full: its capacity is {self.capacity} bytes\n")
        if old is None:
            insort(self.keys, key)
        self.size += growth
        self.version += 1
        self.entries[key] = (value, self.version)
        return old is None

    # ------------------------------------------------------------ the list

    def _list(self, request: Request, query: str) -> Reply:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(request.method, _LIST_METHODS)
        parameters = parse_query(query, ("limit", "after", "prefix"))
        limit = _parse_int(parameters.get("limit", b"100"))
        if limit is None or not 1 <= limit <= 1000:
            return Reply(400, "limit must be 1 to 1000\n")
        prefix = parameters.get("prefix", b"")
        start = bisect_left(self.keys, prefix)
        if "after" in parameters:
            start = max(start, bisect_right(self.keys, parameters["after"]))
        names: list[str] = []
        room = MAX_PAGE
        following = None
        for key in self.keys[start : start + limit + 1]:
            if not key.startswith(prefix):
                break
            name = quote_from_bytes(key, safe="")
            if len(names) == limit or room < len(name):
                following = names[-1]
                break
            room -= len(name) + 4  # its quotes, a comma and a space
            names.append(name)
        text = json.dumps({"keys": names, "next": following}) + "\n"
        return Reply(200, text.encode(), (("content-type", "application/json"),))

    # ------------------------------------------------------------ the state

    def snapshot(self) -> Iterator[bytes]:
        """Yield the state as of this call, in pieces of at most PIECE bytes."""
        keys = self.keys.copy()  # later writes create new tuples and leave these unchanged
        entries = list(map(self.entries.__getitem__, keys))
        return _encode_state(self.version, keys, entries)

    def restore(self, state: bytes) -> None:
        """Replace the state.  Raises ServiceError, without a change, if the bytes are invalid."""
        version, entries, size = _decode_state(state) if state else (0, {}, 0)
        if size > self.capacity:
            raise ServiceError(f"the state takes {size} bytes, the capacity is {self.capacity}")
        self.entries = entries
        self.keys = list(entries)
        self.version = version
        self.size = size


def _not_allowed(method: str, allowed: str) -> Reply:
    return Reply(405, f"method {method} is not one of {allowed}\n", (("allow", allowed),))


def _parse_int(text: bytes) -> int | None:
    """Return the ASCII decimal as a 64-bit number, or None (the only sign is ``-``)."""
    digits = text[1:] if text.startswith(b"-") else text
    if len(digits) > 19 or not digits.isdigit():
        return None
    number = int(text)
    return number if -_INT64 <= number < _INT64 else None


def _encode_state(
    version: int, keys: list[bytes], entries: list[tuple[bytes, int]]
) -> Iterator[bytes]:
    buffer = bytearray(_HEADER.pack(_MAGIC, _FORMAT, version, len(keys)))
    for key, (value, written) in zip(keys, entries, strict=True):
        buffer += _ENTRY.pack(len(key), len(value), written)
        buffer += key
        buffer += value
        while len(buffer) >= PIECE:
            yield bytes(buffer[:PIECE])
            del buffer[:PIECE]
    if buffer:
        yield bytes(buffer)


def _decode_state(state: bytes) -> tuple[int, dict[bytes, tuple[bytes, int]], int]:
    """Return version, entries by rising key, and their size.  Raises ServiceError."""
    if len(state) < _HEADER.size:
        raise ServiceError("the state is shorter than its header")
    magic, number, version, count = _HEADER.unpack_from(state)
    if magic != _MAGIC or number != _FORMAT:
        raise ServiceError(f"the state is not of the key-value store's format {_FORMAT}")
    entries: dict[bytes, tuple[bytes, int]] = {}
    versions: set[int] = set()
    at, size, previous = _HEADER.size, 0, b""
    for _ in range(count):
        if len(state) - at < _ENTRY.size:
            raise ServiceError("the state ends within an entry")
        key_size, value_size, written = _ENTRY.unpack_from(state, at)
        at += _ENTRY.size
        end = at + key_size + value_size
        if not 1 <= key_size <= MAX_KEY or value_size > MAX_VALUE or end > len(state):
            raise ServiceError("the state has an entry of an impossible size")
        key = state[at : at + key_size]
        if key <= previous:
            raise ServiceError("the state's keys are not in rising order")
        if not 1 <= written <= version:
            raise ServiceError("the state has an entry of an impossible version")
        versions.add(written)
        entries[key] = (state[at + key_size : end], written)
        size += key_size + value_size + ENTRY_COST
        at, previous = end, key
    if at != len(state):
        raise ServiceError("the state goes on after its last entry")
    if len(versions) != count:
        raise ServiceError("two entries of the state have the same version")
    return version, entries, size
