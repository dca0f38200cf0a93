"""Patching: a patched copy of a guest is compared in quarantine, and then takes the guests' places.

Level-triggered, like repair: each pass compares the state with the one that the patch's record
wants, and does one step.  The record is written before the step.  So a supervisor that takes over,
at any moment, repeats or continues that step.

**Promotion.**  A VM with the new image starts in the free slot as an observer, because an observer
may differ.  It takes a voter's place when all voters are active after that: while versions are
mixed, a voter of the minority that answers otherwise is expelled and rebuilt, and the others must
have a majority without it.  The step is refused by the voter itself otherwise (`active`).

**The copy's end.**  A copy whose VM ends is not started again: the patch is rejected.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.machine.spec import GuestState
from deploy.node.interfaces import GuestPort
from deploy.node.records import Layout
from deploy.patching.differences import LATENCY_LIMIT, Difference
from deploy.patching.judgement import Finding, Quarantine, classify, judge
from deploy.patching.record import (
    PatchImage,
    PatchRecord,
    Phase,
    advance,
    read_patch,
    write_patch,
)
from deploy.patching.rules import RuleSet, read_rules
from deploy.patching.store import DifferenceStore
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl, VoterRefused, VoterUnreachable

__all__ = ["NoPatch", "PatchOrder", "Patcher", "Slots"]

PASS_INTERVAL = 0.5
"""Seconds between passes without an event: a quarantine also ends by time."""
WRITE_INTERVAL = 5.0
"""Seconds between records of how many replies were compared."""
LATE_SAMPLE = 20
"""Compared replies over which the copy's delay is averaged."""
WAIT_WARNING = 60.0
"""Seconds that a promotion waits for all voters before it says so in the log."""

_log = structlog.get_logger(__name__)


class NoPatch(DeployError):
    """There is no patch in the phase that an order is for."""

    error_code = "TV0770"


class Slots(Protocol):
    """What patching needs of the node's guests and their roles (``membership``)."""

    @property
    def roles(self) -> Mapping[str, str]:
        """The role of each guest, as the voter has it.  Empty while it does not answer."""

    @property
    def busy(self) -> str:
        """Which other operation is under way, or ""."""

    async def open(self, image: PatchImage, slot: str) -> None:
        """Start a VM with this image in a slot, as an observer; return once it has caught up.

        Idempotent.  Raises DeployError; the slot is then free again.
        """

    def free(self) -> str:
        """Return the free slot.  Raises DeployError if there is none."""

    async def replace(self, old: str, new: str, *, active: int) -> None:
        """Let ``new`` vote in the place of ``old``, in one step, and end the VM of ``old``.

        Idempotent.  Raises DeployError; nothing has changed then.  ``active``: so many voters must
        be active afterwards.
        """

    async def close(self, slot: str) -> None:
        """Retire a slot that does not vote, and end its VM.  Idempotent."""


class PatchOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of the order that starts a patch; see ``PatchRecord``.

    ``name`` and ``state_format``: the service's, where the command knows them.
    """

    title: str
    image: PatchImage
    name: str | None = None
    state_format: int | None = None
    after: int | None = None
    seconds: float | None = None
    auto: bool = False
    rules: str = ""
    rules_name: str = ""


class Patcher:
    """Runs the patches of one node, one at a time.

    ``running`` returns the image that the node's guests run when no patch is under way.  ``adopt``
    makes the new image that of the node, before the first voter of a new majority runs it.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        layout: Layout,
        slots: Slots,
        guests: Mapping[str, GuestPort],
        observer: NodeObserver,
        control: VoterControl,
        storage: Storage,
        history: EventHistory,
        *,
        of: int,
        running: Callable[[], PatchImage],
        adopt: Callable[[PatchImage], None],
    ) -> None:
        self._layout = layout
        self._slots = slots
        self._guests = guests
        self._observer = observer
        self._control = control
        self._storage = storage
        self._history = history
        self._of = of
        self._running = running
        self._adopt = adopt
        self._wake = asyncio.Event()
        self._unreadable: DeployError | None = None
        self.record: PatchRecord | None = None
        try:
            self.record = read_patch(layout.patch)
        except DeployError as error:
            self._unreadable = error
            _log.error("no patch can be made", error=str(error), error_code="TV0779")
        self._store = DifferenceStore(layout.differences)
        self._rules = _parse(self.record)
        self._findings: list[Finding] = classify(self._store.differences, self._rules)
        self._compared: tuple[int, int, float] | None = None  # voter, compared, seconds behind
        self._ended: tuple[int, int] | None = None  # voter, incarnations of the copy that ended
        self._written = 0.0
        self._waiting_since: float | None = None
        self.waits_for = ""
        """What a promotion waits for now, or ""."""

    # ---- orders

    async def start(self, order: PatchOrder) -> PatchRecord:
        """Begin a patch: its copy is started next.  Raises DeployError; nothing has begun then."""
        self._require_readable()
        if self.record is not None and not self.record.final:
            raise DeployError(
                f"patch {self.record.number} ({self.record.title}) is already under way: it is "
                f"{self.record.phase}",
                remedy="wait for its end, or call it off with `trivisor patch abort`",
                error_code="TV0771",
            )
        if self._slots.busy:
            raise DeployError(
                f"the node's free slot is in use: {self._slots.busy}",
                remedy="wait for its end; `trivisor status` shows it",
                error_code="TV0771",
            )
        old = self._running()
        if order.image.image == old.image:
            raise DeployError(
                f"the image {old.image[:16]} is the one that the guests run: nothing would change",
                remedy="give a service, packages or an image that differ",
                error_code="TV0769",
            )
        self._check_format(order)
        rules = read_rules(order.rules, order.rules_name) if order.rules else RuleSet()
        slot = self._slots.free()
        number = self.record.number + 1 if self.record is not None else 1
        record = PatchRecord(
            number=number, title=order.title, old=old, new=order.image, after=order.after,
            seconds=order.seconds, auto=order.auto, rules=order.rules,
            rules_name=order.rules_name, began=time.time(), slot=slot,
        )  # fmt: skip
        self._storage.write(self._layout.differences.name, self._store.clear)
        self._save(record.note(f"the patched copy starts in {slot}"))
        self._rules, self._findings = rules, []
        self._compared = self._ended = None
        self._wake.set()
        return record

    def _check_format(self, order: PatchOrder) -> None:
        """Raise DeployError if the patched service could not continue the node's states."""
        wanted = (order.name, order.state_format)
        held = self._held()
        if order.name is None or held is None or wanted == held:
            return
        raise DeployError(
            f"the patched service is {order.name} with state format {order.state_format}, and the "
            f"node holds states of {held[0]} with {held[1]}",
            remedy="keep name and state_format: a running node cannot change the format of its "
            "state",
            error_code="TV0772",
        )

    def _held(self) -> tuple[str, int] | None:
        """Return service and state format of the node's journal, None if they are not known."""

        class Identity(msgspec.Struct):
            service: str | None = None
            state_format: int | None = None

        try:
            data = (self._layout.journal / "identity.json").read_bytes()
            identity = msgspec.json.decode(data, type=Identity)
        except (OSError, msgspec.MsgspecError):
            return None
        if identity.service is None or identity.state_format is None:
            return None
        return identity.service, identity.state_format

    def promote(self, *, force: bool = False) -> PatchRecord:
        """End the quarantine: the voters are replaced next.  Raises NoPatch, DeployError."""
        record = self._require(Phase.QUARANTINE)
        verdict = self.verdict()
        if not verdict.passed and not force:
            raise DeployError(
                f"patch {record.number} has not passed its quarantine: {verdict.waits_for}",
                remedy="`trivisor patch diff` shows the differences; --force promotes it all the "
                "same",
                error_code="TV0774",
            )
        how = "by hand" + (f", although {verdict.waits_for}" if not verdict.passed else "")
        return self._promote(record, how)

    def reject(self, reason: str) -> PatchRecord:
        """End the quarantine: the copy is ended next.  Raises NoPatch."""
        return self._reject(self._require(Phase.QUARANTINE), reason or "by hand")

    def abort(self, reason: str) -> PatchRecord:
        """Call a patch off: the node returns to the old image.  Raises NoPatch."""
        record = self._require(Phase.PREPARING, Phase.QUARANTINE, Phase.PROMOTING)
        why = reason or "by hand"
        if record.phase is Phase.PROMOTING:
            count = len(record.promoted)
            text = f"aborted: {count} patched voter{'s' * (count != 1)} will be replaced"
            changed = advance(record, Phase.REVERTING, text, reason=why)
        else:
            changed = advance(record, Phase.ABORTED, "aborted", reason=why)
        self._save(changed)
        return changed

    def use_rules(self, text: str, name: str) -> PatchRecord:
        """Replace the rules of expected differences.  Raises SpecError, NoPatch."""
        record = self._require(Phase.PREPARING, Phase.QUARANTINE)
        rules = read_rules(text, name)
        self._save(
            msgspec.structs.replace(record, rules=text, rules_name=name).note(f"rules of {name}")
        )
        self._rules = rules
        self._findings = classify(self._store.differences, rules)
        return record

    def verdict(self) -> Quarantine:
        """Return the state of the quarantine.  Raises NoPatch if there never was a patch."""
        if self.record is None:
            raise NoPatch("this node has no patch", remedy="start one: `trivisor patch start`")
        now = self.record.ended or time.time()
        return judge(self.record, self._findings, now=now, lost=self._store.lost)

    @property
    def findings(self) -> list[Finding]:
        """The differences of the last patch, the oldest first."""
        return list(self._findings)

    def keeps(self, slot: str) -> bool:
        """Return whether the VM in a slot that does not vote belongs to the patch under way."""
        return self.record is not None and not self.record.final and self.record.slot == slot

    def _require_readable(self) -> None:
        if self._unreadable is not None:
            raise self._unreadable

    def _require(self, *phases: Phase) -> PatchRecord:
        self._require_readable()
        record = self.record
        if record is None or record.phase not in phases:
            state = "has no patch" if record is None else f"has a patch that is {record.phase}"
            wanted = " or ".join(phases)
            raise NoPatch(
                f"this node {state}, and this is for one that is {wanted}",
                remedy="`trivisor patch status` shows the patch, `trivisor patch start` begins one",
            )
        return record

    # ---- the record

    def _save(self, record: PatchRecord) -> None:
        """Write the record, then act by it.  Raises DeployError if it cannot be written."""
        write_patch(self._layout.patch, record)
        before, self.record = self.record, record
        self._written = time.monotonic()
        if before is None or (before.number, before.phase) != (record.number, record.phase):
            self._history.add(
                "patch", record.slot, number=record.number, phase=str(record.phase),
                title=record.title, reason=record.reason or None,
            )  # fmt: skip
            _log.info("patch", number=record.number, phase=str(record.phase), reason=record.reason)
            if record.phase is Phase.REJECTED:
                _log.warning(
                    "the patch was rejected", number=record.number, reason=record.reason,
                    error_code="TV0775",
                )  # fmt: skip
        self._wake.set()

    def _promote(self, record: PatchRecord, how: str) -> PatchRecord:
        changed = advance(record, Phase.PROMOTING, f"promoted {how}")
        self._save(changed)
        return changed

    def _reject(self, record: PatchRecord, reason: str) -> PatchRecord:
        changed = advance(record, Phase.REJECTED, "rejected", reason=reason)
        self._save(changed)
        return changed

    # ---- passes

    def taken_over(self, *, running: bool) -> None:
        """Begin: the node runs on (``running``), or has just been started anew.

        The guests of a new node all run the node's image, so a patch under way is at its end.
        """
        record = self.record
        if record is None or record.final or running:
            return
        adopted = self._running().image == record.new.image
        reason = "the node was restarted meanwhile: all guests run the "
        if record.phase is Phase.PROMOTING and adopted:
            self._save(advance(record, Phase.DONE, "done: " + reason + "patched image"))
            return
        if record.phase is Phase.PROMOTING:
            record = advance(record, Phase.REVERTING, "reverting")
        reason += "patched image" if adopted else "unpatched image"
        self._save(advance(record, Phase.ABORTED, "aborted", reason=reason))

    async def run(self) -> None:
        """Carry patches out until cancelled."""
        following = asyncio.create_task(self._follow(), name="differences")
        try:
            while True:
                self._wake.clear()
                try:
                    await self._pass()
                except VoterUnreachable as error:
                    _log.debug("the patch waits for the voter", error=str(error))
                except DeployError as error:
                    self.waits_for = str(error)
                    _log.warning("the patch waits", reason=str(error), error_code="TV0776")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PASS_INTERVAL):
                        await self._wake.wait()
                if following.done():
                    following.result()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _pass(self) -> None:
        """Do the next step of the patch, if there is one."""
        record = self.record
        if record is None:
            return
        if record.phase is Phase.PREPARING:
            await self._prepare(record)
        elif record.phase is Phase.QUARANTINE:
            await self._watch(record)
        elif record.phase in (Phase.PROMOTING, Phase.REVERTING):
            await self._move(record)
        elif record.slot is not None:
            await self._clear_slot(record, record.slot)

    async def _prepare(self, record: PatchRecord) -> None:
        slot = record.slot
        assert slot is not None
        try:
            await self._unless_changed(record, self._slots.open(record.new, slot))
        except VoterUnreachable:
            raise
        except DeployError as error:
            if self.record is record:
                self._reject(record, f"the patched copy does not start: {error}")
            return
        if self.record is record:
            self._compared = self._ended = None
            self._save(advance(record, Phase.QUARANTINE, f"{slot} answers every request"))

    async def _unless_changed(self, record: PatchRecord, work: Any) -> None:
        """Do a step that takes long, but abandon it when an order changes the record."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                wake = asyncio.create_task(self._wake.wait())
                await asyncio.wait([task, wake], return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                self._wake.clear()
                if self.record is not record and not task.done():
                    break
        finally:
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # ---- quarantine

    async def _watch(self, record: PatchRecord) -> None:
        """Count what was compared; end the quarantine if it is over."""
        slot = record.slot
        assert slot is not None
        guest = self._guests[slot]
        if guest.state in (GuestState.DEAD, GuestState.ABSENT):
            self._note("crash", record, slot, reason=f"the copy's VM is {guest.state}")
            self._reject(record, f"the copy's virtual machine ended ({guest.state})")
            return
        status = await self._observer.poll()
        replica = self._observer.replicas.get(slot, {})
        record = self._count(record, slot, int(status.get("pid") or 0), replica)
        verdict = self.verdict()
        if record.auto and verdict.unexpected:
            what = ", ".join(f"{count} x {label}" for label, count in verdict.unexpected.items())
            self._reject(record, f"unexpected differences: {what}")
        elif record.auto and verdict.passed:
            self._promote(record, "automatically")

    def _count(
        self, record: PatchRecord, slot: str, voter: int, replica: Mapping[str, Any]
    ) -> PatchRecord:
        """Add what the copy was compared in since the last pass; note its crashes and delays."""
        compared, behind = int(replica.get("compared", 0)), float(replica.get("behind_seconds", 0))
        ended = int(replica.get("incarnations_ended", 0))
        if self._ended is not None and self._ended[0] == voter and ended > self._ended[1]:
            reason = str(replica.get("reason", ""))
            self._note("crash", record, slot, reason=f"the copy's service ended: {reason}")
        self._ended = (voter, ended)
        before = self._compared
        if before is None or before[0] != voter or compared < before[1]:
            self._compared = (voter, compared, behind)
            return record
        more = compared - before[1]
        if more == 0:
            return record
        delay = (behind - before[2]) / more
        if more >= LATE_SAMPLE and delay > LATENCY_LIMIT:
            self._note("late", record, slot, behind=delay, reason=f"over {more} replies")
        self._compared = (voter, compared, behind)
        record = msgspec.structs.replace(record, compared=record.compared + more)
        self.record = record
        if time.monotonic() - self._written > WRITE_INTERVAL:
            self._save(record)
        return record

    def _note(self, kind: Any, record: PatchRecord, slot: str, **facts: Any) -> None:
        """Keep a difference that the supervisor notices itself."""
        seq = int((self._observer.voter_status or {}).get("seq", 0))
        found = Difference(kind=kind, seq=seq, replica=slot, time=time.time(), **facts)
        self._storage.write(self._layout.differences.name, lambda: self._store.add(found))
        self._findings += classify([found], self._rules)

    async def _follow(self) -> None:
        """Receive the differences of the copy from the voter, until cancelled."""
        while True:
            record = self.record
            if record is None or record.phase not in (Phase.PREPARING, Phase.QUARANTINE):
                await asyncio.sleep(PASS_INTERVAL)  # a patch begins seldom, and nothing is lost
                continue
            with contextlib.suppress(VoterUnreachable):
                status = await self._control.status()
                voter = int(status.get("pid") or 0)
                since = self._store.next_after(voter)
                async for document in self._control.differences(since):
                    self._receive(voter, document)
                    record = self.record
                    if record is None or record.phase not in (Phase.PREPARING, Phase.QUARANTINE):
                        break
            await asyncio.sleep(0.1)  # the voter restarts, and no event reports its return

    def _receive(self, voter: int, document: Mapping[str, Any]) -> None:
        record = self.record
        if record is None or record.slot is None:
            return
        slot, kept = record.slot, len(self._store.differences)
        self._storage.write(
            self._layout.differences.name,
            lambda: self._store.receive(voter, document, slot, record.began),
        )
        self._findings += classify(self._store.differences[kept:], self._rules)
        self._wake.set()

    # ---- promotion, and the way back

    async def _move(self, record: PatchRecord) -> None:
        """Replace the next voter that does not run the wanted image, or end the patch."""
        roles = await self._read_roles()
        forward = record.phase is Phase.PROMOTING
        voters = {name for name, role in roles.items() if role == "voter"}
        promoted = set(record.promoted) & voters
        slot = record.slot
        if slot in voters:  # the step was made, and not recorded
            promoted = promoted | {slot} if forward else promoted
            slot = None
        if slot != record.slot or promoted != set(record.promoted):
            record = msgspec.structs.replace(
                record, slot=slot, promoted=tuple(sorted(promoted))
            ).note(f"{len(promoted)} of {self._of} voters run the patched image")
            self._save(record)
        wrong = voters - promoted if forward else promoted
        if not wrong:
            await self._finish(record)
            return
        if slot is None:
            record = msgspec.structs.replace(record, slot=self._slots.free())
            self._save(record)
            slot = record.slot
        assert slot is not None
        if forward and len(promoted) + 1 >= self._of - len(voters - promoted) + 1:
            self._adopt_if_majority(record, len(promoted) + 1)
        await self._unless_changed(record, self._slots.open(record.target, slot))
        if self.record is record:
            await self._replace(record, self._next_voter(wrong), slot)

    def _adopt_if_majority(self, record: PatchRecord, patched: int) -> None:
        """Make the new image the node's before a majority of voters runs it."""
        if 2 * patched > self._of and self._running().image != record.new.image:
            self._adopt(record.new)

    async def _read_roles(self) -> Mapping[str, str]:
        await self._observer.poll()
        roles = self._slots.roles
        if not roles:
            raise VoterUnreachable("the voter's table of roles is not known")
        return roles

    def _next_voter(self, wrong: set[str]) -> str:
        """Return which voter is replaced next: one that does not vote now, if there is one."""
        return min(wrong, key=lambda name: (self._observer.replica_state(name) == "active", name))

    async def _replace(self, record: PatchRecord, old: str, new: str) -> None:
        try:
            await self._slots.replace(old, new, active=self._of)
        except VoterRefused as error:
            self._wait(record, str(error.detail))
            return
        self._waiting_since, self.waits_for = None, ""
        self._wake.set()

    def _wait(self, record: PatchRecord, why: str) -> None:
        """Note that a step must wait; say so in the log once it takes long."""
        now = time.monotonic()
        self.waits_for = why
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > WAIT_WARNING:
            self._waiting_since = now
            _log.warning(
                "the patch waits: versions are mixed", number=record.number, reason=why,
                promoted=list(record.promoted), error_code="TV0776",
            )  # fmt: skip

    async def _finish(self, record: PatchRecord) -> None:
        if record.phase is Phase.PROMOTING:
            self._adopt_if_majority(record, self._of)
            self._save(advance(record, Phase.DONE, "all voters run the patched image"))
        else:
            if self._running().image != record.old.image:
                self._adopt(record.old)
            self._save(advance(record, Phase.ABORTED, "all voters run the unpatched image"))

    async def _clear_slot(self, record: PatchRecord, slot: str) -> None:
        """End the copy of a patch that has ended."""
        roles = await self._read_roles()
        if roles.get(slot) != "voter":
            await self._slots.close(slot)
        self._save(msgspec.structs.replace(record, slot=None))

    def describe(self) -> dict[str, Any] | None:
        """Return the status of the last patch as plain data, or None."""
        record = self.record
        if record is None:
            return None
        verdict = self.verdict()
        return {
            "number": record.number,
            "title": record.title,
            "phase": str(record.phase),
            "slot": record.slot,
            "promoted": list(record.promoted),
            "of": self._of,
            "image": {"old": record.old.image, "new": record.new.image},
            "service": {"old": record.old.service, "new": record.new.service},
            "began": record.began,
            "ended": record.ended,
            "reason": record.reason or None,
            "goal": {"after": record.after, "seconds": record.seconds, "auto": record.auto},
            "rules": record.rules_name or None,
            "quarantine": msgspec.to_builtins(verdict),
            "waits_for": self.waits_for or None,
            "steps": msgspec.to_builtins(record.steps),
        }


def _parse(record: PatchRecord | None) -> RuleSet:
    """Return the rules of a record: they were checked before it was written."""
    if record is None or not record.rules:
        return RuleSet()
    return read_rules(record.rules, record.rules_name)
