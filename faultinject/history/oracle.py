"""The oracle: what replies are right.  Pure.

It is the service itself, run in this process on the same requests in the same order.  A write whose
outcome the client does not know may have been applied or not, and may be applied later: from then
on there is more than one state that the service may rightly be in, and a reply is wrong only if
none of them gives it.
"""

from __future__ import annotations

from copy import deepcopy

from guests.function import Authentication, guarded
from guests.service import Context, Service, answer, load

__all__ = ["WORLDS", "MissionOracle"]

WORLDS = 32
"""States that are followed at most; with more, replies are not judged any more."""


class MissionOracle:
    """Judges replies to requests made one after another."""

    def __init__(self, service: str, key: bytes = b"") -> None:
        """``key``: requests must be signed with it.  Raises ServiceError for no such service."""
        kind = load(service)
        if key:
            kind = guarded(kind, Authentication(key))
        self._worlds: list[Service] = [kind()]
        self._seq = 0

    @property
    def certain(self) -> bool:
        """Whether replies are still judged."""
        return bool(self._worlds)

    def accepts(self, request: bytes, reply: bytes, *, read_only: bool) -> bool:
        """Whether this is a right reply to the next request.

        A wrong one leaves all states as they would be after a right one.
        """
        if not self._worlds:
            return True
        self._seq += 1
        right = []
        for world in self._worlds:
            if self._apply(world, request, read_only=read_only) == reply:
                right.append(world)
        if right:
            self._worlds = right
        return bool(right)

    def unknown(self, request: bytes, *, read_only: bool) -> None:
        """The next request has no reply: it may have been applied, or not."""
        if read_only or not self._worlds:
            return
        self._seq += 1
        applied = deepcopy(self._worlds)
        for world in applied:
            self._apply(world, request, read_only=False)
        digests: dict[bytes, Service] = {}
        for world in self._worlds + applied:
            digests.setdefault(b"".join(world.snapshot()), world)
        self._worlds = list(digests.values()) if len(digests) <= WORLDS else []

    def _apply(self, world: Service, request: bytes, *, read_only: bool) -> bytes:
        return answer(world, request, Context(self._seq, 0, bytes(8), "oracle", read_only))
