"""The shipped key-value store: raw values at ``/kv/KEY``.

KEY is everything after ``/kv/``, percent-decoded, 1 to 1,024 bytes.

======================= ==========================================================================
PUT /kv/KEY             store the body: 201 (new) or 204 (replaced)
GET, HEAD /kv/KEY       200 with the stored bytes, or 404
DELETE /kv/KEY          204, or 404
POST /kv/KEY?increment= add a whole number (default 1, an absent key counts as 0), answer the sum;
                        409 if the value is not a whole number or the sum leaves 64 bits
GET /kv/                one page of keys in order of their bytes, as JSON; ``limit`` (1 to 1,000,
                        default 100), ``after`` and ``prefix`` are percent-encoded
======================= ==========================================================================

Every reply for an existing key has an ``ETag``: the number of the write that stored its value.  A
number is never reused, so compare-and-set by ``If-Match`` detects a value that was changed and
changed back.  ``If-None-Match: *`` only creates.  A condition that does not hold gives a 412 with
the current tag.  A request that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from guests.protocol.message import Reply, Request
from guests.service import Context, Service
from guests.services.table import MAX_KEY, MAX_VALUE, Table

__all__ = ["CHECK_REQUESTS", "MAX_KEY", "MAX_VALUE", "KeyValue"]


class KeyValue(Service):
    """The store.  ``capacity``: most bytes of keys, values and ENTRY_COST per entry together."""

    name = "kv"
    state_format = 1
    capacity = 16 << 20

    def __init__(self, capacity: int | None = None) -> None:
        self.table = Table(self.capacity if capacity is None else capacity)

    def apply(self, request: Request, context: Context) -> Reply:
        """Answer one request (see the module's docstring)."""
        return self.table.apply(request)

    def snapshot(self) -> Iterator[bytes]:
        """Yield the state as of this call, in pieces of at most PIECE bytes."""
        return self.table.snapshot()

    def restore(self, state: bytes) -> None:
        """Replace the state.  Raises ServiceError, without a change, if the bytes are invalid."""
        self.table.restore(state)


CHECK_REQUESTS: list[tuple[str, str, bytes] | tuple[str, str, bytes, dict[str, str]]] = [
    ("GET", "/kv/", b""),
    ("PUT", "/kv/a", b"one", {"if-none-match": "*"}),
    ("PUT", "/kv/a", b"two", {"if-none-match": "*"}),
    ("PUT", "/kv/a", b"three", {"if-match": '"1"'}),
    ("PUT", "/kv/b%2Fc%00%FF", b"\x00\xff"),
    ("GET", "/kv/b%2Fc%00%FF", b""),
    ("GET", "/kv/a", b""),
    ("GET", "/kv/a", b"", {"if-none-match": '"2"'}),
    ("HEAD", "/kv/a", b""),
    ("POST", "/kv/n?increment", b""),
    ("POST", "/kv/n?increment=-7", b""),
    ("POST", "/kv/a?increment=1", b""),
    ("PUT", "/kv/n", b"41"),
    ("GET", "/kv/n", b""),
    ("PUT", "/kv/long", b"0123456789abcdef" * 512),
    ("GET", "/kv/?limit=2", b""),
    ("GET", "/kv/?limit=2&after=a&prefix=b", b""),
    ("DELETE", "/kv/a", b"", {"if-match": '"1"'}),
    ("DELETE", "/kv/a", b""),
    ("DELETE", "/kv/absent", b""),
    ("PATCH", "/kv/a", b""),
    ("GET", "/elsewhere", b""),
]
"""The requests of ``trivisor service check``: each operation and each refusal at least once."""
