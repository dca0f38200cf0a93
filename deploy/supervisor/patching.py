"""How the patcher is connected to the parts of a supervisor, and to the node's record."""

from __future__ import annotations

import msgspec

from deploy.errors import DeployError
from deploy.node.interfaces import NodePort
from deploy.node.records import Layout, NodeRecord
from deploy.patching.record import PatchImage
from deploy.supervisor.active_faults import ActiveFaults
from deploy.supervisor.membership import Membership
from deploy.supervisor.observer import EventHistory, NodeObserver
from deploy.supervisor.patch_slots import PatchSlots
from deploy.supervisor.patcher import Patcher
from deploy.supervisor.repairer import Repairer
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl
from voter.core import Policy

__all__ = ["NodeImage", "make_patcher"]


class NodeImage:
    """The image with which a node's guests start, in node.json."""

    def __init__(self, layout: Layout, record: NodeRecord) -> None:
        self._layout = layout
        self.record = record

    def running(self) -> PatchImage:
        """Return the node's image."""
        record = self.record
        return PatchImage(
            kernel=record.kernel,
            initrd=record.initrd,
            image=record.image,
            manifest=record.manifest,
            service=record.settings.service,
            identity=record.service,
            packages=record.packages,
            pinned=record.pinned,
        )

    def adopt(self, image: PatchImage) -> None:
        """Make another image that of the node.  Raises DeployError if that cannot be recorded."""
        settings = msgspec.structs.replace(self.record.settings, service=image.service)
        record = msgspec.structs.replace(
            self.record,
            settings=settings,
            kernel=image.kernel,
            initrd=image.initrd,
            image=image.image,
            manifest=image.manifest,
            service=image.identity,
            packages=image.packages,
            pinned=image.pinned,
        )
        try:
            self._layout.write(record)
        except OSError as error:
            raise DeployError(
                f"cannot record the patched image in {self._layout.node}: {error.strerror}",
                remedy="make room on the disk; the patch then continues",
                error_code="TV0778",
            ) from error
        self.record = record


def make_patcher(  # noqa: PLR0913 - the parts
    layout: Layout,
    image: NodeImage,
    node: NodePort,
    membership: Membership,
    observer: NodeObserver,
    control: VoterControl,
    repairer: Repairer,
    faults: ActiveFaults,
    storage: Storage,
    history: EventHistory,
) -> Patcher:
    """Return the patcher of a node."""
    settings = image.record.settings
    policy = Policy.parse(settings.vote)
    slots = PatchSlots(membership, node, observer, repairer, faults, share=settings.boot_share)
    return Patcher(
        layout,
        slots,
        node.guests,
        observer,
        control,
        storage,
        history,
        of=policy.of,
        need=policy.need,
        running=image.running,
        adopt=image.adopt,
    )
