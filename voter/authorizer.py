"""A runner that asks F, a process of its own, before it orders a request.

This is configuration C2 of the paper's Figure 5: what every guest would do on its own
(``guests.function``) is done once, on the host.  The voter asks F on a unix socket.

- F authorizes it: the request is ordered as it would be without F.
- F rejects it: the client gets the reply that a guest would have given.
- F forbids it, as a monitor: the client gets 403, and may be blocked (``voter.blocked_clients``).
- F does not answer in time, or its answer is malformed: the voter refuses the request and all that
  wait behind it (not-executed, unless an earlier attempt was ordered).

F is asked and answers in order, so requests keep their order.  F's failures do not affect the vote:
all that connects the two is a question and its answer.  The voter loads this module only if the
configuration names a ``function``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

from guests.protocol.function import BLOCK, FORBID, FORBIDDEN, NO, REFUSAL, YES
from guests.protocol.wire import Decoder, FrameKind, encode
from voter import log
from voter.address import Connector, parse_address
from voter.config import Config
from voter.core.dedup import Finding
from voter.core.entries import Once
from voter.core.events import Fail, Failure, Release
from voter.runner import LARGEST, Clock, Result, Runner

__all__ = ["ASKED", "ASKED_BYTES", "AuthorizingRunner"]

ASKED, ASKED_BYTES = 4096, 64 << 20
"""Most requests that wait for F's answer, and most bytes of them; more are refused (overload)."""
_ANSWERS = (YES, NO, FORBID, BLOCK)
_BEFORE = {
    Finding.PENDING: Failure.OUTCOME_UNKNOWN,
    Finding.DONE: Failure.OUTCOME_UNKNOWN,
    Finding.EXPIRED: Failure.SESSION_EXPIRED,
}
"""The failure of a retry that F did not authorize, by what is known of the earlier attempt."""


class _Asked(NamedTuple):
    """A request that waits for F's answer until ``until``; ``call`` gets the result."""

    request: bytes
    caller: bytes
    read_only: bool
    call: Callable[[Result], object]
    once: Once | None
    ids: tuple[str, ...]
    until: float


