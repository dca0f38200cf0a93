"""``trivisor doctor``: check the host's requirements and say how to fix each missing one."""

from __future__ import annotations

import asyncio
import glob
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click
import msgspec

from deploy.commands.options import connect_option, directory_option, json_option, layout_of
from deploy.errors import CannotRunHere, DeployError
from deploy.host.scratch import ScratchDirectory, find_abandoned
from deploy.machine.spec import EMBED
from deploy.node.configuration import check_paths
from deploy.node.records import Layout, Settings, cache_directory
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs

__all__ = ["check_user_namespace", "doctor"]

MEMORY_NEEDED = 3 * 300 << 20
"""Bytes for three guests of 128 MiB: 180 MiB were measured for one QEMU, plus a reserve."""
DISK_NEEDED = 1 << 30
"""Bytes for cached packages and images, and for the guests' snapshots."""

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "apt-config": "apt",
}
_SUBORDINATE = 65_536
"""User ids that mmdebstrap needs in a user namespace."""


class HostCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check.  Only ``missing`` keeps a node from running."""

    check: str
    result: Literal["ok", "warning", "missing"]
    detail: str
    remedy: str = ""
    package: str = ""


def _ok(check: str, detail: str) -> HostCheck:
    return HostCheck(check=check, result="ok", detail=detail)


def _warning(check: str, detail: str, remedy: str = "") -> HostCheck:
    return HostCheck(check=check, result="warning", detail=detail, remedy=remedy)


def _missing(check: str, detail: str, remedy: str, *, package: str = "") -> HostCheck:
    return HostCheck(check=check, result="missing", detail=detail, remedy=remedy, package=package)


def _checks(layout: Layout, connect: str) -> list[Callable[[], HostCheck]]:
    """Return the checks for a node in this directory, the fast ones first."""
    return [
        _system,
        _python,
        *(lambda program=program: _program(program) for program in PACKAGES),
        *([] if os.geteuid() == 0 else [check_user_namespace]),
        _account,
        _memory,
        _leftovers,
        lambda: _directory("state directory", layout.directory, option="--dir"),
        lambda: _directory("cache", cache_directory(), option="$TRIVISOR_CACHE"),
        lambda: _socket_paths(layout),
        _port,
        lambda: _libvirt(connect),
        _accelerator,
    ]


def _system() -> HostCheck:
    detail = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return _missing("system", detail, "use a Linux host on x86_64")
    return _ok("system", f"{detail}, {os.cpu_count()} processors")


def _python() -> HostCheck:
    return _ok("python", f"{platform.python_version()} {sys.executable}")


def _program(program: str) -> HostCheck:
    path = shutil.which(program)
    if path is not None:
        return _ok(program, path)
    package = PACKAGES[program]
    return _missing(program, "not installed", f"apt-get install {package}", package=package)


def _account() -> HostCheck:
    check = "account libvirt-qemu"
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        if os.geteuid() != 0:
            return _warning(check, "does not exist; libvirt needs it when root starts a node")
        return _missing(
            check,
            "does not exist; libvirt needs it to start QEMU as root",
            "addgroup --system libvirt-qemu && adduser --system --ingroup libvirt-qemu "
            "--disabled-login --home /var/lib/libvirt --no-create-home libvirt-qemu",
        )
    return _ok(check, "exists")


def check_user_namespace() -> HostCheck:
    """Check what mmdebstrap needs to build the guest image without root.

    Only a warning if Debian's packages are in the cache already.
    """
    found = _try_user_namespace()
    packages = f"{glob.escape(str(cache_directory()))}/images/packages-*[0-9a-f]"
    if found.result == "missing" and glob.glob(packages):
        return msgspec.structs.replace(found, result="warning")
    return found


def _try_user_namespace() -> HostCheck:
    check, need = "user namespace", "mmdebstrap needs it to build the guest image without root"
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        detail = f"user {os.geteuid()} is not in /etc/passwd; {need}"
        return _missing(check, detail, "run this as a user who is, or as root")
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            detail = f"{program} is not installed; {need}"
            return _missing(check, detail, "apt-get install uidmap", package="uidmap")
    files = [Path("/etc/subuid"), Path("/etc/subgid")]
    if not all(_has_ids(path, user) for path in files):
        first = max([100_000, *(end for path in files for _, _, end in _ranges(path))])
        ids = f"{first}-{first + _SUBORDINATE - 1}"
        detail = f"{user} has no {_SUBORDINATE} ids in {files[0]} and {files[1]}; {need}"
        return _missing(check, detail, f"usermod --add-subuids {ids} --add-subgids {ids} {user}")
    words = ["mmdebstrap", "--unshare-helper", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        detail = f"`{' '.join(words)}` failed: {done.stderr.strip()[-200:]}"
        return _missing(check, detail, "run this as root, or allow user namespaces: "
                       "sysctl user.max_user_namespaces=10000")  # fmt: skip
    return _ok(check, "mmdebstrap can use one")


def _ranges(path: Path) -> list[tuple[str, int, int]]:
    """Return owner, first id and end of each range of subordinate ids; none without the file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    fields = [line.split(":") for line in lines if re.fullmatch(r"[^:#]+:[0-9]+:[0-9]+", line)]
    return [(owner, int(first), int(first) + int(count)) for owner, first, count in fields]


