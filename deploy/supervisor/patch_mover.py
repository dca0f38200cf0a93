"""The moves of a patch: voters are replaced until all run the wanted image.

**Promotion.**  VMs with the new image start as observers, because an observer may differ.  They
take voters' places in a step that the voter refuses unless all voters are active after it: while
versions are mixed, those of the minority that answer otherwise are expelled.

If the copy's replies never differed, the voters are replaced one after another.  If they did, the
first patched voter would be expelled at the next such request, and the second could not join: one
of each version is no majority.  So a majority joins in one step.  The slots for it are made free
before, by retiring voters while a majority stays: in that time, no failure is masked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import structlog

from deploy.patching.record import PatchImage, PatchRecord, Phase, advance
from deploy.supervisor.checkpoints import take_checkpoint
from deploy.supervisor.membership import RolesRefused
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.patch_orders import Slots
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable

__all__ = ["Mover", "Overtaken", "read_roles"]

WAIT_WARNING = 60.0
"""Seconds that a promotion waits for all voters before it says so in the log."""

_log = structlog.get_logger(__name__)


async def read_roles(observer: NodeObserver, slots: Slots) -> Mapping[str, str]:
    """Return the role of each slot as the voter has it now.  Raises VoterUnreachable."""
    await observer.poll()
    roles = slots.roles
    if not roles:
        raise VoterUnreachable("the voter's table of roles is not known")
    return roles


class Overtaken(Exception):
    """An order has replaced the record that a step began with: the step is made no more."""


class Mover:
    """Makes the steps of one node's patches.

    ``current`` returns the record, and ``save`` replaces the one that a step began with, or raises
    Overtaken.  A step that takes long is abandoned when the record changes, which ``wake`` reports.
    ``differs`` returns whether patched guests answer some requests otherwise.  ``of``, ``need``,
    ``running`` and ``adopt`` are those of the patcher.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        slots: Slots,
        observer: NodeObserver,
        control: VoterControl,
        *,
        of: int,
        need: int,
        running: Callable[[], PatchImage],
        adopt: Callable[[PatchImage], None],
        wake: asyncio.Event,
        current: Callable[[], PatchRecord | None],
        save: Callable[[PatchRecord, PatchRecord], None],
        differs: Callable[[], bool],
    ) -> None:
        self._slots = slots
        self._observer = observer
        self._control = control
        self._of = of
        self._need = need
        self._running = running
        self._adopt = adopt
        self._wake = wake
        self._current = current
        self._save = save
        self._differs = differs
        self._waiting_since: float | None = None
        self.waits_for = ""
        """What a promotion waits for now, or ""."""

    async def step(self, record: PatchRecord) -> None:
        """Do the next step towards voters that all run the wanted image, or end the patch.

        The step follows from the roles and images alone, so it does not matter who did the last.
        """
        table = await read_roles(self._observer, self._slots)
        await self._slots.begin(record.slot or next(iter(table)))
        image = record.target
        voters = [name for name, role in table.items() if role == "voter"]
        right = [name for name in voters if self._slots.image(name) == image.initrd]
        wrong = sorted(set(voters) - set(right), key=self._votes)
        ready = []
        for name, role in table.items():
            if role in ("learner", "observer"):
                if self._slots.image(name) == image.initrd:
                    ready.append(name)
                else:
                    await self._slots.close(name)  # it was started before the patch was aborted
        record = self._note_promoted(record, voters, right)
        if not wrong and len(voters) == self._of:
            await self._finish(record)
            return
        more, leaving = 1, wrong
        expelled = [name for name in right if self._observer.replica_state(name) != "active"]
        if len(right) < self._need and (self._differs() or expelled):
            # A minority that differs is expelled again and again: it leaves first, and a whole
            # majority joins.
            more, leaving = self._need, right + wrong
        if len(ready) < more:
            await self._make_ready(record, leaving)
            return
        for name in ready:  # they must run and have caught up
            await self.unless_changed(record, self._slots.open(image, name))
        joining = ready[:more]
        leaving = leaving[: max(0, len(voters) + more - self._of)]
        total = len(voters) + more - len(leaving)
        await take_checkpoint(self._observer, self._control)
        if self._current() is not record:
            raise Overtaken
        self._adopt_majority(record, image, len(set(right) - set(leaving)) + more)
        roles = dict.fromkeys(joining, "voter") | dict.fromkeys(leaving, "retired")
        await self._change(record, roles, voters=total, active=total)

    async def _make_ready(self, record: PatchRecord, leaving: list[str]) -> None:
        """Start one more guest of the wanted image; without a free slot, retire a voter."""
        slot = self._slots.free()
        if slot is not None:
            await self.unless_changed(record, self._slots.open(record.target, slot))
            return
        if self._current() is not record:
            raise Overtaken
        fewer = sum(role == "voter" for role in self._slots.roles.values()) - 1
        await self._change(record, {leaving[0]: "retired"}, voters=fewer, active=self._need)

    def _note_promoted(
        self, record: PatchRecord, voters: list[str], right: list[str]
    ) -> PatchRecord:
        forward = record.phase is Phase.PROMOTING
        promoted = tuple(sorted(right if forward else set(voters) - set(right)))
        if promoted == record.promoted and record.slot is None:
            return record
        text = f"{len(promoted)} of {self._of} voters run the patched image"
        changed = msgspec.structs.replace(record, promoted=promoted, slot=None)
        if promoted != record.promoted:
            changed = changed.note(text)
        self._save(changed, record)
        return changed

    def _votes(self, name: str) -> tuple[bool, str]:
        """Sort those first that do not vote now."""
        return self._observer.replica_state(name) == "active", name

    def _adopt_majority(self, record: PatchRecord, image: PatchImage, count: int) -> None:
        """Make an image that of the node, before a majority of voters runs it.

        When all guests start anew, they must answer the journal's requests as that majority did.
        """
        if count >= self._need and self._running().image != image.image:
            self._adopt(image)

    async def _change(
        self, record: PatchRecord, roles: Mapping[str, str], *, voters: int, active: int
    ) -> None:
        try:
            await self._slots.change(roles, voters=voters, active=active)
        except RolesRefused as error:
            self._wait(record, error.problem)
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
                "the patch waits", number=record.number, reason=why,
                promoted=list(record.promoted), error_code="TV0776",
            )  # fmt: skip

    async def _finish(self, record: PatchRecord) -> None:
        await take_checkpoint(self._observer, self._control)
        self._adopt_majority(record, record.target, self._of)
        end = Phase.DONE if record.phase is Phase.PROMOTING else Phase.ABORTED
        what = "patched" if end is Phase.DONE else "unpatched"
        self._save(advance(record, end, f"all voters run the {what} image"), record)
        await self._slots.finish()

    async def unless_changed(self, record: PatchRecord, work: Coroutine[Any, Any, None]) -> None:
        """Do a step that takes long, but abandon it when an order changes the record."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                wake = asyncio.create_task(self._wake.wait())
                await asyncio.wait([task, wake], return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                self._wake.clear()
                if self._current() is not record:
                    raise Overtaken
        finally:
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
