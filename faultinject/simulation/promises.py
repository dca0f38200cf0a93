"""The promises of ARCHITECTURE.md, checked while a run is in progress.

The observer sees what the voter sends, what the guests reply and apply, and what is on the disk
when a reply is released.  It observes from outside: bytes on the streams, calls into the services,
blocks of the disk.  It takes one thing from the voter itself, which replicas are active and when:
one event can admit a replica, win a vote with its ballot, and expel it again.  Who may be active
follows from the changes of roles that the voter journals.

``applied_order`` is the order as far as replicas have applied it.  A voided write is no part of it.
The newest writes leave it when power is lost before they were durable and released.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from faultinject.simulation.disk import SimDisk
from faultinject.simulation.guest import SimGuest, WitnessedService
from faultinject.simulation.loop import Process
from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.streams import Transport
from guests.protocol import wire
from guests.protocol.message import Request
from guests.protocol.wire import (
    EMPTY_HISTORY,
    FLAG_READ_ONLY,
    FLAG_VOID,
    Decoder,
    Frame,
    FrameKind,
    decode_orders,
    decode_replies,
    encode_order,
)
from guests.service import Context, state_digest
from voter.core.entries import RoleChange
from voter.core.events import Append, Changed, Checkpointed, Differed, Effect, RoleAssigned
from voter.core.order import tag
from voter.core.replica import Role, State
from voter.native_protocol import Vote, decode_response, decode_several

__all__ = ["PROMISES", "Breach", "PromiseObserver", "Write", "operation_of"]

PROMISES = (
    "Agreement", "Order", "Durability", "Exactly once", "Fail-safe", "Liveness", "Bounded",
    "Linearizability", "Roles",
)  # fmt: skip
DEADLY_LIMIT = 8
"""Most executions of a deadly read by one voter: by all three replicas, by all again if one of them
came back first (``Intake.is_held_up``), and two trials.  Each change of roles adds three: a read
whose replicas are retired is ordered again."""
LEAST_RATE, CLOCK_LAG = 0.45, 0.01
"""Agreed time must advance at this rate at least (the voter promises half of the steady clock's),
except for so many seconds: the engine's clock advances in ticks."""
_OPERATION = re.compile(rb"\r\nx-op: (\d+)\r\n")


def operation_of(request: bytes) -> int | None:
    """Return the number of the operation that a request's bytes carry."""
    found = _OPERATION.search(request)
    return int(found[1]) if found else None


class Breach(NamedTuple):
    """A broken promise: its name, a description, and the simulated time in seconds."""

    promise: str
    text: str
    time: float

    def __str__(self) -> str:
        return f"{self.promise} at {self.time:.4f} s: {self.text}"


class Write:
    """A write as the voter ordered it.

    ``era``: number of power losses before it.  ``life``: number of starts of the voter before it.
    ``sent``: simulated time in seconds at which it was sent first.
    """

    __slots__ = ("caller", "era", "history", "life", "operation", "prev", "request", "sent", "seq",
                 "time_ns", "void")  # fmt: skip

    def __init__(self, seq: int, order: wire.Order, era: int, life: int, sent: float) -> None:
        self.seq = seq
        self.prev = order.prev
        self.history = order.history
        self.time_ns = order.time_ns
        self.caller = order.caller
        self.request = order.request
        self.operation = operation_of(order.request)
        self.void = False
        self.era = era
        self.life = life
        self.sent = sent


class PromiseObserver:
    """The observer of one run.  It collects breaches."""

    def __init__(self, loop: NetworkLoop, disk: SimDisk, durability: str, need: int) -> None:
        self.breaches: list[Breach] = []
        self.applied_order: list[Write] = []
        """The writes that replicas have applied, in order."""
        self.writes: dict[bytes, Write] = {}
        self.released: dict[int, tuple[Vote, bytes]] = {}
        """Released replies by sequence number, of writes and reads."""
        self.restores: list[tuple[bytes, bytes, int]] = []
        """Restored states to which a write was applied: the history before it, digest, guest."""
        self.unlucky_reads: dict[bytes, float] = {}
        """Reads that are void because injected faults hit the replicas of both of their trials, by
        method and target, and since when (simulated seconds)."""
        self.era = 0
        self._life = 0
        self._deadly: Counter[tuple[int, str]] = Counter()
        self._loop = loop
        self._disk = disk
        self._durability = durability
        self._need = need

        self._index: dict[bytes, int] = {}  # history: index in applied_order
        self._durable = 0  # length of the prefix of applied_order that is known to be on the disk
        self._votes: dict[int, dict[int, bytes]] = {}  # seq: guest: tag of its reply
        self._won: dict[int, set[bytes]] = {}  # seq: tags of replies that enough replicas gave
        self._won_after: dict[int, int] = {}  # seq: changes of roles before its vote was won
        self.checkpoints: dict[int, str] = {}
        """The journal segment in use when a checkpoint was made, by its sequence number."""
        self._active: set[int] = set()
        self.roles: dict[str, str] = {}
        """The table of roles that the voter has journaled last, by name (g0, g1, ...)."""
        self._role_changes: dict[int, RoleChange] = {}  # by version
        self._assigned = 0  # times that a replica got another role
        self._epochs: dict[int, int] = {}  # of the last HELLO to each guest

    def breach(self, promise: str, text: str) -> None:
        """Record that a promise is broken."""
        self.breaches.append(Breach(promise, text, self._loop.time()))

    @property
    def _journaled(self) -> bool:
        return self._durability != "none"

    # ------------------------------------------------------- what the voter orders

    def connected(self, guest: SimGuest, transport: Transport) -> None:
        """Watch both directions of a voter's connection to a guest."""
        _Link(self, guest, transport)

    def ordered(self, frame: Frame, guest: SimGuest) -> None:
        """Check an ORDER that the voter sends to a guest."""
        order = wire.decode_order(frame.payload)
        if self.roles.get(f"g{guest.index}") == Role.RETIRED:
            self.breach("Roles", f"guest {guest.index} is sent {frame.seq}, and is retired")
        if frame.flags & FLAG_READ_ONLY:
            return
        self._check_not_void(guest, frame.seq)
        write = self.writes.get(order.history)
        if write is None:
            write = Write(frame.seq, order, self.era, self._life, self._loop.time())
            self.writes[order.history] = write
            if self._journaled and not self._disk.holds(order.history, durable=False):
                self.breach("Durability", f"write {frame.seq} is sent, and not in the journal")
            before = self.writes.get(order.prev)
            if before is not None and before.time_ns > write.time_ns:
                self.breach("Order", f"agreed time goes backwards at write {frame.seq}")
            elif before is not None and before.life == write.life:
                passed, agreed = write.sent - before.sent, (write.time_ns - before.time_ns) / 1e9
                if agreed < passed * LEAST_RATE - CLOCK_LAG:
                    text = f"agreed time advances by {agreed:.3f} s in {passed:.3f} s"
                    self.breach("Order", f"{text}, up to write {frame.seq}")
        elif (write.seq, write.prev, write.time_ns, write.request, write.caller) != (
            frame.seq, order.prev, order.time_ns, order.request, order.caller
        ):  # fmt: skip
            self.breach("Order", f"write {frame.seq} is sent in two different forms")
        if frame.flags & FLAG_VOID and not write.void:
            self._void(write)

    def _check_not_void(self, guest: SimGuest, seq: int) -> None:
        """Check that a guest to which a write is sent has applied no voided write.

        A guest may apply a write after the voter has voided it, because the write was in its
        channel.  It must then be rebuilt before it is sent anything.
        """
        service = guest.service
        if service is None or not guest.honest or guest.epoch != self._epochs.get(guest.index):
            return
        for history in service.applied:
            if self.writes[history].void:
                self.breach(
                    "Order",
                    f"guest {guest.index} is sent write {seq}, though it has applied "
                    f"{self.writes[history].seq}, which is voided",
                )
                return

    def _void(self, write: Write) -> None:
        write.void = True
        if write.seq in self.released:
            self.breach("Durability", f"write {write.seq} was acknowledged, and is voided")
        if write.history in self._index:
            self._set_applied_order([w for w in self.applied_order if w is not write])

    def _set_applied_order(self, order: list[Write]) -> None:
        same = 0
        for old, new in zip(self.applied_order, order, strict=False):
            if old is not new:
                break
            same += 1
        self.applied_order = order
        self._durable = min(self._durable, same)
        self._index = {w.history: at for at, w in enumerate(order)}

    # ----------------------------------------------------------- what guests hold

    def restored(self, service: WitnessedService, state: bytes) -> None:
        """Record a restored state.  The next write identifies the history that it must have."""
        service.tip = None
        service.taken = state_digest(iter((state,)))

    def applies(self, service: WitnessedService, request: Request, context: Context) -> None:
        """Check that a guest applies an ordered write to the state before it."""
        guest = service.guest
        if context.read_only and "x-deadly" in request.headers:
            self._count_deadly(request.headers["x-op"])
        if context.read_only or not guest.honest:
            return
        history = context._seed
        write = self.writes.get(history)
        if write is None or write.seq != context.seq:
            self.breach("Order", f"guest {guest.index} applies {context.seq}, never ordered so")
            return
        before = self._before(write, service.tip)
        if service.tip is None:
            self.restores.append((before, service.taken, guest.index))
        elif before != service.tip:
            self.breach(
                "Order",
                f"guest {guest.index} applies write {write.seq} to a state that is not the one "
                f"before it",
            )
        service.tip = history
        service.applied.add(history)
        if history not in self._index and not write.void:
            self._extend(write)

    def _count_deadly(self, operation: str) -> None:
        """Check that a read that ends services is not executed again and again by a voter."""
        self._deadly[self._life, operation] += 1
        limit = DEADLY_LIMIT + 3 * self._assigned
        if self._deadly[self._life, operation] == limit + 1:
            text = f"read {operation} ends services, and is executed more than {limit} times"
            self.breach("Liveness", text)

    def _before(self, write: Write, tip: bytes | None) -> bytes:
        """Return the history of the state that a write is applied to, without voided writes."""
        prev = write.prev
        while prev != tip and prev in self.writes and self.writes[prev].void:
            prev = self.writes[prev].prev
        return prev

    def _extend(self, write: Write) -> None:
        """Append a write that a replica is the first to apply.

        It must follow the last write, unless power was lost since that one was ordered and no
        reply to it was released.
        """
        before = self._before(write, None)
        end = self.applied_order[-1].history if self.applied_order else EMPTY_HISTORY
        if before != end:
            at = self._index.get(before, -1 if before == EMPTY_HISTORY else None)
            if at is None:
                self.breach("Order", f"write {write.seq} follows an unknown history")
                return
            lost = self.applied_order[at + 1 :]
            if any(w.era == self.era for w in lost):
                self.breach(
                    "Order",
                    f"write {write.seq} is applied in place of {lost[0].seq}, which replicas hold",
                )
            self._lose(at + 1)
        if write.operation is not None:
            for other in self.applied_order:
                if other.operation == write.operation:
                    self.breach(
                        "Exactly once",
                        f"operation {write.operation} is executed at {other.seq} and {write.seq}",
                    )
        self._index[write.history] = len(self.applied_order)
        self.applied_order.append(write)

    # ------------------------------------------------------------------- votes

    def voted(self, guest: int, seq: int, reply: bytes) -> None:
        """Count a guest's reply that reaches the voter."""
        ballots = self._votes.setdefault(seq, {})
        ballots[guest] = tag(reply)
        self._count(seq)

    def _count(self, seq: int) -> None:
        tally: dict[bytes, int] = {}
        for guest, ballot in self._votes.get(seq, {}).items():
            if guest in self._active and self.roles.get(f"g{guest}", Role.VOTER) == Role.VOTER:
                tally[ballot] = tally.get(ballot, 0) + 1
                if tally[ballot] >= self._need:
                    self._won.setdefault(seq, set()).add(ballot)
                    self._won_after.setdefault(seq, max(self._role_changes, default=0))

    def voter_started(self) -> None:
        """Forget which replicas are active: a voter has started."""
        self._life += 1
        self._active.clear()

    def decided(self, effects: Iterable[Effect]) -> None:
        """Follow which replicas become active or inactive by the engine's effects of one event."""
        for effect in effects:
            if isinstance(effect, Checkpointed):
                self.checkpoints[effect.base.seq] = self._disk.last_segment()
            if isinstance(effect, Append) and isinstance(effect.entry, RoleChange):
                self.roles = effect.entry.roles
                self._role_changes[effect.entry.version] = effect.entry
            self._assigned += isinstance(effect, RoleAssigned)
            if isinstance(effect, Differed):
                self._check_difference(effect)
            if not isinstance(effect, Changed):
                continue
            if effect.after == State.ACTIVE:
                self._active.add(effect.replica)
                for seq in self._votes:
                    self._count(seq)
            else:
                self._active.discard(effect.replica)

    def _check_difference(self, effect: Differed) -> None:
        """Check that a difference shows the reply that won."""
        released = effect.released
        if effect.request and released is not None:
            self._count(effect.seq)
            if self._won.get(effect.seq) and tag(released) not in self._won[effect.seq]:
                self.breach("Agreement", f"a difference at {effect.seq} shows another reply")

    def roles_resumed(self, version: int, roles: dict[str, str]) -> None:
        """Take the table of a voter that has started; forget the changes that were lost."""
        self.roles = roles
        for lost in [each for each in self._role_changes if each > version]:
            del self._role_changes[lost]

    def roles_acknowledged(self, version: int) -> None:
        """Check that an acknowledged change of roles is on the disk."""
        if not self._are_roles_kept(version):
            self.breach("Durability", f"roles {version} were acknowledged, and are not on the disk")

    def _are_roles_kept(self, version: int) -> bool:
        """Return whether a change of roles is on the disk, as its entry or in a checkpoint."""
        change = self._role_changes.get(version)
        if change is None or not self._journaled:
            return True
        entry = msgspec.msgpack.encode(change)
        points = (name.rpartition("-") for name in self._disk.stored)
        return self._disk.holds(entry, durable=self._durability == "fsync") or any(
            what == "checkpoint" and n.isdigit() and int(n) >= change.seq for what, _, n in points
        )

    def greeted(self, guest: SimGuest, epoch: int) -> None:
        """Record the epoch of a HELLO that the voter sends to a guest."""
        self._epochs[guest.index] = epoch

    def void_votes(self, guest: int) -> None:
        """Discard the votes of a guest whose link is closed."""
        for ballots in self._votes.values():
            ballots.pop(guest, None)

    # ---------------------------------------------------------------- releases

    def accepted(self, transport: Transport, process: Process) -> None:
        """Watch the replies that a client gets."""
        decoder = Decoder()

        def watch(data: bytes) -> None:
            for frame in decoder.feed(data):
                if frame.kind == FrameKind.RESPONSE:
                    self._release(*decode_response(frame.payload))
                elif frame.kind == FrameKind.RESPONSES:
                    for _, kind, payload in decode_several(frame.payload):
                        if kind == FrameKind.RESPONSE:
                            self._release(*decode_response(payload))

        transport.watch = watch

    def _release(self, vote: Vote, reply: bytes) -> None:
        seq = vote.seq
        if tag(reply) not in self._won.get(seq, ()):
            self._count(seq)
            if tag(reply) not in self._won.get(seq, ()):
                self.breach(
                    "Agreement",
                    f"the reply to {seq} was released, and {self._need} active replicas have not "
                    f"given it",
                )
        before = self.released.setdefault(seq, (vote, reply))
        if before[1] != reply:
            self.breach("Exactly once", f"two different replies were released for {seq}")
        if not self._journaled:
            return
        if not self._are_roles_kept(self._won_after.get(seq, 0)):
            self.breach("Durability", f"the reply to {seq} was released before the roles")
        while (
            self._durable < len(self.applied_order) and self.applied_order[self._durable].seq <= seq
        ):
            write = self.applied_order[self._durable]
            if not self._is_kept(write):
                if self._may_be_lost(self._durable):
                    self._lose(self._durable)
                    break
                self.breach(
                    "Durability",
                    f"the reply to {seq} was released, and write {write.seq} is not on the disk",
                )
            self._durable += 1

    def power_lost(self) -> None:
        """Remove the writes from the order that the disk does not hold after a power loss."""
        self.era += 1
        for at in range(self._durable, len(self.applied_order)):
            if not self._is_kept(self.applied_order[at]):
                self._lose(at)
                return

    def _is_kept(self, write: Write) -> bool:
        """Return whether the disk holds a write, in the journal or in a checkpoint."""
        if self._disk.holds(write.history, durable=self._durability == "fsync"):
            return True
        names = (name.rpartition("-") for name in self._disk.stored)
        return any(
            what == "checkpoint" and n.isdigit() and int(n) >= write.seq for what, _, n in names
        )

    def _may_be_lost(self, at: int) -> bool:
        """Return whether all writes from here on were ordered before a power loss and not released.

        A torn one is then lost, although the disk holds parts of it.
        """
        return all(w.era < self.era and w.seq not in self.released for w in self.applied_order[at:])

    def _lose(self, at: int) -> None:
        """Remove the writes from this index in applied_order on."""
        for gone in self.applied_order[at:]:
            if gone.seq in self.released and self._durability == "fsync":
                self.breach("Durability", f"write {gone.seq} was acknowledged, and is lost")
        self._set_applied_order(self.applied_order[:at])


class _Link:
    """The observer of one connection of a voter to a guest."""

    def __init__(self, observer: PromiseObserver, guest: SimGuest, transport: Transport) -> None:
        self._observer = observer
        self._guest = guest
        self._epoch = -1
        self._orders = Decoder()
        self._replies = Decoder()
        observer.void_votes(guest.index)
        transport.watch, transport.see = self._sent, self._received
        transport.on_end = lambda: observer.void_votes(guest.index)

    def _sent(self, data: bytes) -> None:
        for frame in self._orders.feed(data):
            if frame.kind == FrameKind.ORDER:
                self._observer.ordered(frame, self._guest)
            elif frame.kind == FrameKind.ORDERS:
                for each in _single_orders(frame):
                    self._observer.ordered(each, self._guest)
            elif frame.kind == FrameKind.HELLO:
                self._epoch = frame.epoch
                self._observer.greeted(self._guest, frame.epoch)

    def _received(self, data: bytes) -> None:
        for frame in self._replies.feed(data):
            if frame.epoch != self._epoch:
                continue
            if frame.kind == FrameKind.REPLY:
                self._observer.voted(self._guest.index, frame.seq, frame.payload)
            elif frame.kind == FrameKind.REPLIES:
                for seq, reply in enumerate(decode_replies(frame.payload), frame.seq):
                    self._observer.voted(self._guest.index, seq, reply)


def _single_orders(frame: Frame) -> Iterator[Frame]:
    """Yield the requests of an ORDERS frame, each in an ORDER frame of its own."""
    time_ns, prev, items = decode_orders(frame.payload)
    for offset, history, flags, caller, request in items:
        payload = encode_order(time_ns, prev, history, caller, request)
        yield Frame(FrameKind.ORDER, flags, frame.epoch, frame.seq + offset, payload)
        if not flags & FLAG_READ_ONLY:
            prev = history
