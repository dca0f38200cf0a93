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
    window: int = 64  # requests under way to a learner: more, and the others wait behind them
    window_bytes: int = 8 * MIB
    marker_every: int = 1000  # requests between checkpoint markers
    scrub: float = 60.0  # between markers at most: so long may damage to a state stay unseen
    digest_share: float = 0.1  # of the time may be spent on digests: of a large state, fewer
    checkpoint_bytes: int = 64 * KIB  # smallest log that a checkpoint is worth
    state_bytes: int = 256 * MIB  # largest state that is fetched
    hang: float = 5.0  # no sign of life for this long: gone (a busy host is no fault)
    throttle_gap: int = 500  # writes that a learner may be behind without holding others back
    throttle_floor: float = 100.0  # writes a second that pass whatever a learner does
    throttle_time: float = 30.0  # for so long one learner may hold others back
    moves: int = 10_000  # changes of membership that are journaled between two checkpoints
    digest: float = 60.0  # time to tell a digest, beside requests (and more for a large state)
    ping: float = 0.5  # ask an idle replica for a sign of life
    restore_rate: int = MIB  # bytes a second that a restore must at least make
    fetch_rate: int = 128 * KIB  # bytes a second that a keeper must at least give, beside its work
    transfer_rate: int = 32 * MIB  # ... and may at most, so that the others' votes come through
    sessions: int = 10_000  # native sessions
    session_window: int = 1024  # requests of a session whose replies the client has not all got
    keys: int = 100_000  # Idempotency-Keys
    table_bytes: int = 64 * MIB  # replies kept for retries (and 200 for each request)
    session_idle: float = 3600.0  # a session that is not used is forgotten, agreed time
    key_retention: float = 86_400.0  # an Idempotency-Key is kept, agreed time

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be more than 0, and finite")
        if self.transfer_rate < self.restore_rate:
            raise ValueError("transfer_rate must not be less than restore_rate")
