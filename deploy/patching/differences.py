"""How the reply of a patched copy differs from the one that was released.  Pure.

Replies are bytes from guests: nothing here trusts them.  A reply that is no HTTP message is
compared as bytes.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from guests.protocol.message import MessageError, Reply, Request, decode_request

__all__ = ["Comparison", "Difference", "Kind", "compare", "json_at"]

LATENCY_LIMIT = 1.0
"""Seconds behind the released reply from which a reply is late.  Observers get their requests in
batches, after the voters: some milliseconds are normal."""
MAX_PATHS = 20
"""Places in two JSON documents that are named; further ones are counted as one."""
_DEEPEST = 32
"""Levels of JSON that are compared in place; deeper values are compared as a whole."""


class Kind(enum.StrEnum):
    """In what respect a reply differs."""

    CRASH = "crash"  # the copy's service ended and gave no reply
    STATUS = "status"
    BODY = "body"
    HEADER = "header"
    STATE = "state"  # the digests of the states differ, at a place where they were compared
    LATENCY = "latency"  # the reply came too late


Source = Literal["reply", "digest", "crash", "late"]
"""What was noticed: a reply that differs, a digest that differs, that the copy's service ended, or
that its replies come late on average."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in which a patched copy differed from the node.

    ``seq`` is the request's sequence number (of a crash: the last one before), ``time`` when it was
    noticed (seconds since 1970).  ``released`` is the node's reply, ``other`` the copy's; None: it
    was not kept.  ``behind``: seconds from the release to the copy's reply; of a late copy, on
    average.  ``cut``: only the beginnings were kept.  ``reason``: more about a crash.
    """

    kind: Source = "reply"
    seq: int
    replica: str
    time: float
    request: bytes = b""
    released: bytes | None = None
    other: bytes | None = None
    behind: float = 0.0
    cut: bool = False
    reason: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What differs.  ``kinds``: the respects, the gravest first; empty if nothing differs.

    ``headers``: names whose values differ.  ``paths``: the places of two JSON bodies that differ,
    such as ``items.0.price``; None if a body is no JSON.  ``old`` and ``new``: the two statuses,
    None without a reply that can be read.
    """

    kinds: tuple[Kind, ...]
    old: int | None = None
    new: int | None = None
    headers: tuple[str, ...] = ()
    paths: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The kinds in words: "status, body"."""
        return ", ".join(self.kinds) or "none"


_NO_REPLY: dict[str, Kind] = {
    "digest": Kind.STATE, "crash": Kind.CRASH, "late": Kind.LATENCY
}  # fmt: skip


def compare(difference: Difference, *, latency: float = LATENCY_LIMIT) -> Comparison:
    """Return in what respects the two replies of a difference differ.

    ``latency``: seconds behind the release from which a reply counts as late.
    """
    if difference.kind in _NO_REPLY:
        return Comparison(kinds=(_NO_REPLY[difference.kind],))
    old, new = decode(difference.released), decode(difference.other)
    kinds: list[Kind] = []
    headers: tuple[str, ...] = ()
    paths: tuple[str, ...] | None = None
    if old is None or new is None:
        if difference.released != difference.other:
            kinds.append(Kind.BODY)
    else:
        if old.status != new.status:
            kinds.append(Kind.STATUS)
        if old.body != new.body:
            kinds.append(Kind.BODY)
            paths = _differing_paths(old.body, new.body)
        headers = _differing_headers(old, new)
        if headers:
            kinds.append(Kind.HEADER)
        if not kinds and difference.cut:
            kinds.append(Kind.BODY)  # it differs behind what was kept
    if difference.behind > latency:
        kinds.append(Kind.LATENCY)
    return Comparison(
        kinds=tuple(kinds),
        old=old.status if old is not None else None,
        new=new.status if new is not None else None,
        headers=headers,
        paths=paths,
    )


def decode(reply: bytes | None) -> Reply | None:
    """Return a reply, or None if there is none or the bytes are no HTTP reply."""
    try:
        return Reply.decode(reply) if reply is not None else None
    except MessageError:
        return None


def decode_asked(request: bytes) -> Request | None:
    """Return a request, or None if the bytes are no HTTP request."""
    try:
        return decode_request(request)
    except MessageError:
        return None


def _differing_headers(old: Reply, new: Reply) -> tuple[str, ...]:
    """Return the names of the headers that differ.

    The content's length follows from the body.
    """
    ours, theirs = _by_name(old), _by_name(new)
    names = (ours.keys() | theirs.keys()) - {"content-length"}
    return tuple(sorted(name for name in names if ours.get(name) != theirs.get(name)))


def _by_name(reply: Reply) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in reply.headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def read_json(body: bytes) -> Any:
    """Return the JSON document of a body.  Raises ValueError."""
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _differing_paths(old: bytes, new: bytes) -> tuple[str, ...] | None:
    try:
        ours, theirs = read_json(old), read_json(new)
    except ValueError:
        return None
    found: list[str] = []
    for path in _walk(ours, theirs, "", 0):
        if len(found) == MAX_PATHS:
            return (*found, "...")
        found.append(path)
    return tuple(found)


def _walk(old: Any, new: Any, path: str, depth: int) -> Iterator[str]:
    """Yield the dotted paths at which two documents differ; "" is the whole document."""
    if type(old) is type(new) and depth < _DEEPEST:
        if isinstance(old, dict):
            for key in sorted(old.keys() | new.keys()):
                here = f"{path}.{key}" if path else key
                if key not in old or key not in new:
                    yield here
                else:
                    yield from _walk(old[key], new[key], here, depth + 1)
            return
        if isinstance(old, list) and len(old) == len(new):
            for number, (ours, theirs) in enumerate(zip(old, new, strict=True)):
                here = f"{path}.{number}" if path else str(number)
                yield from _walk(ours, theirs, here, depth + 1)
            return
    if type(old) is not type(new) or old != new:
        yield path


_MISSING = object()


def json_at(document: Any, path: str) -> Any:
    """Return the value at a dotted path (``items.0.price``).  Raises LookupError without one."""
    value = document
    for part in path.split(".") if path else []:
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = _MISSING
        if value is _MISSING:
            raise LookupError(path)
    return value
