"""What a former owner of a node's machines has left: its QEMUs, domains and files."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import structlog

from deploy.errors import CannotRunHere, HypervisorFailed
from deploy.host.files import sweep_links
from deploy.machine.hypervisor import Hypervisor
from deploy.machine.ownership import remove_record
from deploy.machine.qemu import QemuProcess, find_qemu
from deploy.machine.spec import GuestSpec, NodeSpec
from deploy.machine.template import PATTERN

__all__ = ["end_guest", "end_leftovers", "node_files"]

END_TIMEOUT = 20.0
"""Seconds for a killed QEMU to end; the kernel only has to free its memory."""

_log = structlog.get_logger(__name__)


async def end_leftovers(spec: NodeSpec, hypervisor: Hypervisor | None) -> None:
    """End what still runs of a recorded node, and remove its files."""
    if not spec.embedded:
        await _end_in_daemon(spec)
    for guest in spec.guests:
        await end_guest(guest, hypervisor)
    for path in node_files(spec):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    sweep_links()
    remove_record(Path(spec.directory))


async def end_guest(spec: GuestSpec, hypervisor: Hypervisor | None) -> None:
    """End the QEMU whose command line proves that it is this guest's, if there is one."""
    pid = find_qemu(spec.uuid, disk=Path(spec.disk))
    if pid is None:
        return
    process = QemuProcess(pid, lambda: None)
    _log.info("ending a QEMU that was left running", guest=spec.name, pid=pid)
    try:
        process.kill()
        async with asyncio.timeout(END_TIMEOUT):
            await process.wait()
        if hypervisor is not None:
            domain = await hypervisor.find(spec.uuid)
            if domain is not None:
                await domain.stopped(timeout=END_TIMEOUT)
    finally:
        process.close()


async def _end_in_daemon(spec: NodeSpec) -> None:
    """End a node's domains through their daemon, if it answers.

    Their QEMUs may belong to another user.  Somebody may have defined the domains.
    """
    try:
        hypervisor = await Hypervisor.open(spec.uri, timeout=END_TIMEOUT)
    except CannotRunHere as error:
        _log.warning("the guests are ended without libvirt", error=str(error), error_code="TV0129")
        return
    try:
        for guest in spec.guests:
            if not await hypervisor.remove(guest.uuid, (spec.uuid, guest.name)):
                _log.warning(
                    "another node's domain is left",
                    guest=guest.name,
                    uuid=guest.uuid,
                    error_code="TV0112",
                )
    except HypervisorFailed as error:
        _log.warning("libvirt keeps ended guests", error=str(error), error_code="TV0124")
    finally:
        await hypervisor.close()


def node_files(spec: NodeSpec) -> list[Path]:
    """Return the paths that a node's machines create in its directory, without the record."""
    paths = [Path(spec.root)] if spec.embedded else []
    for guest in spec.guests:
        paths += map(Path, guest.files)
    return [*paths, *Path(spec.directory).glob(PATTERN)]
