"""Orders to the patcher, and what it needs of the node's guests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Protocol

import msgspec

from deploy.errors import DeployError
from deploy.node.records import Layout
from deploy.patching.record import PatchImage

__all__ = ["NoPatch", "PatchOrder", "Slots", "check_format"]


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

    def image(self, slot: str) -> str:
        """Return the initramfs with which the guest in a slot was started: a path."""

    def free(self) -> str | None:
        """Return a free slot, or None if there is none."""

    async def begin(self, slot: str) -> None:
        """Keep all other operations from the slots; ``slot`` survives this supervisor.

        Idempotent.  Raises DeployError.
        """

    async def open(self, image: PatchImage, slot: str) -> None:
        """Start a VM with this image in a slot, as an observer; return once it has caught up.

        Idempotent.  Raises DeployError.
        """

    async def change(self, roles: Mapping[str, str], *, voters: int, active: int) -> None:
        """Change roles in one step, and end the VMs of guests that are retired by it.

        ``voters``: how many there are to be; ``active``: how many of them must be active.  Raises
        RolesRefused; nothing has changed then.
        """

    async def close(self, slot: str) -> None:
        """Retire a slot that does not vote, and end its VM.  Idempotent."""

    async def finish(self) -> None:
        """Let other operations use the slots again."""

    async def release(self) -> None:
        """Leave everything as it is, for the next supervisor."""


class PatchOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of the order that starts a patch; see ``PatchRecord``.

    ``name`` and ``state_format``: the service's, where the command knows them.
    """

    title: str
    image: PatchImage
    name: str | None = None
    state_format: int | None = None
    after: Annotated[int, msgspec.Meta(ge=1)] | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    auto: bool = False
    rules: str = ""
    rules_name: str = ""


def check_format(order: PatchOrder, layout: Layout) -> None:
    """Raise DeployError if the patched service could not continue the node's states."""
    held = _held(layout)
    if order.name is None or held is None or (order.name, order.state_format) == held:
        return
    raise DeployError(
        f"the patched service is {order.name} with state format {order.state_format}, and the node "
        f"holds states of {held[0]} with {held[1]}",
        remedy="keep name and state_format: a running node cannot change the format of its state",
        error_code="TV0772",
    )


class _Identity(msgspec.Struct):
    """The part of the journal's identity.json that a patch must keep."""

    service: str | None = None
    state_format: int | None = None


def _held(layout: Layout) -> tuple[str, int] | None:
    """Return service and state format of the node's journal, None if they are not known."""
    try:
        data = (layout.journal / "identity.json").read_bytes()
        identity = msgspec.json.decode(data, type=_Identity)
    except (OSError, msgspec.MsgspecError):
        return None
    if identity.service is None or identity.state_format is None:
        return None
    return identity.service, identity.state_format
