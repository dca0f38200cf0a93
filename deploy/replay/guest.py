"""The guest of a replay: a node of one guest in a scratch directory, apart from the live ones.

It has the live guests' image, or another service's.  Nothing of the live node is opened: neither
its sockets nor its libvirt.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from deploy.errors import CannotRunHere, DeployError
from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import plan_node
from deploy.node.records import NodeRecord, cache_directory
from guests.image import COMMAND_LINE, Image, Overlay, add_overlay, build_image

__all__ = ["NICE", "replay_guest", "stand_in"]

NICE = 15
"""Nice value of the guest: the live ones, with 5, have priority."""
_OVERHEAD_MIB = 128
"""Memory of a QEMU besides its guest's."""


@contextlib.asynccontextmanager
async def replay_guest(
    record: NodeRecord, progress: Callable[[str], None], *, service: str | None = None
) -> AsyncIterator[str]:
    """Boot a guest as those of a node; yield the address of its link; end it afterwards.

    ``service``: a shipped service or a file, instead of the node's.  Raises DeployError, ImageError
    before anything is started, if there is too little memory or the image is not the node's.
    """
    memory = record.settings.memory_mib
    available = _available_mib()
    if available is not None and available < memory + _OVERHEAD_MIB:
        raise CannotRunHere(
            f"a guest of {memory} MiB does not fit into the {available} MiB of memory that are"
            " available",
            remedy="end other programs, or use --stand-in",
            error_code="TV0855",
        )
    await asyncio.to_thread(sweep_abandoned, progress)
    with ScratchDirectory("replay") as scratch:
        if service is None:
            image = Image(
                kernel=Path(record.kernel),
                initrd=Path(record.initrd),
                sha256=record.image,
                manifest=Path(record.manifest),
            )
        else:
            image = await asyncio.to_thread(_build, service, scratch.path / "image", progress)
        spec = plan_node(
            directory=str(scratch.path / "n"),
            uuids=(str(uuid.uuid4()), str(uuid.uuid4())),
            kernel=str(image.kernel),
            initrd=str(image.initrd),
            cmdline=COMMAND_LINE,
            accel=record.accel,
            memory_mib=memory,
            nice=NICE,
            boot_deadline=record.settings.boot_deadline,
        )
        node = NodeMachines(spec, capabilities=cache_directory() / "capabilities", image=image)
        try:
            await node.up(progress)
            yield f"unix:{spec.guests[0].link_socket}"
        finally:
            await node.down()


def _build(service: str, directory: Path, progress: Callable[[str], None]) -> Image:
    own = service.endswith(".py")
    overlay = Overlay(service=None if own else service, service_file=Path(service) if own else None)
    return add_overlay(
        build_image(cache_directory() / "images", progress=progress), directory, overlay
    )


def stand_in(record: NodeRecord, service: str | None = None) -> str:
    """Return the address of a process that stands in for the guest: the agent, on this host.

    Raises DeployError if the node's guests need more than a service.
    """
    settings = record.settings
    if settings.key is not None or settings.content is not None:
        raise DeployError(
            "a stand-in has neither the files of --content nor the function in the guest",
            remedy="replay in a guest: leave --stand-in out",
            error_code="TV0856",
        )
    name = service or settings.service
    return f"exec:{sys.executable} -m guests.agent --stdio --service {shlex.quote(name)}"


def _available_mib() -> int | None:
    """Return the memory that programs can still use, in MiB; None if the host does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return None
