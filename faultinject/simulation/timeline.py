"""A readable timeline of one run: what each part received, decided and holds.

The timeline only reads.  It wraps methods of the world's parts *after* they are made.  A run
without a timeline has no overhead, and a run with one takes the same course (equal trace hash).
Each line gives the simulated second, the part, and what happened there::

    0.1040  voter 1   <- g0 replies to 19: 200 b'5'
    0.1040  voter 1      release 19 to ticket 7: 204 (2 agree)

``<-`` marks an event that the engine receives.  The indented lines below it are its effects.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from faultinject.simulation.guest import SimGuest, WitnessedService
from faultinject.simulation.loop import current_process
from faultinject.simulation.plan import SimFault
from faultinject.simulation.promises import operation_of
from faultinject.simulation.world import World
from guests.protocol.message import MessageError, Reply, Request
from guests.protocol.wire import WireError, decode_replies
from guests.service import Context
from voter.core import entries
from voter.core import events as ev
from voter.runner import Runner

__all__ = ["Timeline"]

_QUIET = (ev.Tick, ev.Heard, ev.Ping, ev.Piece)
"""Frequent events and effects that explain nothing: they get no line."""


class Timeline:
    """The lines of one run, in chronological order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._world: World | None = None

    def add(self, actor: str, text: str) -> None:
        """Add a line about ``actor``, a part of the system."""
        if self._world is None:
            return  # the run is over, and is being cleaned up
        now = self._world.loop.time()
        self.lines.append(f"{now:9.4f}  {actor:<9} {text}")

    # ------------------------------------------------------------ attaching

    def attach(self, world: World) -> None:
        """Watch a world that was just made and has not run yet."""
        self._world = world
        for guest in world.guests:
            self._watch_guest(guest)
        self._before(world, "lose_power", lambda: self.add("host", "loses power"))
        self._before(world, "damage_disk", lambda _: self.add("disk", "one bit of a file changes"))
        self._before(world.observer, "applies", self._applied)
        self._before(
            world.observer,
            "breach",
            lambda promise, text: self.add("PROMISE", f"{promise} is broken: {text}"),
        )

    def watch_runner(self, runner: Runner) -> None:
        """Add lines for what a voter's engine receives and decides."""
        process, engine = current_process(), runner.engine
        name = process.name if process is not None else "voter"
        receive, begin = engine.receive, engine.begin

        @wraps(receive)
        def watched(event: ev.Event) -> list[ev.Effect]:
            if not isinstance(event, _QUIET):
                self.add(name, f"<- {describe(event)}")
            effects = receive(event)
            for effect in effects:
                if not isinstance(effect, _QUIET):
                    self.add(name, f"   {describe(effect)}")
            return effects

        @wraps(begin)
        def begun(past: Any) -> list[ev.Effect]:
            self.add(name, f"continues from checkpoint {past.base.seq} and the journal:")
            for entry in past.entries:
                self.add(name, f"   {_describe_entry(entry)}")
            return begin(past)

        engine.receive, engine.begin = watched, begun  # type: ignore[method-assign]

    def fault(self, fault: SimFault, what: str) -> None:
        """Add a line for a fault that begins or ends."""
        text = f"{fault.index} {fault.kind} (target {fault.target}, amount {fault.amount}) {what}"
        self.add("FAULT", text)

    def finish(self) -> None:
        """Add lines for the state of each part at the end."""
        world = self._world
        if world is None:
            return
        main = world.observer.applied_order
        writes = ", ".join(f"{w.seq}{' (void)' if w.void else ''}" for w in main) or "none"
        self.add("order", f"the writes that replicas hold: {writes}")
        for guest in world.guests:
            service = guest.service
            if service is None:
                self.add(f"g{guest.index}", "holds nothing: no service runs")
                continue
            held = sorted(service.table.entries.items())
            values = {key.decode("latin-1"): value for key, (value, _) in held}
            last = next((w.seq for w in main if w.history == service.tip), "an unknown place")
            faulty = "" if guest.honest else " (a fault changed its state or its replies)"
            self.add(f"g{guest.index}", f"holds the state after {last}: {values}{faulty}")
        for name, inode in sorted(world.disk.cached.items()):
            used = len(bytes(inode.cached).rstrip(b"\0"))
            unsynced = f", {len(inode.dirty)} writes not synced" if inode.dirty else ""
            self.add("disk", f"{name}: {used} bytes{unsynced}")
        self._world = None

    # ------------------------------------------------------------- wrapping

    def _before(self, owner: Any, name: str, call: Callable[..., None]) -> None:
        """Call ``call`` with the same arguments before each call of a method."""
        method = getattr(owner, name)

        @wraps(method)
        def watched(*arguments: Any, **more: Any) -> Any:
            call(*arguments, **more)
            return method(*arguments, **more)

        setattr(owner, name, watched)

    def _applied(self, service: WitnessedService, request: Request, context: Context) -> None:
        if not context.read_only:
            operation = request.headers.get("x-op", "?")
            text = f"applies {context.seq}: {request.method} {request.path}, operation {operation}"
            self.add(f"g{service.guest.index}", text)

    def _watch_guest(self, guest: SimGuest) -> None:
        actor = f"g{guest.index}"
        texts = {
            "boot": lambda: "boots from its clean snapshot",
            "power_off": lambda: "is powered off",
            "kill_service": lambda _: "its service process dies",
            "set_hung": lambda hung: "hangs" if hung else "runs again",
            "corrupt_state": lambda: "a stored value is changed",
        }
        for name, text in texts.items():
            self._before(guest, name, lambda *a, text=text: self.add(actor, text(*a)))


