"""``trivisor doctor``: what this host has and lacks, with the exact remedy for each lack."""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click
import msgspec

from deploy.commands.node import directory_option, json_option, layout_of
from deploy.errors import CannotRunHere, DeployError
from deploy.host.paths import check_socket_paths
from deploy.machine.spec import DOMAIN_ID_DIGITS
from deploy.node.records import Layout, cache_directory
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs

__all__ = ["HostCheck", "doctor", "examine"]

MEMORY_NEEDED = 3 * 300 << 20
"""Bytes for three guests of 128 MiB: 180 MiB was seen of one QEMU, and there is to be room."""
DISK_NEEDED = 1 << 30
"""Bytes for the cached packages and images, and the guests' snapshots."""

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
}


class HostCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at.  A ``lack`` keeps a node from running, a ``note`` does not."""

    what: str
    verdict: Literal["ok", "note", "lack"]
    detail: str
    remedy: str = ""
    package: str = ""


def examine(layout: Layout) -> Iterator[HostCheck]:
    """Look at everything a node in this directory needs, the cheap things first."""
    looks: list[Callable[[], HostCheck]] = [
        _system,
        _python,
        *(lambda program=program: _program(program) for program in PACKAGES),
        _account,
        _memory,
        lambda: _directory("state directory", layout.directory),
        lambda: _directory("cache", cache_directory()),
        lambda: _socket_paths(layout),
        _port,
        _libvirt,
        _accelerator,
    ]
    for look in looks:
        yield look()


def _system() -> HostCheck:
    what = "system"
    detail = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        remedy = "use a Linux host on x86_64"
        return HostCheck(what=what, verdict="lack", detail=detail, remedy=remedy)
    return HostCheck(what=what, verdict="ok", detail=f"{detail}, {os.cpu_count()} processors")


def _python() -> HostCheck:
    return HostCheck(
        what="python", verdict="ok", detail=f"{platform.python_version()} {sys.executable}"
    )


def _program(program: str) -> HostCheck:
    path = shutil.which(program)
    if path is not None:
        return HostCheck(what=program, verdict="ok", detail=path)
    package = PACKAGES[program]
    remedy = f"apt-get install {package}"
    detail = "is not installed"
    return HostCheck(what=program, verdict="lack", detail=detail, remedy=remedy, package=package)


def _account() -> HostCheck:
    what = "account libvirt-qemu"
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        if os.geteuid() != 0:
            return HostCheck(
                what=what, verdict="note", detail="missing; libvirt wants it from root"
            )
        return HostCheck(
            what=what,
            verdict="lack",
            detail="is missing, and libvirt does not start QEMU for root without it",
            remedy="addgroup --system libvirt-qemu && adduser --system --ingroup libvirt-qemu "
            "--disabled-login --home /var/lib/libvirt --no-create-home libvirt-qemu",
        )
    return HostCheck(what=what, verdict="ok", detail="is there")


def _memory() -> HostCheck:
    available = 0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    detail = f"{available >> 20} MiB available, three guests take up to {MEMORY_NEEDED >> 20}"
    if available < MEMORY_NEEDED:
        remedy = "free some memory, or give the host more"
        return HostCheck(what="memory", verdict="lack", detail=detail, remedy=remedy)
    return HostCheck(what="memory", verdict="ok", detail=detail)


def _directory(what: str, path: Path) -> HostCheck:
    """Whether a directory can be made and written, and has room."""
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        which = "--dir" if what == "state directory" else "TRIVISOR_CACHE"
        return HostCheck(
            what=what,
            verdict="lack",
            detail=f"{path}: {parent} cannot be written to",
            remedy=f"choose another place ({which})",
        )
    free = shutil.disk_usage(parent).free
    detail = f"{path}, {free >> 20} MiB free"
    if free < DISK_NEEDED:
        remedy = f"have {DISK_NEEDED >> 20} MiB free there"
        return HostCheck(what=what, verdict="lack", detail=detail, remedy=remedy)
    return HostCheck(what=what, verdict="ok", detail=detail)


def _socket_paths(layout: Layout) -> HostCheck:
    number = "9" * DOMAIN_ID_DIGITS
    monitor = f"{layout.directory}/r/lib/qemu/domain-{number}-g1/monitor.sock"
    try:
        check_socket_paths([*layout.sockets, monitor])
    except DeployError as error:
        return HostCheck(
            what="socket paths", verdict="lack", detail=error.problem, remedy=error.remedy
        )
    return HostCheck(what="socket paths", verdict="ok", detail="short enough")


def _port() -> HostCheck:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError as error:
            detail = f"127.0.0.1:8080: {error.strerror}"
            remedy = "give `trivisor up` another --http HOST:PORT (or end what has it)"
            return HostCheck(what="port", verdict="note", detail=detail, remedy=remedy)
    return HostCheck(what="port", verdict="ok", detail="127.0.0.1:8080 is free")


def _libvirt() -> HostCheck:
    """Open the embedded libvirt, as a node does."""
    what, package = "libvirt", "libvirt-daemon libvirt-daemon-driver-qemu"
    try:
        from deploy.machine.hypervisor import Hypervisor  # noqa: PLC0415 - may be what is lacking
        from deploy.machine.spec import EMBED  # noqa: PLC0415
    except ImportError as error:
        return HostCheck(
            what=what,
            verdict="lack",
            detail=f"its Python binding cannot be imported: {error}",
            remedy="apt-get install libvirt-dev pkg-config gcc && pip install libvirt-python",
        )

    async def ask() -> tuple[str, str]:
        with tempfile.TemporaryDirectory(prefix="trivisor-doctor-") as root:
            hypervisor = await Hypervisor.open(EMBED, root=Path(root))
            try:
                return await hypervisor.version()
            finally:
                await hypervisor.close()

    try:
        libvirt, qemu = asyncio.run(ask())
    except DeployError as error:
        remedy = error.remedy or f"apt-get install {package}"
        return HostCheck(what=what, verdict="lack", detail=error.problem, remedy=remedy)
    return HostCheck(
        what=what, verdict="ok", detail=f"{libvirt} with QEMU {qemu}, no daemon needed"
    )


def _accelerator() -> HostCheck:
    from deploy.machine.accel import read_facts  # noqa: PLC0415

    try:
        facts = asyncio.run(read_facts())
    except CannotRunHere as error:
        return HostCheck(what="KVM", verdict="note", detail=error.problem, remedy=error.remedy)
    if facts.device is None:
        detail = "there is no /dev/kvm: guests run under TCG (slower, and enough)"
    elif facts.virtualization is False:
        detail = "/dev/kvm is there, but the processor has no svm or vmx: guests run under TCG"
    elif facts.device.endswith("denied"):
        return HostCheck(
            what="KVM",
            verdict="note",
            detail="/dev/kvm may not be opened by this user: guests run under TCG",
            remedy=f"usermod -aG kvm {pwd.getpwuid(os.geteuid()).pw_name}, and log in again",
        )
    else:
        detail = "/dev/kvm can be opened; `trivisor up` tells by booting a guest whether it works"
        return HostCheck(what="KVM", verdict="ok", detail=detail)
    return HostCheck(what="KVM", verdict="note", detail=detail)


@click.command()
@directory_option
@json_option
def doctor(directory: Path | None, as_json: bool) -> int:
    """Check whether this host can run a node; tell the remedy for each lack.

    Exits with 4 if something is lacking.
    """
    quiet_logs()
    findings = []
    out = console()
    marks = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "lack": "[red]LACK[/]"}
    for finding in examine(layout_of(directory)):
        findings.append(finding)
        if not as_json:
            out.print(f"{marks[finding.verdict]} {finding.what}: ", end="")
            out.print(finding.detail, markup=False)
            if finding.remedy:
                out.print(f"       remedy: {finding.remedy}", markup=False)
    lacks = [finding for finding in findings if finding.verdict == "lack"]
    packages = " ".join(sorted({finding.package for finding in lacks if finding.package}))
    if as_json:
        print_json({"ok": not lacks, "findings": msgspec.to_builtins(findings)})
    elif lacks:
        out.print(
            f"[red]{len(lacks)} lacking[/]" + (f": apt-get install {packages}" if packages else "")
        )
    else:
        out.print("[green]this host can run a node[/]")
    return ExitCode.CANNOT_RUN_HERE if lacks else ExitCode.OK
