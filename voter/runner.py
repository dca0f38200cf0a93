"""The runner: feeds the engine with events and carries out its effects.

A request: a front end calls ``submit``; at the end of the turn of the loop the engine orders it,
with the others of this turn; ``_send`` puts them on the links; each link delivers the answers; the
engine finds a majority; ``_release`` calls the front end back.

Theory of operation.  Two rules make the effects safe:

- Effects are carried out in the order of their events.  An event that arises meanwhile waits until
  all effects before it are carried out (``receive``); otherwise a later order could be sent first.
- Nothing leaves before it is written.  Journal entries and frames collect during a turn of the
  event loop.  At its end (``_flush``) the journal is written first and only then the frames; if the
  journal cannot be written, nothing is sent and the voter ends.

Clock, connector and random source are parameters, so that a simulation can run this very code.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from guests.protocol import wire
from voter import log
from voter.address import Connector, parse_address
from voter.config import Config
from voter.core import Engine, Policy
from voter.core import events as ev
from voter.core.entries import Once
from voter.core.events import Effect, Event, Fail, Failure, Release, SessionOpened
from voter.core.replica import CAUGHT_UP, Role
from voter.core.resume import Past
from voter.errors import JournalError
from voter.identities import ReplicaIdentities
from voter.journal import Journal
from voter.link import ReplicaLink, encode_orders
from voter.reports import Reports
from voter.trace import LATENCY_BOUNDS, Trace, Tracer

__all__ = ["Clock", "RolesResult", "SessionResult", "Runner", "Result"]

TIMER = 0.05
"""Seconds between checks of deadlines when no event arrives."""
LARGEST = wire.MAX_PAYLOAD - len(wire.encode_order(0, bytes(8), bytes(8), b"", b""))
LARGEST_CALLER = (1 << 16) - 1
"""Bytes of request and caller together, and of the caller alone, that fit into an ORDER frame."""
TICK = 0.0005
"""Seconds by which the engine's time may lag behind the clock: a Tick for less is not worth it."""

_ANSWERS = (ev.Answered, ev.AnsweredAll)

Result = Release | Fail
SessionResult = SessionOpened | Fail
RolesResult = ev.RolesChanged | ev.RolesRefused | Fail


class Clock(NamedTuple):
    """The clocks: ``steady`` in seconds, never backwards; ``wall_ns`` in nanoseconds since 1970."""

    steady: Callable[[], float]
    wall_ns: Callable[[], int]


class Flushable(Protocol):
    """Something that collects bytes during a turn of the loop and writes them once at its end."""

    def flush(self) -> None:
        """Write the collected bytes."""


class _Waiting(NamedTuple):
    """A client that waits: its callback, since when and until when (steady seconds)."""

    call: Callable[[Any], object]  # takes a Result or a SessionResult
    since: float
    until: float


