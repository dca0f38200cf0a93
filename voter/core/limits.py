"""What the engine may hold, and how long it waits."""

from __future__ import annotations

import msgspec

__all__ = ["Limits"]

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what clients and replicas can make the voter hold, and on how long it waits.

    Counts are requests, sizes are bytes, times are seconds.
    """

    pending: int = 4096  # requests ordered and not settled: more are refused (overload).  Results
    # of more than 4,096 may not fit into what the journal keeps for a full disk (journal.RESERVE)
    pending_bytes: int = 64 * MIB  # the same in bytes
    log_bytes: int = 64 * MIB  # writes since the last checkpoint: more are refused (overload)
    lag: int = 16384  # settled requests that one replica has not answered: more, and it is lost
    lag_bytes: int = 32 * MIB  # the same in bytes
    ballot_bytes: int = 32 * MIB  # long replies kept for open polls: further ones are not kept
    window: int = 64  # requests under way to a learner: more would delay the other replicas
    window_bytes: int = 8 * MIB  # the same in bytes
    marker_every: int = 1000  # requests between two checkpoint markers
    scrub: float = 60.0  # between two markers at most: a damaged state is found within this time
    digest_share: float = 0.1  # of the time may go into digests: a large state gets fewer markers
    checkpoint_bytes: int = 64 * KIB  # smallest log that is worth fetching a state for
    state_bytes: int = 256 * MIB  # largest state that is fetched
    hang: float = 5.0  # without progress for this long, a replica is lost (a busy host is no fault)
    throttle_gap: int = 500  # writes that a learner may be behind before the throttle starts
    throttle_floor: float = 100.0  # writes a second that the throttle always lets pass
    throttle_time: float = 30.0  # one learner may cause throttling for this long
    membership_changes: int = 10_000  # most that are journaled between two checkpoints
    digest: float = 60.0  # time to make a digest while serving requests (more for a large state)
    ping: float = 0.5  # an idle replica is asked for a sign of life after this time
    restore_rate: int = MIB  # bytes a second that a restore must make at least
    fetch_rate: int = 128 * KIB  # bytes a second that a keeper must give at least while serving
    transfer_rate: int = 32 * MIB  # bytes a second of transfers at most, so that votes get through
    sessions: int = 10_000  # native sessions: the least recently used one is evicted
    session_window: int = 1024  # requests of a session whose replies the client has not all got
    keys: int = 100_000  # Idempotency-Keys: further ones are refused (overload)
    table_bytes: int = 64 * MIB  # replies kept for retries (and 200 bytes for each request)
    session_idle: float = 3600.0  # an unused session is forgotten after this agreed time
    key_retention: float = 86_400.0  # an Idempotency-Key is kept for this agreed time
    clock_step: float = 60.0  # a wall clock that is ahead for this long is followed at once

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            most = 1 if name == "digest_share" else TIB
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"{name} must be more than 0 and at most {most}")
        if self.transfer_rate < self.restore_rate:
            raise ValueError("transfer_rate must not be less than restore_rate")