# ------------------------------------------------------------- descriptions


def _request(data: bytes) -> str:
    try:
        request = Request.decode(data)
    except MessageError:
        return repr(data[:40])
    operation = operation_of(data)
    named = "" if operation is None else f", operation {operation}"
    return f"{request.method} {request.path}{named}"


def _reply(data: bytes) -> str:
    try:
        reply = Reply.decode(data)
    except MessageError:
        return f"garbage {data[:24]!r}"
    return f"{reply.status} {bytes(reply.body)[:24]!r}"


def _once(once: entries.Once | None) -> str:
    if once is None:
        return ""
    scope = "key" if once.scope[:1] == b"k" else f"session {once.scope[-4:].hex()}"
    key = once.key.decode("latin-1") if scope == "key" else str(int.from_bytes(once.key))
    return f" [{scope} {key}, done {once.done}]"


def _record(record: entries.Record) -> str:
    kind = "read" if record.read_only else "void write" if record.void else "write"
    return f"{kind} {record.seq} {_request(record.request)}{_once(record.once)}"


def _describe_entry(entry: entries.Entry) -> str:
    if isinstance(entry, entries.Record):
        return _record(entry)
    if isinstance(entry, entries.Settled):
        kept = "" if entry.reply is None else f", reply {_reply(entry.reply)}"
        return f"settled {entry.seq}{kept}"
    if isinstance(entry, entries.Void):
        return f"void {entry.seq}"
    if isinstance(entry, entries.Opened):
        return f"session {entry.session[-4:].hex()} opened"
    if isinstance(entry, entries.SequenceReservation):
        return f"places up to {entry.upto} are reserved"
    if isinstance(entry, entries.ClockStep):
        return f"agreed time steps by {entry.step_ns / 1e9:.1f} s"
    if isinstance(entry, entries.RoleChange):
        table = ", ".join(f"{name} {role}" for name, role in entry.roles.items())
        return f"roles {entry.version}: {table}"
    return f"{entry.replica}: {entry.before} -> {entry.after} ({entry.reason})"


def _replies(payload: bytes) -> str:
    try:
        return "; ".join(map(_reply, decode_replies(payload)))
    except WireError:
        return f"garbage {payload[:24]!r}"


def _names(indexes: tuple[int, ...]) -> str:
    return ", ".join(f"g{index}" for index in indexes) or "nobody"


