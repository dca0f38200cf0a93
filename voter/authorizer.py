"""A runner with a gate: F, a process of its own, is asked of each request before it is ordered.

Configuration C2 of the paper's Figure 5: what every guest would do by itself (``guests.function``)
is done once, on the host.  F's death, hang or lies are its own: all that is here is a question on a
unix socket and its answer.  F says yes: the request goes on as it would without.  No: the client
gets the reply that a guest would have given.  Nothing in time, or what is no answer: the client is
refused (not-executed, unless an attempt before this one has a place in the order), never let
through, and so are all that wait behind it.  F is asked and answers in order, so that requests keep
theirs.

Loaded only where the configuration names a ``function``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

from guests.protocol.function import NO, REFUSAL, YES
from guests.protocol.wire import Decoder, FrameKind, encode
from voter.address import Connector, parse_address
from voter.config import Config
from voter.core.dedup import Finding
from voter.core.events import Fail, Failure, Once, Release
from voter.log import complain, note
from voter.runner import LARGEST, Clock, Runner, Verdict

__all__ = ["ASKED", "ASKED_BYTES", "AuthorizingRunner"]

ASKED, ASKED_BYTES = 4096, 64 << 20
"""Requests that wait for F's word at most, and their size."""
_BEFORE = {
    Finding.PENDING: Failure.OUTCOME_UNKNOWN,
    Finding.DONE: Failure.OUTCOME_UNKNOWN,
    Finding.EXPIRED: Failure.SESSION_EXPIRED,
}
"""What is said of a retry that F does not let through, by what is known of the attempt before."""


class _Asked(NamedTuple):
    """A request that waits for F's word until ``until``; ``call`` gets the verdict."""

    request: bytes
    caller: bytes
    read_only: bool
    call: Callable[[Verdict], object]
    once: Once | None
    until: float