class Runner:
    """Owns the engine and the links; front ends use it and nothing below it."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        connector: Connector,
        random64: Callable[[], int],
        *,
        secret: bytes | None = None,
    ) -> None:
        """``secret`` keys the hash of the history; with a journal it is the journal's."""
        self.config = config
        self.policy: Policy = config.policy
        self.names: Sequence[str] = [replica.name for replica in config.replica]
        self._clock = clock
        self.instance = f"{clock.wall_ns() // 1_000_000:x}"  # begins the ids it gives to requests
        self.journal: Journal | None = None
        self.reserved = asyncio.Event()
        """Set once sequence numbers are reserved durably, so that requests can be ordered."""
        if secret is None:
            self.reserved.set()
        self.engine = Engine(
            self.policy,
            self.names,
            secret=secret or b"".join(random64().to_bytes(8) for _ in range(4)),
            limits=config.limits,
            roles={replica.name: Role(replica.role) for replica in config.replica},
            journaled=secret is not None,
            follow=config.follows,
        )
        self._identities = ReplicaIdentities(config.service, config.policy.need)
        self.links = [
            ReplicaLink(
                index,
                parse_address(replica.link),
                connector=connector,
                deliver=self._deliver,
                check=self._identities.check,
                random64=random64,
                flush_soon=self.flush_soon,
                limits=config.limits,
            )
            for index, replica in enumerate(config.replica)
        ]
        counted = "requests released masked dissents checkpoints voided clock_steps"
        self.counters = dict.fromkeys(counted.split(), 0)
        self.failures: dict[str, int] = {}
        self.tracer = Tracer(self.names, self.policy.need)
        self.latency = [0] * (len(LATENCY_BOUNDS) + 1)
        self.latency_sum = 0.0
        self.reports = Reports(self.engine.members, clock.wall_ns, self.counters)
        self.blocked: Callable[[bytes], str] | None = None  # voter.blocked_clients
        self.drop_client: list[Callable[[bytes], None]] = []  # the front ends close its connections
        self._waiting: dict[int, _Waiting] = {}
        self._idle = asyncio.Event()
        self._ticket = 0
        self._collected: list[ev.Submit] = []  # requests of this turn that are not ordered yet
        self._to_flush: list[Flushable] = []
        self._flush_scheduled = False
        self._sending = False  # orders are sent in this turn
        self._events: deque[Event] = deque()
        self._processing = False
        self._now = self._began = 0.0  # the steady clock, as it was read last; for the first event
        self._ticked = -inf
        self._push_at = inf  # engine time at which ``_push_held`` will be called
        self._push_timer: asyncio.TimerHandle | None = None
        self._process_events()

    # ------------------------------------------------------------- running

    def begin(self, journal: Journal, past: Past, service: tuple[str, int] | None) -> None:
        """Continue from what the journal holds, and write to it from now on.  Before ``run``.

        ``service`` names the service and state format whose states the journal holds, if known.
        """
        self.journal = journal
        self._identities.held, self._identities.learn = service, journal.learn
        try:
            effects = self.engine.begin(past)
        except ValueError as error:
            text = f"{error}: configure one [[replica]] for each slot of the node"
            raise JournalError(text, error_code="TV0240") from error
        for effect in effects:
            self._carry_out[type(effect)](self, effect)
        self.tracer.begin(self.engine.log.seq)

    async def run(self) -> None:
        """Keep all links connected and check the deadlines, until cancelled.

        Raises JournalError if the journal cannot be written: then nothing more may be sent.
        """
        async with asyncio.TaskGroup() as group:
            if self.journal is not None:
                group.create_task(self.journal.run(), name="journal")
            for link, replica in zip(self.links, self.engine.members, strict=True):
                if replica.role is Role.RETIRED:
                    link.enable(False)
                group.create_task(link.run(), name=f"link {replica.name}")
            group.create_task(self._watch_time(), name="timer")

    async def _watch_time(self) -> None:
        while True:
            await asyncio.sleep(TIMER)
            now = self._clock.steady()
            self._process_events()
            while self._waiting:
                ticket, waiting = next(iter(self._waiting.items()))
                if waiting.until > now:
                    break
                self._order_collected()
                seq = self.engine.polls.find(ticket)
                self.receive(ev.Cancel(ticket))
                text = "not settled in time; it may still be executed"
                self._fail(Fail(ticket, Failure.TIMEOUT, text, seq))

    # ------------------------------------------------------------ requests

    def submit(
        self,
        request: bytes,
        caller: bytes,
        read_only: bool,
        call: Callable[[Result], object],
        once: Once | None = None,
        ids: tuple[str, ...] = (),
    ) -> int:
        """Order a request at the end of this turn; ``call`` gets the result, once.

        Return the ticket.  ``ids``: names by which the request can be traced.
        With ``once``, a retry of an ordered request is not ordered again: it gets the same answer.
        """
        now = self._clock.steady()
        ticket = self._ticket = self._ticket + 1
        self.counters["requests"] += 1
        self._waiting[ticket] = _Waiting(call, now, now + self.config.timing.request)
        if ids:
            self.tracer.identify(ticket, ids)
        if len(request) + len(caller) > LARGEST or len(caller) > LARGEST_CALLER:
            self._fail(Fail(ticket, Failure.TOO_LARGE, "the request does not fit into a frame"))
        else:
            self._collected.append(ev.Submit(ticket, request, caller, read_only, once))
            self._flush_at_end()
        return ticket

    def open_session(self, caller: bytes, call: Callable[[SessionResult], None]) -> None:
        """Open a session for a native client; ``call`` gets it, or the failure, once."""
        self.receive(ev.OpenSession(self._add_waiting(call), caller))

    def _add_waiting(self, call: Callable[[Any], object]) -> int:
        now = self._clock.steady()
        ticket = self._ticket = self._ticket + 1
        self._waiting[ticket] = _Waiting(call, now, now + self.config.timing.request)
        return ticket

    def change_roles(self, change: ev.ChangeRoles, call: Callable[[RolesResult], None]) -> None:
        """Change roles as ``change`` says, whose ticket is set here; ``call`` gets the result."""
        self._order_collected()
        self.receive(msgspec.structs.replace(change, ticket=self._add_waiting(call)))

    def cancel(self, ticket: int) -> None:
        """Forget a client whose connection is lost; what was ordered stays ordered."""
        if self._remove_waiting(ticket) is not None:
            self._order_collected()
            self.receive(ev.Cancel(ticket))

    @property
    def waiting(self) -> int:
        """Clients that wait for a result."""
        return len(self._waiting)

    async def drained(self) -> None:
        """Order nothing new from now on; return once no client waits for a result."""
        self._order_collected()
        self.receive(ev.Drain())
        self._idle.clear()
        if self._waiting:
            await self._idle.wait()

    def _order_collected(self) -> None:
        """Let the engine order the requests of this turn."""
        collected = self._collected
        if collected:
            self._collected = []
            self.receive(collected[0] if len(collected) == 1 else ev.SubmitAll(collected))

    def _remove_waiting(self, ticket: int) -> _Waiting | None:
        """Remove and return a waiting client; None if it no longer waits."""
        waiting = self._waiting.pop(ticket, None)
        if not self._waiting:
            self._idle.set()
        return waiting

    def _finish(self, result: Result | SessionOpened | RolesResult) -> None:
        waiting = self._remove_waiting(result.ticket)
        if waiting is not None:
            self._call(waiting, result)

    def _call(self, waiting: _Waiting, result: Result | SessionOpened | RolesResult) -> None:
        try:
            waiting.call(result)
        except Exception:  # noqa: BLE001 - costs one client, not the effects that follow
            log.exception("a front end failed", error_code="TV0226", ticket=result.ticket)

    # ------------------------------------------------------ engine and effects

    def receive(self, event: Event) -> None:
        """Give one event to the engine and carry out its effects, after those of earlier events."""
        self._events.append(event)
        self._process_events()

    def _deliver(self, event: Event) -> None:
        """Take what a replica or its link did; record when a replica answered."""
        self.receive(event)
        if isinstance(event, _ANSWERS):
            self.tracer.answered(self._began, event, self.engine.polls.is_settled(event.seq))

    def _process_events(self) -> None:
        """Give the engine all events that wait, each with the current time before it."""
        if self._processing:
            return
        self._processing = True
        try:
            self._tick()
            self._began = self._now
            while self._events:
                self._feed(self._events.popleft())
                if self._events:
                    self._tick()
        finally:
            self._processing = False
        if self.engine.followers.due < self._push_at:
            self._set_push_timer()

    def _set_push_timer(self) -> None:
        """Let the engine check in time what it holds for followers (early costs little)."""
        if self._push_timer is not None:
            self._push_timer.cancel()
        self._push_at = self.engine.followers.due
        delay = max(0.0, self._push_at - self._clock.steady())
        self._push_timer = asyncio.get_running_loop().call_later(delay, self._push_held)

    def _push_held(self) -> None:
        self._push_at, self._push_timer = inf, None
        if self.engine.followers.due <= self._clock.steady():
            self._ticked = -inf
            self._process_events()
        elif self.engine.followers.due < inf:
            self._set_push_timer()

    def _tick(self) -> None:
        """Give the engine the time, if enough has passed since the last Tick."""
        now = self._now = self._clock.steady()
        if now - self._ticked >= TICK:
            self._ticked = now
            self._feed(ev.Tick(now, self._clock.wall_ns()))

    def _feed(self, event: Event) -> None:
        for effect in self.engine.receive(event):
            self._carry_out[type(effect)](self, effect)

    def _send(self, effect: ev.Send | ev.SendAll) -> None:
        records = effect.records if isinstance(effect, ev.SendAll) else [effect.record]
        orders, later, replicas = encode_orders(records), effect.later, 0
        for index in effect.replicas:
            self.links[index].send_orders(orders, hold=index in later)
            replicas |= 1 << index
        self._sending = True
        self.tracer.ordered(self._now, records, replicas, self.engine.journal.last_write)

    def _push(self, effect: ev.Push) -> None:
        self._sending = True
        for index in effect.replicas:
            self.links[index].push()

    def _release(self, releases: list[Release]) -> None:
        """Call back the clients that wait for replies that are released together."""
        now = since = self._clock.steady()
        for release in releases:
            self.counters["released"] += 1
            if release.dissent:
                self.counters["masked"] += 1
            waiting = self._remove_waiting(release.ticket)
            if waiting is not None:
                since = waiting.since
                self.latency[bisect_left(LATENCY_BOUNDS, now - since)] += 1
                self.latency_sum += now - since
                self._call(waiting, release)
        self.tracer.released(now, since, releases)

    def _append(self, effect: ev.Append) -> None:
        if self.journal is not None:
            self.journal.append(effect.entry)
            self._flush_at_end()

    def _fail(self, effect: Fail) -> None:
        self.failures[effect.failure] = self.failures.get(effect.failure, 0) + 1
        since = getattr(self._waiting.get(effect.ticket), "since", self._now)
        self.tracer.failed(self._now, since, effect)
        self._finish(effect)

    def _mark(self, effect: ev.Mark) -> None:
        for index in effect.replicas:
            self.links[index].mark(effect.seq, effect.keeper)

    def _checkpointed(self, effect: ev.Checkpointed) -> None:
        self.counters["checkpoints"] += 1
        base, state = effect.base, effect.state
        digest = (base.digest or b"").hex()[:16]
        log.info("checkpoint", seq=base.seq, size=len(state), digest=digest)
        if self.journal is not None:
            self.journal.checkpoint(base, state)

    def _changed(self, effect: ev.Changed) -> None:
        self.tracer.changed(self._now, effect)
        self.reports.changed(effect)
        if effect.after in CAUGHT_UP:
            self.links[effect.replica].reset_backoff()

    def _role_assigned(self, effect: ev.RoleAssigned) -> None:
        self.reports.role_assigned(effect)
        if Role.RETIRED in (effect.before, effect.after):
            self._identities.forget(effect.replica)
            self.links[effect.replica].enable(effect.after != Role.RETIRED)

    _carry_out: ClassVar[dict[type[Effect], Callable[[Any, Any], None]]] = {
        ev.Append: _append,
        ev.Send: _send,
        ev.SendAll: _send,
        ev.Push: _push,
        ev.Release: lambda runner, effect: runner._release([effect]),
        ev.ReleaseAll: lambda runner, effect: runner._release(effect.releases),
        ev.SessionOpened: _finish,
        ev.Fail: _fail,
        ev.Mark: _mark,
        ev.Restore: lambda runner, effect: runner.links[effect.replica].restore(effect),
        ev.Fetch: lambda runner, effect: runner.links[effect.replica].fetch(effect.seq),
        ev.Ping: lambda runner, effect: runner.links[effect.replica].ping(),
        ev.Disconnect: lambda runner, effect: runner.links[effect.replica].close(effect.reason),
        ev.Changed: _changed,
        ev.Checkpointed: _checkpointed,
        ev.RoleAssigned: _role_assigned,
        ev.RolesChanged: _finish,
        ev.RolesRefused: _finish,
        ev.Differed: lambda runner, effect: runner.reports.differed(effect),
        ev.Voided: lambda runner, effect: runner.reports.voided(effect),
        ev.ClockChanged: lambda runner, effect: runner.reports.clock_changed(effect),
    }

    # --------------------------------------------------------------- links

    def flush_soon(self, sink: Flushable) -> None:
        """Flush ``sink`` at the end of this turn of the loop, after the journal."""
        self._flush_at_end()
        self._to_flush.append(sink)

    def synced(self, position: int) -> None:
        """Take the journal's report that it is durable up to a position."""
        self.tracer.synced(self._clock.steady(), position)
        self.receive(ev.Synced(position))
        self.reserved.set()

    def set_full(self, full: bool, reason: str) -> None:
        """Take the journal's report that the disk has no room for new requests, or has again."""
        log.info("disk", full=full, reason=reason)
        self.receive(ev.Full(full, reason))

    def _flush_at_end(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """End a turn of the loop: write the journal, then send (see the head of this file)."""
        self._order_collected()
        self._flush_scheduled = False
        if self._collected:  # by a client that was answered just now
            self._flush_at_end()
        sinks, self._to_flush = self._to_flush, []
        if self.journal is not None:
            try:
                self.journal.flush()
            except JournalError:
                return  # the journal's ``run`` raises it too, which ends the voter
        written = self._clock.steady() if self._sending else 0.0
        for sink in sinks:
            sink.flush()
        if self._sending:
            self._sending = False
            clear = sum([1 << link.index for link in self.links if not link.held])
            self.tracer.flushed(written, self._clock.steady(), self.engine.journal.position, clear)

    def trace(self, name: str) -> Trace:
        """Return what happened to a request with this id.  Raises UnknownRequest."""
        seq, ticket = self.tracer.find(name, self.engine.dedup)
        return self.tracer.trace(seq, ticket, *self.clocks())

    def clocks(self) -> tuple[float, float]:
        """Return the times of the steady clock and of the wall clock, in seconds."""
        return self._clock.steady(), self._clock.wall_ns() / 1e9

    def find(self, name: str) -> int:
        """Return the index of the replica called ``name``.  Raises ValueError."""
        return self.names.index(name)

    def readmit(self, index: int) -> None:
        """Allow a replica to come back with its state, and connect to it at once."""
        link = self.links[index]
        if not link.up:
            link.close("readmitted")  # it may wait for an incarnation that has ended
        self.receive(ev.Readmit(index))
        link.reconnect_now()