_DESCRIPTIONS: dict[type, Callable[[Any], str]] = {
    ev.Submit: lambda e: f"client sends, ticket {e.ticket}: {_request(e.request)}{_once(e.once)}",
    ev.SubmitAll: lambda e: "; ".join(describe(request) for request in e.requests),
    ev.OpenSession: lambda e: f"client opens a session, ticket {e.ticket}",
    ev.Cancel: lambda e: f"client of ticket {e.ticket} no longer waits",
    ev.Synced: lambda e: f"journal is durable up to entry {e.position}",
    ev.Full: lambda e: f"journal is {'full' if e.full else 'writable again'}",
    ev.Greeted: lambda e: (
        f"g{e.replica} greets: holds writes up to {e.last_seq}, replies from {e.replies_from},"
        f" {'fresh' if e.fresh else 'not fresh'}"
    ),
    ev.Lost: lambda e: f"link to g{e.replica} is lost: {e.reason}",
    ev.ProtocolViolation: lambda e: f"g{e.replica} violates the protocol: {e.reason}",
    ev.Answered: lambda e: f"g{e.replica} replies to {e.seq}: {_reply(e.reply)}",
    ev.AnsweredAll: lambda e: f"g{e.replica} replies to {e.seq} and more: {_replies(e.replies)}",
    ev.Digested: lambda e: f"g{e.replica} has digest {e.digest.hex()[:8]} at marker {e.seq}",
    ev.RefusedOrder: lambda e: f"g{e.replica} refuses {e.seq}: {e.reason}",
    ev.Restored: lambda e: f"g{e.replica} holds checkpoint {e.seq}, digest {e.digest.hex()[:8]}",
    ev.Fetched: lambda e: f"g{e.replica} gave its state at {e.seq}: {len(e.state)} bytes",
    ev.FetchFailed: lambda e: f"g{e.replica} gives no state at {e.seq}: {e.reason}",
    ev.Readmit: lambda e: f"supervisor readmits g{e.replica}",
    ev.Expel: lambda e: f"operator expels g{e.replica}: {e.reason}",
    ev.Drain: lambda e: "drain",
    ev.Append: lambda e: f"journal: {_describe_entry(e.entry)}",
    ev.Send: lambda e: f"send to {_names(e.replicas)}: {_record(e.record)}",
    ev.SendAll: lambda e: (
        f"send to {_names(e.replicas)} together: {'; '.join(map(_record, e.records))}"
    ),
    ev.Push: lambda e: f"push what is held to {_names(e.replicas)}",
    ev.Mark: lambda e: (
        f"marker {e.seq} to {_names(e.replicas)}"
        f", kept by {'nobody' if e.keeper is None else f'g{e.keeper}'}"
    ),
    ev.Restore: lambda e: f"restore g{e.replica} from checkpoint {e.seq}: {len(e.state)} bytes",
    ev.Fetch: lambda e: f"fetch the state at {e.seq} from g{e.replica}",
    ev.Disconnect: lambda e: f"disconnect g{e.replica}: {e.reason}",
    ev.Release: lambda e: (
        f"release {e.seq} to ticket {e.ticket}: {_reply(e.reply)}"
        f" ({'replayed' if e.replayed else f'{e.agreed} agree'}"
        f"{f', dissent of {_names(e.dissent)}' if e.dissent else ''})"
    ),
    ev.ReleaseAll: lambda e: "; ".join(describe(release) for release in e.releases),
    ev.SessionOpened: lambda e: f"session {e.session[-4:].hex()} to ticket {e.ticket}",
    ev.Fail: lambda e: f"no reply to ticket {e.ticket}: {e.failure}: {e.detail}",
    ev.Changed: lambda e: f"g{e.replica}: {e.before} -> {e.after} ({e.reason})",
    ev.TakeCheckpoint: lambda e: "supervisor wants a checkpoint",
    ev.ChangeRoles: lambda e: f"supervisor changes roles {e.version}: {e.roles}",
    ev.RoleAssigned: lambda e: f"g{e.replica}: role {e.before} -> {e.after}",
    ev.RolesChanged: lambda e: f"report that the roles have version {e.version}",
    ev.RolesRefused: lambda e: f"refuse a change of roles: {e.detail}",
    ev.Differed: lambda e: f"g{e.replica} differs at {e.seq}: {_reply(e.other or b'')}",
    ev.Voided: lambda e: f"request {e.seq} is voided",
    ev.ClockChanged: lambda e: (
        f"the wall clock is set by {e.wall_ns / 1e9:+.1f} s, "
        f"agreed time steps by {e.step_ns / 1e9:.1f} s"
    ),
    ev.Checkpointed: lambda e: f"checkpoint at {e.base.seq}, {len(e.state)} bytes",
}


def describe(item: ev.Event | ev.Effect) -> str:
    """Return a description of an engine event or effect in one line."""
    describe_item = _DESCRIPTIONS.get(type(item))
    return describe_item(item) if describe_item is not None else repr(item)
