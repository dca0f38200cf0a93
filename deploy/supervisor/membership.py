"""Slots and roles: how a new VM takes the place of a running one.

A node has one slot more than voters.  An operation starts a VM in the free slot, lets its replica
join without a vote, waits until it has caught up, and replaces an old voter in one ordered step of
the voter (``voter.core.roles``).  Then it ends the old VM, whose slot is now the free one.
Rejuvenation and patching are such operations; only one is under way at a time.

**Crashes.**  Each step can be repeated, and the operation is recorded before the first one.  If the
supervisor, the voter or the host dies, `reconcile` compares the roles, which the voter's journal
holds, with the VMs that run.  The node is then as before the operation, or as after it:

=====================  ==========================================================
role of the slot       what the next supervisor does
=====================  ==========================================================
retired                ends the VM in it, if one runs
learner or observer    has the voter retire it and ends its VM, unless the record
                       says that the operation survives
voter                  leaves it to the ordinary repair, dead or not
=====================  ==========================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.machine.contention import UncontendedClock
from deploy.machine.spec import GuestArrival, GuestState, Progress, StartMethod
from deploy.node.interfaces import GuestPort, NodePort
from deploy.node.records import Layout
from deploy.supervisor.membership_record import (
    Operation,
    OperationKind,
    Step,
    read_membership,
)
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.repairer import JOIN_DEADLINE, JOIN_LIMIT, PASS_INTERVAL, VOTER_TIMEOUT
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl, VoterRefused, VoterUnreachable
from guests.image import Image

__all__ = ["Membership", "MembershipBusy", "SlotOperation", "finish"]

RETRY_INTERVAL = 2.0
"""Seconds after a failed attempt to bring roles and VMs in line: no event says that it can work."""
JOIN_POLL = 0.1
"""Seconds between polls of the voter while a replica catches up."""

_log = structlog.get_logger(__name__)


class MembershipBusy(DeployError):
    """Another operation is under way, or there is no free slot."""

    error_code = "TV0740"


class RolesRefused(DeployError):
    """The voter refused a change of roles."""

    error_code = "TV0741"


class NeverCaughtUp(DeployError):
    """A started guest did not get as far as it could vote."""

    error_code = "TV0742"


class Membership:
    """The slots of one node, their roles, and the operation under way.

    ``voters`` is how many replicas vote.  ``slowness`` is the factor of time limits on a slow host.
    """

    def __init__(
        self,
        layout: Layout,
        node: NodePort,
        control: VoterControl,
        observer: NodeObserver,
        *,
        voters: int,
        slowness: float,
        storage: Storage,
        history: EventHistory,
    ) -> None:
        self._path = layout.membership
        self._node = node
        self._control = control
        self._observer = observer
        self._voters = voters
        self._join_deadline = JOIN_DEADLINE * slowness
        self._storage = storage
        self._history = history
        self._record = read_membership(self._path)
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[Any] | None = None  # that of the operation under way
        self._closing = False

    # ---- what is known

    @property
    def guests(self) -> Mapping[str, GuestPort]:
        """All slots."""
        return self._node.guests

    @property
    def version(self) -> int:
        """The version of the table of roles."""
        known = self._observer.roles
        return known.version if known is not None else self._record.version

    @property
    def table(self) -> dict[str, str]:
        """The role of each slot: as the voter reported last, else as recorded."""
        known = self._observer.roles
        table = known.table if known is not None else self._record.roles
        if table.keys() != self.guests.keys():  # another node's, or none yet
            names = list(self.guests)
            return {
                name: "voter" if number < self._voters else "retired"
                for number, name in enumerate(names)
            }
        return dict(table)

    @property
    def voting_slots(self) -> list[str]:
        """The slots whose role is voter, in order."""
        return [name for name, role in self.table.items() if role == "voter"]

    @property
    def used(self) -> list[str]:
        """The slots that are not free: a VM runs in them, or should."""
        return [
            name
            for name, role in self.table.items()
            if role != "retired" or self.guests[name].state is not GuestState.ABSENT
        ]

    @property
    def retired(self) -> list[str]:
        """The slots in which no VM should run."""
        return [name for name, role in self.table.items() if role == "retired"]

    @property
    def lives(self) -> dict[str, float]:
        """When the VM in each slot was started, where that is known; seconds since 1970."""
        return self._record.lives

    @property
    def pending(self) -> Operation | None:
        """The operation that is recorded as being under way."""
        return self._record.operation

    def role(self, name: str) -> str:
        """Return a slot's role."""
        return self.table.get(name, "retired")

    def describe(self) -> dict[str, Any]:
        """Return what the status shows."""
        pending = self.pending
        return {
            "roles": {"version": self.version, "table": self.table},
            "spare": [name for name in self.guests if name not in self.used],
            "operation": None if pending is None else msgspec.to_builtins(pending),
        }

    # ---- operations

    @contextlib.asynccontextmanager
    async def operation(
        self, kind: OperationKind, guest: str, *, role: Literal["learner", "observer"] = "learner"
    ) -> AsyncIterator[SlotOperation]:
        """Begin an operation on the free slot; at the end of the block it is over.

        If the block raises, the operation is rolled back, unless its replacement was made.  Raises
        MembershipBusy, DeployError if the guest is no voter.
        """
        self._require_idle()
        async with self._lock:
            self._require_idle()
            if self.role(guest) != "voter":
                raise DeployError(
                    f"{guest} does not vote: its role is {self.role(guest)}",
                    remedy=f"name one of {', '.join(self.voting_slots)}",
                    error_code="TV0743",
                )
            record = Operation(
                kind=kind, guest=guest, slot=self.free_slot(), role=role, began=time.time()
            )
            self._write(operation=record)
            async with self._run(record) as operation:
                yield operation

    @contextlib.asynccontextmanager
    async def resumed(self) -> AsyncIterator[SlotOperation]:
        """Continue the operation that survived the former supervisor, as `operation` does.

        Raises MembershipBusy if there is none.
        """
        async with self._lock:
            pending = self.pending
            if pending is None or not pending.survives or self._task is not None:
                raise MembershipBusy("there is no operation that could be continued")
            async with self._run(pending) as operation:
                yield operation

    @contextlib.asynccontextmanager
    async def _run(self, record: Operation) -> AsyncIterator[SlotOperation]:
        operation = SlotOperation(self, record)
        self._task = asyncio.current_task()
        try:
            yield operation
        except BaseException:
            if not self._closing:
                await finish(self.roll_back(record.slot))
            raise
        finally:
            self._task = None
            if not self._closing:
                self._write(operation=None)

    def _require_idle(self) -> None:
        pending = self.pending
        if pending is not None and (self._task is not None or pending.survives):
            raise MembershipBusy(
                f"a {pending.kind} is under way: {pending.slot} is to take the place of "
                f"{pending.guest} ({pending.step})",
                remedy="wait until it is over (`trivisor status`)",
            )

    def free_slot(self) -> str:
        """Return an empty slot.  Raises MembershipBusy."""
        for name in self.retired:
            if self.guests[name].state in (GuestState.ABSENT, GuestState.DEAD):
                return name
        raise MembershipBusy(
            "this node has no free slot for another guest",
            remedy="use --in-place; a node that was started by an older version gets a free slot "
            "at its next start",
        )

    async def change(
        self,
        roles: Mapping[str, str],
        reason: str,
        *,
        active: int = 0,
        voters: int = 0,
        patience: float = VOTER_TIMEOUT,
    ) -> int:
        """Have the voter change these roles in one step; return the table's version.

        Does nothing if they are so already, for example after an answer was lost.  Returns when the
        change is durable.  ``active`` and ``voters`` as for `VoterControl.change_roles`.  Raises
        RolesRefused or VoterUnreachable after ``patience`` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                await self._observer.poll()
                known = self._observer.roles
                if known is None:
                    raise RolesRefused(
                        "the voter has no roles: it is of an older version",
                        remedy="restart the node",
                    )
                if all(known.table.get(name) == role for name, role in roles.items()):
                    break
                await self._control.change_roles(
                    known.version, roles, reason, active=active, voters=voters
                )
                await self._observer.poll()
            except VoterRefused as error:
                # After a restart of the voter its replicas need a moment until they are active.
                if error.status not in (409, 503) or time.monotonic() >= deadline:
                    raise RolesRefused(
                        f"the voter rejected the change of roles: {error.detail}"
                    ) from error
            except VoterUnreachable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.05)  # no event reports that a voter answers, or has room, again
        self._save_roles()
        self._history.add(
            "roles changed", version=self.version, roles=dict(roles), reason=reason or None
        )
        return self.version

    async def wait_caught_up(self, name: str) -> None:
        """Wait until a joining replica may become a voter.  Raises NeverCaughtUp."""
        begun, idle = time.monotonic(), 0.0
        clock = UncontendedClock(self.guests[name].pid or 0)
        while True:
            with contextlib.suppress(VoterUnreachable):
                await self._observer.poll()
            state, facts = self._observer.replica_state(name), self._observer.replicas.get(name, {})
            if state is not None and facts.get("caught_up"):
                return
            vm, waited = self.guests[name].state, time.monotonic() - begun
            joining = state in ("restoring", "learner")
            idle = 0.0 if joining else idle + clock.step()
            why = ""
            if vm is not GuestState.READY:
                why = f"its guest is {vm}"
            elif state == "expelled":
                why = f"the voter expelled it: {facts.get('reason')}"
            elif idle > self._join_deadline or waited > JOIN_LIMIT:
                why = f"not within {waited:.0f} s: it is {state}: {facts.get('reason')}"
            if why:
                raise NeverCaughtUp(
                    f"{name} was started and cannot vote: {why}",
                    remedy=f"`trivisor logs {name}` shows its console; the node is as before",
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOIN_POLL), self._observer.news:
                    await self._observer.news.wait()

    async def roll_back(self, slot: str) -> None:
        """Return a slot to the state before an operation, unless its VM votes already."""
        try:
            await self.change_back(slot)
        except (DeployError, OSError) as error:
            # `reconcile` tries again.
            _log.warning(
                "an operation is not rolled back yet",
                slot=slot,
                error=str(error),
                error_code="TV0744",
            )

    async def change_back(self, slot: str) -> None:
        """Retire a learner or observer and end its VM; do nothing to a voter."""
        if self.role(slot) in ("learner", "observer"):
            await self.change({slot: "retired"}, "its operation was abandoned")
        if self.role(slot) == "retired" and self.guests[slot].state is not GuestState.ABSENT:
            await self.end(slot)

    async def end(self, name: str) -> None:
        """End the VM of a retired slot.  Raises DeployError."""
        await self._node.end(name)
        self._write(lives={key: at for key, at in self.lives.items() if key != name})

    async def start(self, name: str, **options: Any) -> GuestArrival:
        """Start a VM in an empty slot: see ``NodePort.start``."""
        arrival = await self._node.start(name, **options)
        self._write(lives=self.lives | {name: time.time()})
        return arrival

    # ---- bringing roles and VMs in line

    async def run(self) -> None:
        """Keep roles and VMs in line until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PASS_INTERVAL), self._observer.news:
                    await self._observer.news.wait()
            try:
                await self.reconcile()
            except (DeployError, OSError) as error:
                _log.warning("roles and guests differ", error=str(error), error_code="TV0744")
                await asyncio.sleep(RETRY_INTERVAL)

    async def reconcile(self) -> None:
        """Undo or conclude what a former operation has left.  Raises DeployError."""
        if self._closing or self._lock.locked() or self._observer.voter_status is None:
            return
        async with self._lock:
            pending = self.pending
            kept = pending.slot if pending is not None and pending.survives else None
            for name, role in self.table.items():
                if name != kept and role in ("learner", "observer", "retired"):
                    await self.change_back(name)
            if pending is not None and not pending.survives:
                done = self.role(pending.slot) == "voter" and self.role(pending.guest) == "retired"
                outcome = "complete" if done else "rolled back"
                facts = {"kind": pending.kind, "slot": pending.slot, "step": pending.step}
                self._history.add("operation found", pending.guest, outcome=outcome, **facts)
                _log.info("operation found", guest=pending.guest, outcome=outcome, **facts)
                self._write(operation=None)
            self._save_roles()

    async def settle(self) -> None:
        """At a node's start: once the voter answers, start the voters whose slots are empty.

        The record from which the slots were filled may be older than the voter's journal.
        """
        async with self._observer.news:
            await self._observer.news.wait_for(lambda: self._observer.roles is not None)
        await self.reconcile()
        for name in self.voting_slots:
            if self.guests[name].state is GuestState.ABSENT:
                await self.start(name)
        self._write(lives=dict.fromkeys(self.voting_slots, time.time()))

    def close(self) -> None:
        """Stop the operation under way, without a roll-back: the node ends, or is left as it is."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()

    def _save_roles(self) -> None:
        if (self._record.version, self._record.roles) != (self.version, self.table):
            self._write(version=self.version, roles=self.table)

    def _write(self, **changes: Any) -> None:
        self._record = record = msgspec.structs.replace(self._record, **changes)
        self._storage.write(self._path.name, lambda: record.write(self._path))

    def record_step(self, record: Operation, step: Step, *, survives: bool) -> Operation:
        """Record how far an operation is; return its new record."""
        record = msgspec.structs.replace(record, step=step, survives=survives)
        self._write(operation=record)
        return record


class SlotOperation:
    """One operation: its steps, in this order.  Each may be repeated."""

    def __init__(self, membership: Membership, record: Operation) -> None:
        self._membership = membership
        self.record = record

    @property
    def slot(self) -> str:
        """Where the new VM runs."""
        return self.record.slot

    @property
    def guest(self) -> str:
        """The voter whose place it takes."""
        return self.record.guest

    async def start(
        self,
        *,
        by: StartMethod,
        share: int,
        image: Image | None = None,
        progress: Progress = lambda _: None,
    ) -> GuestArrival:
        """Start a VM in the slot; return once it is ready.  Raises DeployError."""
        self._step("starting")
        return await self._membership.start(
            self.slot, by=by, share=share, image=image, progress=progress
        )

    async def join(self) -> None:
        """Let its replica join without a vote until it has caught up.  Raises DeployError."""
        self._step("joining")
        await self._membership.change({self.slot: self.record.role}, self._reason)
        await self._membership.wait_caught_up(self.slot)

    def hold(self) -> None:
        """Leave it as it is, also across a restart of the supervisor, until somebody decides."""
        self._step("holding", survives=True)

    async def replace(self, retired: Callable[[], Awaitable[object]] | None = None) -> None:
        """Make it a voter in place of the old one, call ``retired``, end the old VM.

        Raises DeployError.  From the voter's answer on, the next supervisor completes this.
        """
        self._step("replacing")
        await self._membership.change({self.slot: "voter", self.guest: "retired"}, self._reason)
        self._step("ending")
        if retired is not None:
            await retired()
        await self._membership.end(self.guest)

    @property
    def _reason(self) -> str:
        return f"{self.record.kind} of {self.guest}"

    def _step(self, step: Step, *, survives: bool = False) -> None:
        self.record = self._membership.record_step(self.record, step, survives=survives)


async def finish(work: Any) -> None:
    """Await work to its end even if the caller is cancelled again."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()