class AuthorizingRunner(Runner):
    """The runner, with F before it.  A ticket of its own stands for a request from here on."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        connector: Connector,
        random64: Callable[[], int],
        *,
        secret: bytes | None = None,
    ) -> None:
        super().__init__(config, clock, connector, random64, secret=secret)
        self._f_address = parse_address(config.function or "")
        self._f_connector = connector
        self._f: _Line | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._asked: OrderedDict[int, _Asked] = OrderedDict()
        self._asked_bytes = 0
        self._gone: set[int] = set()  # asked of F, by clients who have gone
        self._passed: dict[int, int] = {}  # admitted: our ticket, the runner's
        self._gate_ticket = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._silent = False  # F, the last time it was asked
        self._ending = False  # F is asked nothing any more
        self.counters["denied"] = 0

    def submit(
        self,
        request: bytes,
        caller: bytes,
        read_only: bool,
        call: Callable[[Verdict], object],
        once: Once | None = None,
    ) -> int:
        """Ask F, then order the request; ``call`` gets the verdict, once.  Returns the ticket."""
        ticket = self._gate_ticket = self._gate_ticket + 1
        until = asyncio.get_running_loop().time() + self.config.timing.function
        asked = _Asked(request, caller, read_only, call, once, until)
        if len(request) > LARGEST:
            self._pass(ticket, asked)  # it is refused there, unread
        elif self._ending:
            self._refuse(ticket, asked, Failure.NOT_EXECUTED, "the voter ends")
        elif len(self._asked) >= ASKED or self._asked_bytes + len(request) > ASKED_BYTES:
            self._refuse(ticket, asked, Failure.OVERLOAD, "too many requests wait for it")
        else:
            self._asked[ticket] = asked
            self._asked_bytes += len(request)
            if self._f is not None:
                self._f.ask(ticket, request)
            elif self._dialing is None:
                self._dialing = asyncio.create_task(self._dial(), name="dial F")
            self._watch()
        return ticket

    async def run(self) -> None:
        """Run as the runner does; F is asked nothing any more afterwards."""
        try:
            await super().run()
        finally:
            self._end()
            if self._dialing is not None:
                self._dialing.cancel()

    @property
    def waiting(self) -> int:
        """Clients that wait for F's word, or a verdict."""
        return super().waiting + len(self._asked)

    async def drained(self) -> None:
        """Order nothing new, ask F nothing any more; return once nobody waits for a verdict."""
        self._end()
        await super().drained()

    def _end(self) -> None:
        self._ending = True
        self.lose(self._f, "the voter ends")

    def cancel(self, ticket: int) -> None:
        """The client has gone; what F has not admitted yet is not ordered any more."""
        if ticket in self._asked:
            self._gone.add(ticket)
        elif ticket in self._passed:
            super().cancel(self._passed.pop(ticket))

    def _pass(self, ticket: int, asked: _Asked) -> None:
        self._passed[ticket] = 0
        inner = super().submit(
            asked.request,
            asked.caller,
            asked.read_only,
            partial(self._answer, ticket, asked.call),
            asked.once,
        )
        if ticket in self._passed:
            self._passed[ticket] = inner

    def _answer(self, ticket: int, call: Callable[[Verdict], object], verdict: Verdict) -> None:
        self._passed.pop(ticket, None)
        call(verdict)

    def _refuse(self, ticket: int, asked: _Asked, code: str, reason: str) -> None:
        if asked.once is not None and not asked.read_only:
            found = self.engine.dedup.lookup(asked.once, asked.caller, self.engine.log.time_ns)
            code = _BEFORE.get(found.finding, code)
        self.failures[code] = self.failures.get(code, 0) + 1
        self._tell(asked.call, Fail(ticket, code, f"the function F: {reason}"))

    def _tell(self, call: Callable[[Verdict], object], verdict: Verdict) -> None:
        try:
            call(verdict)
        except Exception:  # noqa: BLE001 - must cost one client, not those behind it
            complain("a front end failed", ticket=verdict.ticket)

    # ------------------------------------------------------------ F

    async def _dial(self) -> None:
        """Connect to F, and ask what has come together; refuse it all if nobody is there."""
        line = _Line(self)
        try:
            await self._f_connector(self._f_address, lambda: line)
        except OSError as error:
            self.lose(None, f"nobody serves at {self._f_address.text}: {error}")
        else:
            self._f = line
            for ticket, asked in self._asked.items():
                line.ask(ticket, asked.request)
        finally:
            self._dialing = None

    def decide(self, line: _Line, ticket: int, word: bytes) -> None:
        """F has said something: only yes or no, to the first that waits, is an answer."""
        if line is not self._f:
            return
        if next(iter(self._asked), None) != ticket or word not in (YES, NO):
            self.lose(line, "it answers what it was not asked")
            return
        asked = self._take(ticket)
        self._watch()
        if self._silent:
            self._silent = False
            note("function", answers=True)
        if asked is None:
            return
        if word == YES:
            self._pass(ticket, asked)
        else:
            self.counters["denied"] += 1
            self._tell(asked.call, Release(ticket, 0, REFUSAL, 0, ()))

    def lose(self, line: _Line | None, reason: str) -> None:
        """F does not answer (any more): refuse all that wait; the next request dials it anew."""
        if line is not self._f:
            return
        if line is not None:
            self._f = None
            line.close()
        if self._asked and not self._silent:
            self._silent = True
            note("function", answers=False, reason=reason)
        for ticket in tuple(self._asked):
            asked = self._take(ticket)
            if asked is not None:
                self._refuse(ticket, asked, Failure.NOT_EXECUTED, reason)
        self._watch()

    def _take(self, ticket: int) -> _Asked | None:
        """Take a request off the list of those that wait; None if its client has gone."""
        asked = self._asked.pop(ticket)
        self._asked_bytes -= len(asked.request)
        if ticket in self._gone:
            self._gone.remove(ticket)
            return None
        return asked

    def _watch(self) -> None:
        """Have one timer, for the first that waits: the others fall due after it."""
        if self._deadline is None and self._asked:
            until = next(iter(self._asked.values())).until
            self._deadline = asyncio.get_running_loop().call_at(until, self._look, until)

    def _look(self, due: float) -> None:
        """Lose F if the first waits for too long; a voter that was itself held up blames nobody."""
        self._deadline = None
        loop, limit = asyncio.get_running_loop(), self.config.timing.function
        first = next(iter(self._asked.values()), None)
        if first is not None and loop.time() - due > limit / 10:
            self._deadline = loop.call_later(limit, self._look, loop.time() + limit)
        elif first is not None and first.until <= loop.time():
            self.lose(self._f, f"no word within {limit:g} s")
        self._watch()


class _Line(asyncio.Protocol):
    """The connection to F."""

    def __init__(self, gate: AuthorizingRunner) -> None:
        self._gate = gate
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: F is there."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: F is gone."""
        self._transport = None
        self._gate.lose(self, "it has gone")

    def data_received(self, data: bytes) -> None:
        """asyncio: answers."""
        for frame in self._decoder.feed(data):
            self._gate.decide(
                self, frame.seq, frame.payload if frame.kind == FrameKind.REPLY else b""
            )
        if self._decoder.skipped:
            self._gate.lose(self, "what it says is not a frame")

    def ask(self, ticket: int, request: bytes) -> None:
        """Ask of one request."""
        if self._transport is not None:
            self._transport.write(encode(FrameKind.REQUEST, 0, ticket, request))

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()
