"""One poll: the vote on a request, or on the digest at a checkpoint marker (``polls.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from voter.core.entries import Record
from voter.core.order import LogEntry

__all__ = ["Poll"]


@dataclass(slots=True, eq=False)
class Poll:
    """One vote: on a request, or (``record`` None) on the digest at a marker.

    ``tickets``: the clients that wait for it.  ``needed_position``: the journal position that must
    be durable before the reply is released.  ``winner``: the winning tag, None until the poll is
    settled.  ``sent`` is a bit mask of the replicas that it was sent to, and ``unanswered`` counts
    those of them that have not answered.  ``retried``: this is a read that was ordered again.
    ``killed``: a replica was lost while it had this read.  ``trial``: one replica alone has it.
    """

    seq: int
    record: Record | None = None
    entry: LogEntry | None = None
    tickets: list[int] = field(default_factory=list)
    needed_position: int = 0
    size: int = 0
    retried: bool = False
    killed: bool = False
    trial: bool = False
    ballots: dict[int, bytes] = field(default_factory=dict)
    long_replies: dict[bytes, bytes] | None = None
    winner: bytes | None = None
    sent: int = 0
    unanswered: int = 0

    def expect(self, replicas: int, count: int) -> None:
        """Expect an answer from each of ``count`` replicas; ``replicas`` is their bit mask."""
        self.sent |= replicas
        self.unanswered += count