def _has_ids(path: Path, user: str) -> bool:
    owners = {user, str(os.geteuid())}
    return any(
        owner in owners and end - first >= _SUBORDINATE for owner, first, end in _ranges(path)
    )


def _leftovers() -> HostCheck:
    """Check for processes that a command and its guard left because both were killed."""
    check = "leftovers"
    found = find_abandoned()
    if not found:
        return _ok(check, "no killed command has left anything")
    return _warning(
        check,
        "; ".join(f"{path}: {len(pids)} processes" for path, pids in found.items()),
        "end and remove them with `trivisor down`",
    )


def _memory() -> HostCheck:
    available = 0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    detail = f"{available >> 20} MiB available; three guests need up to {MEMORY_NEEDED >> 20} MiB"
    if available < MEMORY_NEEDED:
        return _missing("memory", detail, "end other programs, or add memory")
    return _ok("memory", detail)


def _directory(check: str, path: Path, *, option: str) -> HostCheck:
    """Check that a directory can be made and written, and has space."""
    parent = path
    while not os.path.exists(parent):  # also False where this user may not look
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        detail = f"{path}: {parent} is not writable"
        return _missing(check, detail, f"choose another directory ({option})")
    free = shutil.disk_usage(parent).free
    detail = f"{path}, {free >> 20} MiB free"
    if free < DISK_NEEDED:
        return _missing(check, detail, f"make {DISK_NEEDED >> 20} MiB of space there")
    return _ok(check, detail)


def _socket_paths(layout: Layout) -> HostCheck:
    try:
        check_paths(layout, Settings())
    except DeployError as error:
        return _missing("socket paths", error.problem, error.remedy)
    return _ok("socket paths", "short enough")


def _port() -> HostCheck:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError as error:
            remedy = "use `trivisor up --http HOST:PORT`, or end the program that uses the port"
            return _warning("port", f"127.0.0.1:8080: {error.strerror}", remedy)
    return _ok("port", "127.0.0.1:8080 is free")


def _libvirt(connect: str) -> HostCheck:
    """Open libvirt, as a node does."""
    try:
        from deploy.machine.hypervisor import Hypervisor  # noqa: PLC0415 - may not be installed
    except ImportError as error:
        return _missing(
            "libvirt",
            f"its Python binding cannot be imported: {error}",
            "apt-get install libvirt-dev pkg-config gcc && pip install libvirt-python",
        )

    async def versions() -> tuple[str, str]:
        with ScratchDirectory("doctor") as scratch:
            hypervisor = await Hypervisor.open(connect, root=scratch.path)
            try:
                return await hypervisor.version()
            finally:
                await hypervisor.close()

    try:
        libvirt, qemu = asyncio.run(versions())
    except DeployError as error:
        install = "apt-get install libvirt-daemon libvirt-daemon-driver-qemu"
        return _missing("libvirt", error.problem, error.remedy or install)
    daemon = "no daemon is needed" if connect == EMBED else f"the daemon at {connect} answers"
    return _ok("libvirt", f"{libvirt} with QEMU {qemu}; {daemon}")


def _accelerator() -> HostCheck:
    from deploy.machine.accel import read_facts  # noqa: PLC0415 - slow

    try:
        facts = asyncio.run(read_facts())
    except CannotRunHere as error:
        return _warning("KVM", error.problem, error.remedy)
    if facts.device is None:
        return _warning("KVM", "no /dev/kvm: guests run under TCG (slower, but it works)")
    if facts.virtualization is False:
        return _warning("KVM", "/dev/kvm exists, but the CPU has no svm or vmx: guests use TCG")
    if facts.device.endswith("denied"):
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            user = "USER"
        return _warning(
            "KVM",
            "this user may not open /dev/kvm: guests run under TCG",
            f"usermod -aG kvm {user}, and log in again",
        )
    return _ok("KVM", "/dev/kvm can be opened; `trivisor up` boots a guest to test it")


@click.command()
@directory_option
@connect_option
@json_option
def doctor(directory: Path | None, connect: str, as_json: bool) -> int:
    """Check whether this host can run a node; say how to fix what is missing.

    Exits with 4 if a requirement is missing.
    """
    quiet_logs()
    results = []
    out = console()
    colours = {"ok": "green", "warning": "yellow", "missing": "red"}
    for check in _checks(layout_of(directory), connect):
        result = check()
        results.append(result)
        if not as_json:
            mark = f"[{colours[result.result]}]{result.result:7}[/]"
            out.print(f"{mark} {result.check}: ", end="")
            out.print(result.detail, markup=False)
            if result.remedy:
                out.print(f"        remedy: {result.remedy}", markup=False)
    missing = [result for result in results if result.result == "missing"]
    packages = " ".join(sorted({result.package for result in missing if result.package}))
    if as_json:
        print_json({"ok": not missing, "checks": msgspec.to_builtins(results)})
    elif missing:
        install = f": apt-get install {packages}" if packages else ""
        out.print(f"[red]{len(missing)} missing[/]{install}")
    else:
        out.print("[green]this host can run a node[/]")
    return ExitCode.CANNOT_RUN_HERE if missing else ExitCode.OK
