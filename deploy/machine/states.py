"""The states of a guest, as its host sees them, and which may follow which."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

__all__ = ["TRANSITIONS", "GuestEvent", "GuestState", "RestoreMethod"]


class GuestState(enum.Enum):
    """Where a guest is. Whether its service is right is for the voter to say, not for this."""

    ABSENT = "absent"  # never started, or ended for good
    BOOTING = "booting"  # started cold, not yet heard of
    READY = "ready"  # it said so, or was put back to when it had
    PAUSED = "paused"  # QEMU lives, the processor stands still
    RESTORING = "restoring"  # being put back to its clean snapshot
    DEAD = "dead"  # its QEMU has ended


_S = GuestState

TRANSITIONS: dict[GuestState, frozenset[GuestState]] = {
    _S.ABSENT: frozenset({_S.BOOTING, _S.READY, _S.PAUSED, _S.RESTORING, _S.DEAD}),
    _S.BOOTING: frozenset({_S.READY, _S.DEAD}),
    _S.READY: frozenset({_S.PAUSED, _S.RESTORING, _S.DEAD}),
    _S.PAUSED: frozenset({_S.READY, _S.RESTORING, _S.DEAD}),
    _S.RESTORING: frozenset({_S.READY, _S.DEAD}),
    _S.DEAD: frozenset({_S.BOOTING, _S.RESTORING, _S.ABSENT}),
}
"""ABSENT to READY, PAUSED or DEAD is adoption: found as a former owner left it. Only a DEAD guest
becomes ABSENT."""


class GuestEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A guest changed its state. `why` is for people; `pid` is its QEMU's, if it has one."""

    guest: str
    before: GuestState
    after: GuestState
    why: str
    pid: int | None


class RestoreMethod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a guest was put back, and in how many seconds until it ran again."""

    path: Literal["loadvm", "start", "boot"]
    seconds: float