class AuthorizingRunner(Runner):
    """The runner, with F before it.  Its tickets are its own: they begin before F answers."""

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
        self._f: _FunctionConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._asked: OrderedDict[int, _Asked] = OrderedDict()
        self._asked_bytes = 0
        self._gone: set[int] = set()  # asked of F, by clients whose connection is lost
        self._passed: dict[int, int] = {}  # authorized: our ticket, the runner's
        self._own_ticket = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._silent = False  # F did not answer the last time
        self._ending = False  # F is not asked any more
        self.counters["denied"] = 0

    def submit(
        self,
        request: bytes,
        caller: bytes,
        read_only: bool,
        call: Callable[[Result], object],
        once: Once | None = None,
        ids: tuple[str, ...] = (),
    ) -> int:
        """Ask F, then order the request; ``call`` gets the result, once.  Return the ticket."""
        ticket = self._own_ticket = self._own_ticket + 1
        until = asyncio.get_running_loop().time() + self.config.timing.function
        asked = _Asked(request, caller, read_only, call, once, ids, until)
        if len(request) > LARGEST:
            self._pass(ticket, asked)  # the runner refuses it
        elif self._ending:
            self._refuse(ticket, asked, Failure.NOT_EXECUTED, "the voter stops")
        elif len(self._asked) >= ASKED or self._asked_bytes + len(request) > ASKED_BYTES:
            self._refuse(ticket, asked, Failure.OVERLOAD, "too many requests wait for it")
        else:
            self._asked[ticket] = asked
            self._asked_bytes += len(request)
            if self._f is not None:
                self._f.ask(ticket, request)
            elif self._connecting is None:
                self._connecting = asyncio.create_task(self._connect(), name="connect to F")
            self._watch()
        return ticket

    async def run(self) -> None:
        """Run as the runner does; afterwards F is not asked any more."""
        try:
            await super().run()
        finally:
            self._end()
            if self._connecting is not None:
                self._connecting.cancel()

    @property
    def waiting(self) -> int:
        """Clients that wait for F's answer or for a result."""
        return super().waiting + len(self._asked)

    async def drained(self) -> None:
        """Order nothing new and ask F nothing more; return once no client waits for a result."""
        self._end()
        await super().drained()

    def _end(self) -> None:
        self._ending = True
        self.lose(self._f, "the voter stops")

    def cancel(self, ticket: int) -> None:
        """Forget a client whose connection is lost; never order what F has not authorized yet."""
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
            asked.ids,
        )
        if ticket in self._passed:
            self._passed[ticket] = inner

    def _answer(self, ticket: int, call: Callable[[Result], object], result: Result) -> None:
        self._passed.pop(ticket, None)
        call(result)

    def _refuse(self, ticket: int, asked: _Asked, code: str, reason: str) -> None:
        if asked.once is not None and not asked.read_only:
            found = self.engine.dedup.lookup(asked.once, asked.caller, self.engine.log.time_ns)
            code = _BEFORE.get(found.finding, code)
        self.failures[code] = self.failures.get(code, 0) + 1
        self._trace(ticket, asked, Fail(-ticket, code, f"the function F: {reason}"))
        self._call_back(asked.call, Fail(ticket, code, f"the function F: {reason}"))

    def _trace(self, ticket: int, asked: _Asked, fail: Fail) -> None:
        """Record a request that was never ordered (tickets below 0 are none of the runner's)."""
        if asked.ids:
            self.tracer.identify(-ticket, asked.ids)
        since = asked.until - self.config.timing.function
        self.tracer.failed(asyncio.get_running_loop().time(), since, fail)

    def _call_back(self, call: Callable[[Result], object], result: Result) -> None:
        try:
            call(result)
        except Exception:  # noqa: BLE001 - costs one client, not those behind it
            log.exception("a front end failed", error_code="TV0226", ticket=result.ticket)

    # ------------------------------------------------------------ F

    async def _connect(self) -> None:
        """Connect to F and send it the requests that wait; refuse them all if nobody listens."""
        connection = _FunctionConnection(self)
        try:
            await self._f_connector(self._f_address, lambda: connection)
        except OSError as error:
            self.lose(None, f"no function listens on {self._f_address.text}: {error}")
        else:
            self._f = connection
            for ticket, asked in self._asked.items():
                connection.ask(ticket, asked.request)
        finally:
            self._connecting = None

    def decide(self, connection: _FunctionConnection, ticket: int, answer: bytes) -> None:
        """Take a message of F: only one of _ANSWERS to the first request that waits."""
        if connection is not self._f:
            return
        if next(iter(self._asked), None) != ticket or answer not in _ANSWERS:
            self.lose(connection, "it sent an unexpected answer")
            return
        asked = self._take(ticket)
        self._watch()
        if self._silent:
            self._silent = False
            log.info("function", answers=True)
        if asked is None:
            return
        if answer == YES:
            self._pass(ticket, asked)
        else:
            self.counters["denied"] += 1
            self._trace(ticket, asked, Fail(-ticket, "denied", "the function F denied it"))
            reply = REFUSAL if answer == NO else FORBIDDEN
            self._call_back(asked.call, Release(ticket, 0, reply, 0, ()))
            if answer == BLOCK:
                self._block(asked.caller)

    def _block(self, caller: bytes) -> None:
        """Block a client whose request F does not want to see again."""
        from voter.blocked_clients import blocked_of  # noqa: PLC0415 - loaded if needed

        try:
            blocked_of(self).block(caller, None, "the function F blocked this client")
        except ValueError as error:
            log.info(
                "client not blocked", caller=caller.decode(errors="replace"), reason=str(error)
            )

    def lose(self, connection: _FunctionConnection | None, reason: str) -> None:
        """Close this connection to F and refuse all waiting requests.

        The next request opens a new one.
        """
        if connection is not self._f:
            return
        if connection is not None:
            self._f = None
            connection.close()
        if self._asked and not self._silent:
            self._silent = True
            log.info("function", answers=False, reason=reason)
        for ticket in tuple(self._asked):
            asked = self._take(ticket)
            if asked is not None:
                self._refuse(ticket, asked, Failure.NOT_EXECUTED, reason)
        self._watch()

    def _take(self, ticket: int) -> _Asked | None:
        """Remove and return a request that waits; None if its client's connection is lost."""
        asked = self._asked.pop(ticket)
        self._asked_bytes -= len(asked.request)
        if ticket in self._gone:
            self._gone.remove(ticket)
            return None
        return asked

    def _watch(self) -> None:
        """Set one timer, for the first request that waits: the others are due after it."""
        if self._deadline is None and self._asked:
            until = next(iter(self._asked.values())).until
            self._deadline = asyncio.get_running_loop().call_at(until, self._check_deadline, until)

    def _check_deadline(self, due: float) -> None:
        """Close the connection to F if the first request waits too long.

        If the voter itself was delayed, it extends the deadline instead.
        """
        self._deadline = None
        loop, limit = asyncio.get_running_loop(), self.config.timing.function
        first = next(iter(self._asked.values()), None)
        if first is not None and loop.time() - due > limit / 10:
            self._deadline = loop.call_later(limit, self._check_deadline, loop.time() + limit)
        elif first is not None and first.until <= loop.time():
            self.lose(self._f, f"no answer within {limit:g} s")
        self._watch()


class _FunctionConnection(asyncio.Protocol):
    """The connection to F."""

    def __init__(self, runner: AuthorizingRunner) -> None:
        self._runner = runner
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: F has accepted the connection."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._transport = None
        self._runner.lose(self, "it closed the connection")

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from F."""
        for frame in self._decoder.feed(data):
            self._runner.decide(
                self, frame.seq, frame.payload if frame.kind == FrameKind.REPLY else b""
            )
        if self._decoder.skipped:
            self._runner.lose(self, "it sent bytes that are not a frame")

    def ask(self, ticket: int, request: bytes) -> None:
        """Send one request to F."""
        if self._transport is not None:
            self._transport.write(encode(FrameKind.REQUEST, 0, ticket, request))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()
