"""The node's slots as the patcher needs them: an operation of ``membership`` per replacement."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from deploy.node.interfaces import NodePort
from deploy.patching.record import PatchImage
from deploy.supervisor.active_faults import ActiveFaults
from deploy.supervisor.membership import Membership, MembershipBusy, SlotOperation
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.repairer import Repairer
from guests.image import Image

__all__ = ["PatchSlots"]


class _Abandoned(Exception):
    """The operation is rolled back because the patch has ended."""


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
        self._operation: SlotOperation | None = None

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

    def free(self) -> str:
        """Return the free slot.  Raises MembershipBusy if there is none."""
        return self._membership.free_slot()

    async def open(self, image: PatchImage, slot: str, guest: str) -> None:
        """Start a VM with this image in a slot: see ``Slots.open``."""
        await self._resume()
        operation = self._operation
        if operation is not None and operation.slot == slot:
            await self._membership.wait_caught_up(slot)
            return
        block = self._membership.operation("patch", guest, role="observer")
        operation = await block.__aenter__()
        try:
            built = Image(
                kernel=Path(image.kernel),
                initrd=Path(image.initrd),
                sha256=image.image,
                manifest=Path(image.manifest),
            )
            await operation.start(by="clone", share=self._share, image=built)
            self._repairer.renew(operation.slot)
            await operation.join()
            operation.hold()
        except BaseException as error:
            await block.__aexit__(type(error), error, error.__traceback__)
            raise
        self._block, self._operation = block, operation

    async def _resume(self) -> None:
        """Continue the operation that a former supervisor has left, if there is one."""
        if self._operation is None:
            with contextlib.suppress(MembershipBusy):
                block = self._membership.resumed()
                self._operation = await block.__aenter__()
                self._block = block

    async def replace(self, slot: str, *, active: int) -> None:
        """Let a slot vote in place of the guest for which it was opened: see ``Slots.replace``."""
        operation, block = self._operation, self._block
        assert operation is not None and block is not None and operation.slot == slot
        guest = operation.guest
        try:
            async with self._repairer.exclusive(guest):  # no repair of it is under way
                await operation.replace(
                    lambda: self._faults.undo(guest), active=active, patience=0.0
                )
        except BaseException:
            if self._membership.role(slot) != "voter":
                operation.hold()
            raise
        self._operation = self._block = None
        await block.__aexit__(None, None, None)

    async def close(self, slot: str) -> None:
        """Retire a slot that does not vote, and end its VM."""
        await self._resume()
        block, self._operation, self._block = self._block, None, None
        if block is None:
            await self._membership.change_back(slot)
            return
        with contextlib.suppress(_Abandoned):
            await block.__aexit__(_Abandoned, _Abandoned(), None)
