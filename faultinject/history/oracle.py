"""Oracles: they judge each reply by the service model.  Pure.

A write without a reply may have been executed or not.  How an oracle handles that depends on what
is known about the order of the requests, so there are two:

``SequentialOracle``: one client makes one request after another, and replies carry no place in the
order.  A write of unknown outcome took effect right there or never.  The oracle follows every
state that is possible, and a reply is wrong if no possible state gives it.

``OrderOracle``: many clients make requests at the same time, and each released reply carries its
place in the voter's order.  The oracle replays requests by place, as soon as no request in progress
can still get an earlier one, so that its memory does not grow with the run.  A write of unknown
outcome may have any later place.  Following every possible state would grow without limit here.
Instead the oracle assumes that such a write was not executed until a reply proves the opposite.
The order is also a witness of linearizability: a request must come after all requests that were
answered before it began.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import permutations
from typing import NamedTuple

from faultinject.history.model import ServiceModel, is_believed, show_reply

__all__ = ["MAX_STATES", "OrderOracle", "SequentialOracle", "PendingRequest"]

MAX_STATES = 32
"""Most states that a SequentialOracle follows.  With more it accepts every reply."""
MAX_COMPLAINTS = 20
"""Most wrong replies that an OrderOracle describes.  All are counted."""
MAX_PROVED = 3
"""Most writes of unknown outcome that an OrderOracle assumes to be executed between two replies."""


class SequentialOracle:
    """Judges replies to requests that are made one after another."""

    def __init__(self, service: str, key: bytes = b"") -> None:
        """``key``: requests must be signed with it.  Raises ServiceError for an unknown service."""
        self._models = [ServiceModel(service, key)]
        self._seq = 0

    @property
    def certain(self) -> bool:
        """Whether replies are still judged."""
        return bool(self._models)

    def accepts(self, request: bytes, reply: bytes, *, read_only: bool) -> bool:
        """Return whether this is a right reply to the next request.

        After a wrong reply that a client believes, the possible states are those after a right
        one.  After one that declares an error, the request may also not have been executed.
        """
        if not self._models:
            return True
        self._seq += 1
        right = []
        undone = [] if read_only or is_believed(reply) else [m.copy() for m in self._models]
        for model in self._models:  # each must apply it
            if model.apply(request, self._seq, read_only=read_only) == reply:
                right.append(model)
        if right:
            self._models = right
        elif undone:
            self._follow(undone + self._models)
        return bool(right)

    def unknown(self, request: bytes, *, read_only: bool) -> None:
        """Record that the next request has no reply: it was executed or not."""
        if read_only or not self._models:
            return
        self._seq += 1
        applied = [model.copy() for model in self._models]
        for model in applied:
            model.apply(request, self._seq)
        self._follow(self._models + applied)

    def _follow(self, models: Iterable[ServiceModel]) -> None:
        """Follow the different states among these; with too many, accept every reply."""
        by_state: dict[bytes, ServiceModel] = {}
        for model in models:
            by_state.setdefault(model.state(), model)
        self._models = list(by_state.values()) if len(by_state) <= MAX_STATES else []


class PendingRequest:
    """A request in progress.  Its place must be after ``floor``, the newest known at its start."""

    __slots__ = ("floor", "read_only", "request")

    def __init__(self, request: bytes, read_only: bool, floor: int) -> None:
        self.request = request
        self.read_only = read_only
        self.floor = floor


class _Reply(NamedTuple):
    seq: int
    number: int  # unique, so that tickets are never compared
    ticket: PendingRequest
    reply: bytes


class OrderOracle:
    """Judges replies to concurrent requests by their places in the voter's order."""

    def __init__(
        self,
        service: str = "kv",
        *,
        released: Callable[[int], None] = lambda seq: None,
        executed: Callable[[int, bytes, bool], None] = lambda seq, request, read_only: None,
    ) -> None:
        """``released`` gets the place of each reply as it comes.

        ``executed`` gets place, request and whether it only reads, of each request in its order.
        """
        self._released = released
        self._executed = executed
        self._model = ServiceModel(service)
        self._in_progress: set[PendingRequest] = set()
        self._replies: list[_Reply] = []
        self._unknown: list[PendingRequest] = []
        self._newest = 0
        self._replayed = 0  # the last place that was replayed
        self._count = 0
        self.correct = 0
        self.wrong = 0
        """Replies that the service would not have given at their place."""
        self.misplaced = 0
        """Replies at a place that another reply has, or that was passed when they began."""
        self.found = 0
        """Writes of unknown outcome that later replies prove executed."""
        self.complaints: list[str] = []

    @property
    def unknown(self) -> int:
        """The number of writes whose outcome is unknown."""
        return len(self._unknown)

    @property
    def known(self) -> int:
        """The place up to which the order is known: no request in progress can get one before."""
        return min((ticket.floor for ticket in self._in_progress), default=self._newest)

    def begin(self, request: bytes, *, read_only: bool) -> PendingRequest:
        """Record that a request is about to be made."""
        ticket = PendingRequest(request, read_only, self._newest)
        self._in_progress.add(ticket)
        return ticket

    def end(self, ticket: PendingRequest, seq: int, reply: bytes) -> None:
        """Record the reply to a request, released at place ``seq``."""
        self._in_progress.discard(ticket)
        if seq <= ticket.floor:
            self.misplaced += 1
            self._complain(seq, ticket, f"begun when place {ticket.floor} was known")
        self._count += 1
        heapq.heappush(self._replies, _Reply(seq, self._count, ticket, reply))
        self._newest = max(self._newest, seq)
        self._released(seq)
        self._advance()

    def lose(self, ticket: PendingRequest) -> None:
        """Record that a request got no reply.  A write may have been executed, or may yet be."""
        self._in_progress.discard(ticket)
        if not ticket.read_only:
            self._unknown.append(ticket)
        self._advance()

    def refuse(self, ticket: PendingRequest) -> None:
        """Record that a request was certainly not executed."""
        self._in_progress.discard(ticket)
        self._advance()

    # ------------------------------------------------------------- replaying

    def _advance(self) -> None:
        known = self.known
        while self._replies and self._replies[0].seq <= known:
            self._replay(heapq.heappop(self._replies))

    def _replay(self, got: _Reply) -> None:
        seq, _, ticket, reply = got
        if seq <= self._replayed and seq > ticket.floor:
            self.misplaced += 1
            self._complain(seq, ticket, f"place {self._replayed} was taken before")
        self._replayed = max(self._replayed, seq)
        before = self._model.service.snapshot() if self._unknown else None  # lazy: encoded if used
        expected = self._apply(ticket, seq)
        unknown = list(self._unknown)
        if expected == reply or (before is not None and self._prove(b"".join(before), got)):
            self.correct += 1
        else:
            self.wrong += 1
            text = f"released {show_reply(reply)}, the oracle expects {show_reply(expected)}"
            self._complain(seq, ticket, text)
        # A write of unknown outcome that explains this reply was executed before it.
        for proved in [t for t in unknown if t not in self._unknown]:
            self._executed(seq, proved.request, proved.read_only)
        self._executed(seq, ticket.request, ticket.read_only)

    def _prove(self, before: bytes, got: _Reply) -> bool:
        """Return whether writes of unknown outcome, executed just before it, explain a reply."""
        after = self._model.state()
        possible = [ticket for ticket in self._unknown if ticket.floor < got.seq]
        for size in range(1, min(MAX_PROVED, len(possible)) + 1):
            for chosen in permutations(possible, size):
                if self._explain(before, chosen, got):
                    self._unknown = [t for t in self._unknown if t not in chosen]
                    self.found += size
                    return True
        self._model.service.restore(after)
        return False

    def _explain(self, before: bytes, chosen: Iterable[PendingRequest], got: _Reply) -> bool:
        self._model.service.restore(before)
        for ticket in chosen:
            self._apply(ticket, got.seq)
        return self._apply(got.ticket, got.seq) == got.reply

    def _apply(self, ticket: PendingRequest, seq: int) -> bytes:
        return self._model.apply(ticket.request, seq, read_only=ticket.read_only)

    def _complain(self, seq: int, ticket: PendingRequest, text: str) -> None:
        if len(self.complaints) < MAX_COMPLAINTS:
            line = ticket.request.partition(b"\r\n")[0].decode("latin-1")
            self.complaints.append(f"place {seq}: {line}: {text}")
