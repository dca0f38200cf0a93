"""The node's slots as the patcher needs them: one operation of ``membership`` for a whole patch.

The operation keeps others from the slots, and the copy in quarantine alive across a restart of the
supervisor.  Further VMs that do not vote yet are ended by the next supervisor, and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from deploy.machine.spec import GuestState
from deploy.node.interfaces import NodePort
from deploy.patching.record import PatchImage
from deploy.supervisor.active_faults import ActiveFaults
from deploy.supervisor.membership import Membership, MembershipBusy, SlotOperation, finish
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.repairer import Repairer
from guests.image import Image

__all__ = ["PatchSlots"]


class PatchSlots:
    """Implements ``patch_orders.Slots``.  ``share``: percent of a processor for a booting guest."""

    def __init__(
        self,
        membership: Membership,
        node: NodePort,
        observer: NodeObserver,
        repairer: Repairer,
        faults: ActiveFaults,
        *,
        share: int,
    ) -> None:
        self._membership = membership
        self._node = node
        self._observer = observer
        self._repairer = repairer
        self._faults = faults
        self._share = share
        self._block: AbstractAsyncContextManager[SlotOperation] | None = None

    @property
    def roles(self) -> Mapping[str, str]:
        """The role of each guest, as the voter has it.  Empty while it does not answer."""
        known = self._observer.roles
        return known.table if known is not None and self._observer.voter_status else {}

    @property
    def busy(self) -> str:
        """Which other operation is under way, or ""."""
        pending = self._membership.pending
        return f"a {pending.kind} of {pending.guest} is under way" if pending is not None else ""

    def image(self, slot: str) -> str:
        """Return the initramfs with which the guest in a slot was started: a path."""
        return self._node.initrd(slot)

    def free(self) -> str | None:
        """Return a free slot, or None if there is none."""
        try:
            return self._membership.free_slot()
        except MembershipBusy:
            return None

    async def begin(self, slot: str) -> None:
        """Keep other operations from the slots: see ``Slots.begin``."""
        if self._block is not None:
            return
        pending = self._membership.pending
        if pending is not None and pending.survives:
            block = self._membership.resumed()
            await block.__aenter__()
        else:
            voters = self._membership.voting_slots
            block = self._membership.operation("patch", voters[-1], role="observer")
            operation = await block.__aenter__()
            operation.hold()
        self._block = block

    async def open(self, image: PatchImage, slot: str) -> None:
        """Start a VM with this image in a slot, as an observer: see ``Slots.open``."""
        guest = self._node.guests[slot]
        role = self._membership.role(slot)
        runs = guest.state not in (GuestState.ABSENT, GuestState.DEAD)
        if role == "observer" and runs and self.image(slot) == image.initrd:
            await self._membership.wait_caught_up(slot)
            return
        await self._membership.change_back(slot)
        built = Image(
            kernel=Path(image.kernel),
            initrd=Path(image.initrd),
            sha256=image.image,
            manifest=Path(image.manifest),
        )
        try:
            await self._membership.start(slot, by="clone", share=self._share, image=built)
            self._repairer.renew(slot)
            await self._membership.change({slot: "observer"}, "patch")
            await self._membership.wait_caught_up(slot)
        except BaseException:
            await finish(self._membership.roll_back(slot))
            raise

    async def change(self, roles: Mapping[str, str], *, voters: int, active: int) -> None:
        """Change roles in one step, end the VMs that are retired: see ``Slots.change``."""
        retired = [name for name, role in roles.items() if role == "retired"]
        async with contextlib.AsyncExitStack() as stack:
            for name in retired:  # no repair of them is under way
                await stack.enter_async_context(self._repairer.exclusive(name))
            await self._membership.change(
                roles, "patch", voters=voters, active=active, patience=0.0
            )
            for name in retired:
                await self._faults.undo(name)
                await self._membership.end(name)

    async def close(self, slot: str) -> None:
        """Retire a slot that does not vote, and end its VM."""
        await self._membership.change_back(slot)

    async def finish(self) -> None:
        """Let other operations use the slots again."""
        pending = self._membership.pending
        if self._block is None and pending is not None and pending.survives:
            await self.begin(pending.slot)  # a former supervisor's patch has ended
        block, self._block = self._block, None
        if block is not None:
            await block.__aexit__(None, None, None)

    async def release(self) -> None:
        """Leave everything as it is, for the next supervisor: this one ends."""
        self._membership.close()
        block, self._block = self._block, None
        if block is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await block.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
