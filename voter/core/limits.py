"""What the engine may hold, and how long it waits."""

from __future__ import annotations

from math import inf

import msgspec

__all__ = ["Limits"]

KIB, MIB = 1 << 10, 1 << 20


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what clients and replicas can make the voter hold, and how long it waits.

    Counts are requests, sizes bytes, times seconds.
    """

    pending: int = 4096  # requests ordered and not settled
    pending_bytes: int = 64 * MIB
    log_bytes: int = 64 * MIB  # writes since the last checkpoint
    lag: int = 16384  # requests settled without a replica that it has not answered
    lag_bytes: int = 32 * MIB
    ballot_bytes: int = 32 * MIB  # long replies to requests that are not settled
    window: int = 4096  # requests under way to a learner
    window_bytes: int = 8 * MIB
    marker_every: int = 1000  # requests between checkpoint markers
    checkpoint_bytes: int = 64 * KIB  # smallest log that a checkpoint is worth
    state_bytes: int = 256 * MIB  # largest state that is fetched
    hang: float = 5.0  # no sign of life for this long: gone (a busy host is no fault)
    ping: float = 0.5  # ask an idle replica for a sign of life
    restore_rate: int = MIB  # bytes a second that a restore or a fetch must at least make

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be more than 0, and finite")
