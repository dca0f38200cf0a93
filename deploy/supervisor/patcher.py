"""Patching: a patched copy of a guest is compared in quarantine, and then takes the guests' places.

Level-triggered, like repair: each pass compares the state with the one that the patch's record
wants, and does one step.  The record is written before the step.  So a supervisor that takes over,
at any moment, repeats or continues that step.

**The copy's end.**  A copy whose VM ends is not started again: the patch is rejected.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.machine.spec import GuestState
from deploy.node.interfaces import GuestPort
from deploy.node.records import Layout
from deploy.patching.judgement import Finding, Quarantine
from deploy.patching.record import (
    PatchImage,
    PatchRecord,
    Phase,
    advance,
    read_patch,
    write_patch,
)
from deploy.patching.rules import RuleSet, read_rules
from deploy.supervisor.checkpoints import take_checkpoint
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.patch_mover import Mover, Overtaken, read_roles
from deploy.supervisor.patch_orders import NoPatch, PatchOrder, Slots, check_format
from deploy.supervisor.quarantine import QuarantineWatch, rules_of
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable

__all__ = ["Patcher"]

PASS_INTERVAL = 0.5
"""Seconds between passes without an event: a quarantine also ends by time."""
WRITE_INTERVAL = 5.0
"""Seconds between records of how many replies were compared."""

_log = structlog.get_logger(__name__)


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
        need: int,
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
        self._wake = asyncio.Event()
        self._unreadable: DeployError | None = None
        self.record: PatchRecord | None = None
        try:
            self.record = read_patch(layout.patch)
        except DeployError as error:
            self._unreadable = error
            _log.error("no patch can be made", error=str(error), error_code="TV0779")
        self._watch = QuarantineWatch(
            layout, observer, control, storage, observed=self._observed, changed=self._wake.set
        )
        self._watch.use(rules_of(self.record))
        self._written = 0.0
        self._mover = Mover(
            slots, observer, control, of=of, need=need, running=running, adopt=adopt,
            wake=self._wake, current=lambda: self.record, save=self._save, differs=self._differs,
        )  # fmt: skip

    # ---- orders

    async def start(self, order: PatchOrder) -> PatchRecord:
        """Begin a patch: its copy is started next.  Raises DeployError; nothing has begun then."""
        self._require_readable()
        if self.record is not None and not (self.record.final and self.record.slot is None):
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
        check_format(order, self._layout)
        rules = read_rules(order.rules, order.rules_name) if order.rules else RuleSet()
        slot = self._slots.free()
        if slot is None:
            raise DeployError(
                "this node has no free slot for a copy",
                remedy="restart the node: it then has one",
                error_code="TV0771",
            )
        number = self.record.number + 1 if self.record is not None else 1
        record = PatchRecord(
            number=number, title=order.title, old=old, new=order.image, after=order.after,
            seconds=order.seconds, auto=order.auto, rules=order.rules,
            rules_name=order.rules_name, began=time.time(), slot=slot,
        )  # fmt: skip
        self._watch.clear(rules)
        self._save(record.note(f"the patched copy starts in {slot}"))
        return record

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
        self._watch.use(rules)
        return record

    def verdict(self) -> Quarantine:
        """Return the state of the quarantine.  Raises NoPatch if there never was a patch."""
        if self.record is None:
            raise NoPatch("this node has no patch", remedy="start one: `trivisor patch start`")
        return self._watch.verdict(self.record)

    @property
    def findings(self) -> list[Finding]:
        """The differences of the last patch, the oldest first."""
        return list(self._watch.findings)

    @property
    def waits_for(self) -> str:
        """What a promotion waits for now, or ""."""
        return self._mover.waits_for

    def _differs(self) -> bool:
        """Return whether patched guests answer some requests otherwise."""
        return any(each.difference.kind == "reply" for each in self._watch.findings)

    def _observed(self) -> PatchRecord | None:
        """Return the patch whose copy is observed now, or None."""
        record = self.record
        observed = record is not None and record.phase in (Phase.PREPARING, Phase.QUARANTINE)
        return record if observed else None

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

    def _save(self, record: PatchRecord, base: PatchRecord | None = None) -> None:
        """Write the record, then act by it.  Raises DeployError if it cannot be written.

        ``base`` is the record that a step began with: raises Overtaken if an order has replaced it.
        """
        if base is not None and self.record is not base:
            raise Overtaken
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
        self._save(changed, record)
        return changed

    def _reject(self, record: PatchRecord, reason: str) -> PatchRecord:
        changed = advance(record, Phase.REJECTED, "rejected", reason=reason)
        self._save(changed, record)
        return changed

    # ---- passes

    def begin(self, *, taken_over: bool) -> None:
        """Begin, once the guests run: they continued to run (``taken_over``), or are new.

        The copy of a new node's patch is gone.  A promotion continues in any case: each guest keeps
        the image that it was started with, or, after `down`, all start with the node's.
        """
        record = self.record
        if record is None or record.final:
            return
        running = self._running().image
        if running not in (record.old.image, record.new.image):
            why = "the node was started with another image"
        elif not taken_over and record.phase in (Phase.PREPARING, Phase.QUARANTINE):
            why = "the node was restarted, and its copy is gone"
        else:
            return
        if record.phase is Phase.PROMOTING:
            record = advance(record, Phase.REVERTING, "reverting")
        self._save(advance(record, Phase.ABORTED, "aborted", reason=why))

    async def run(self) -> None:
        """Carry patches out until cancelled."""
        following = asyncio.create_task(self._watch.follow(), name="differences")
        try:
            while True:
                self._wake.clear()
                try:
                    await self._pass()
                except Overtaken:
                    continue
                except VoterUnreachable as error:
                    _log.debug("the patch waits for the voter", error=str(error))
                except DeployError as error:
                    self._mover.waits_for = str(error)
                    _log.warning("the patch waits", reason=str(error), error_code="TV0776")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PASS_INTERVAL):
                        await self._wake.wait()
                if following.done():
                    following.result()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._slots.release()

    async def _pass(self) -> None:
        """Do the next step of the patch, if there is one."""
        record = self.record
        if record is None:
            return
        if record.phase is Phase.PREPARING:
            await self._prepare(record)
        elif record.phase is Phase.QUARANTINE:
            await self._observe(record)
        elif record.phase in (Phase.PROMOTING, Phase.REVERTING):
            await self._mover.step(record)
        elif record.slot is not None:
            await self._clear_slot(record, record.slot)
        else:
            await self._slots.finish()

    async def _prepare(self, record: PatchRecord) -> None:
        slot = record.slot
        assert slot is not None
        try:
            await read_roles(self._observer, self._slots)
            await self._slots.begin(slot)
            await self._mover.unless_changed(record, self._slots.open(record.new, slot))
        except VoterUnreachable:
            raise
        except DeployError as error:
            self._reject(record, f"the patched copy does not start: {error}")
            return
        status = await self._observer.poll()
        self._watch.begin()
        self._watch.count(record, slot, int(status.get("pid") or 0))  # the replies before
        self._save(advance(record, Phase.QUARANTINE, f"{slot} answers every request"), record)

    # ---- quarantine

    async def _observe(self, record: PatchRecord) -> None:
        """Count what was compared; end the quarantine if it is over."""
        slot = record.slot
        assert slot is not None
        await self._slots.begin(slot)
        status = await self._observer.poll()
        if self.record is not record:
            raise Overtaken
        guest = self._guests[slot]
        if guest.state in (GuestState.DEAD, GuestState.ABSENT):
            self._watch.note("crash", slot, reason=f"the copy's VM is {guest.state}")
            self._reject(record, f"the copy's virtual machine ended ({guest.state})")
            return
        counted = self._watch.count(record, slot, int(status.get("pid") or 0))
        if counted != record:
            self.record = record = counted
            if time.monotonic() - self._written > WRITE_INTERVAL:
                self._save(record)
        verdict = self.verdict()
        if record.auto and verdict.unexpected:
            what = ", ".join(f"{count} x {label}" for label, count in verdict.unexpected.items())
            self._reject(record, f"unexpected differences: {what}")
        elif verdict.only_state_is_missing:
            await self._compare_states(record, slot)
        elif record.auto and verdict.passed:
            self._promote(record, "automatically")

    async def _compare_states(self, record: PatchRecord, slot: str) -> None:
        """Have the voter compare the copy's state with the others'."""
        seq = await take_checkpoint(self._observer, self._control)
        pid = int((self._observer.voter_status or {}).get("pid") or 0)
        counted = self._watch.count(record, slot, pid)  # with a difference of states
        answered = self._observer.replicas.get(slot, {}).get("digest_seq", 0) >= seq
        if answered:
            changed = msgspec.structs.replace(counted, state=True).note("its state was compared")
            self._save(changed, record)

    async def _clear_slot(self, record: PatchRecord, slot: str) -> None:
        """End the copy of a patch that has ended."""
        roles = await read_roles(self._observer, self._slots)
        if roles.get(slot) != "voter":
            await self._slots.begin(slot)
            await self._slots.close(slot)
        await self._slots.finish()
        self._save(msgspec.structs.replace(record, slot=None), record)

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
            "waits_for": self._mover.waits_for or None,
            "steps": msgspec.to_builtins(record.steps),
        }
