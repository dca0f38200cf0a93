"""The oracle: the service itself, in this process, fed with every acknowledged request in order.

The order is the voter's: each released reply carries its place.  A reply is checked as soon as no
request under way can still get a place before it, so that memory does not grow with the run.  A
request that was begun after another one was answered must come after it: with that the order also
is a witness of linearizability.  Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import permutations
from typing import NamedTuple

from faultinject.soak.places import SequenceGaps
from guests.protocol.message import Reply
from guests.service import Context, answer, load

__all__ = ["COMPLAINTS", "SoakOracle", "Ticket"]

COMPLAINTS = 20
"""How many wrong replies are told in words; all are counted."""
GUESSES = 3
"""At most so many writes of unknown outcome are taken to have come between two known ones."""


class Ticket:
    """A request that was begun; it must get a place after ``floor``, the newest known then."""

    __slots__ = ("floor", "read_only", "request")

    def __init__(self, request: bytes, read_only: bool, floor: int) -> None:
        self.request = request
        self.read_only = read_only
        self.floor = floor


class _Done(NamedTuple):
    seq: int
    number: int  # makes each unlike all others, so that tickets are never compared
    ticket: Ticket
    reply: bytes


class SoakOracle:
    """Checks a history while it is made."""

    def __init__(
        self,
        service: str = "kv",
        *,
        places: SequenceGaps | None = None,
        executed: Callable[[int, bytes, bool], None] | None = None,
    ) -> None:
        """``places`` records the place of each reply.

        ``executed`` gets place, request and whether it only reads, of each request in its order.
        """
        self._places = places
        self._executed = executed
        self._service = load(service)()
        self._pending: set[Ticket] = set()
        self._done: list[_Done] = []
        self._unknown: list[Ticket] = []
        self._newest = 0
        self._replayed = 0  # place of the last one
        self._count = 0
        self.correct = 0
        self.wrong = 0
        """Replies that the service would not have given at their place."""
        self.misplaced = 0
        """Replies at a place that another has, or before one that was known when they began."""
        self.found = 0
        """Writes of unknown outcome that later replies prove executed."""
        self.complaints: list[str] = []

    @property
    def unknown(self) -> int:
        """Writes of which it is not known whether they were executed."""
        return len(self._unknown)

    @property
    def known(self) -> int:
        """Place up to which the order is known: no request under way can get one before it."""
        return min((ticket.floor for ticket in self._pending), default=self._newest)

    def begin(self, request: bytes, *, read_only: bool) -> Ticket:
        """A request is about to be made."""
        ticket = Ticket(request, read_only, self._newest)
        self._pending.add(ticket)
        return ticket

    def end(self, ticket: Ticket, seq: int, reply: bytes) -> None:
        """It was answered, at place ``seq`` of the order."""
        self._pending.discard(ticket)
        if seq <= ticket.floor:
            self.misplaced += 1
            self._complain(seq, ticket, f"begun when place {ticket.floor} was known")
        self._count += 1
        heapq.heappush(self._done, _Done(seq, self._count, ticket, reply))
        self._newest = max(self._newest, seq)
        if self._places is not None:
            self._places.add(seq)
        self._advance()

    def lose(self, ticket: Ticket) -> None:
        """It got no reply; if it is a write it may have been executed, or may yet be."""
        self._pending.discard(ticket)
        if not ticket.read_only:
            self._unknown.append(ticket)
        self._advance()

    def refuse(self, ticket: Ticket) -> None:
        """It got no reply, and was certainly not executed."""
        self._pending.discard(ticket)
        self._advance()

    # ------------------------------------------------------------- replaying

    def _advance(self) -> None:
        safe = self.known
        while self._done and self._done[0].seq <= safe:
            self._replay(heapq.heappop(self._done))

    def _replay(self, done: _Done) -> None:
        seq, _, ticket, reply = done
        if seq <= self._replayed and seq > ticket.floor:
            self.misplaced += 1
            self._complain(seq, ticket, f"place {self._replayed} was taken before")
        self._replayed = max(self._replayed, seq)
        before = self._service.snapshot() if self._unknown else None  # encoded only if it is used
        said = self._apply(ticket, seq)
        doubtful = list(self._unknown)
        if said == reply or (before is not None and self._guess(b"".join(before), done)):
            self.correct += 1
        else:
            self.wrong += 1
            self._complain(seq, ticket, f"released {_show(reply)}, the oracle says {_show(said)}")
        if self._executed is not None:
            # A write of unknown outcome that explains this reply was executed before it.
            for proved in [t for t in doubtful if t not in self._unknown]:
                self._executed(seq, proved.request, proved.read_only)
            self._executed(seq, ticket.request, ticket.read_only)

    def _guess(self, before: bytes, done: _Done) -> bool:
        """See whether writes of unknown outcome, executed just before it, explain a reply."""
        after = b"".join(self._service.snapshot())
        able = [ticket for ticket in self._unknown if ticket.floor < done.seq]
        for size in range(1, min(GUESSES, len(able)) + 1):
            for chosen in permutations(able, size):
                if self._explains(before, chosen, done):
                    self._unknown = [t for t in self._unknown if t not in chosen]
                    self.found += size
                    return True
        self._service.restore(after)
        return False

    def _explains(self, before: bytes, chosen: Iterable[Ticket], done: _Done) -> bool:
        self._service.restore(before)
        for ticket in chosen:
            self._apply(ticket, done.seq)
        return self._apply(done.ticket, done.seq) == done.reply

    def _apply(self, ticket: Ticket, seq: int) -> bytes:
        context = Context(seq, 0, bytes(8), "oracle", ticket.read_only)
        return answer(self._service, ticket.request, context)

    def _complain(self, seq: int, ticket: Ticket, words: str) -> None:
        if len(self.complaints) < COMPLAINTS:
            line = ticket.request.partition(b"\r\n")[0].decode("latin-1")
            self.complaints.append(f"place {seq}: {line}: {words}")


def _show(reply: bytes) -> str:
    try:
        return repr(Reply.decode(reply))[:300]
    except ValueError:
        return repr(reply[:60])
