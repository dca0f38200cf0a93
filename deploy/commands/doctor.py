"""``trivisor doctor``: check the host's requirements and say how to fix each missing one."""

from __future__ import annotations

import asyncio
import grp
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import click
import msgspec

from deploy.commands.options import connect_option, directory_option, json_option, layout_of
from deploy.errors import CannotRunHere, DeployError
from deploy.host.install import (
    BINDING,
    COMPILER,
    DRIVER,
    as_root,
    how_to_bind,
    how_to_install,
    how_to_pip,
    runs_systems_python,
)
from deploy.host.scratch import ScratchDirectory, find_abandoned
from deploy.machine.spec import EMBED
from deploy.node.configuration import check_paths
from deploy.node.records import Layout, Settings, cache_directory
from guests import compiled
from guests.image import ImageError, packages_at_hand
from guests.image.sources import debian_sources
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs

__all__ = ["HostCheck", "doctor", "host_checks"]

MEMORY_NEEDED = 3 * 300 << 20
"""Bytes for three guests of 128 MiB: 180 MiB were measured for one QEMU, plus a reserve."""
DISK_NEEDED = 1 << 30
"""Bytes for cached packages and images, and for the guests' snapshots."""

PROGRAMS = ("qemu-system-x86_64", "qemu-img")
IMAGE_PROGRAMS = ("mmdebstrap", "apt-config")
"""Programs that build the guest image."""
CAMPAIGN_LIBRARIES = frozenset({"duckdb", "jinja2", "matplotlib", "scipy", "statsmodels"})
"""Libraries that campaigns, reports and figures need, and a node does not."""
CPUINFO, KVM = Path("/proc/cpuinfo"), Path("/dev/kvm")
_SUBORDINATE = 65_536
"""User ids that mmdebstrap needs in a user namespace."""


class HostCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check.  Only ``missing`` keeps a node from running.

    ``installs``: requirements of ``deploy.host.install`` that the remedy installs, no more.
    """

    check: str
    result: Literal["ok", "warning", "missing"]
    detail: str
    remedy: str = ""
    installs: tuple[str, ...] = ()


def _ok(check: str, detail: str) -> HostCheck:
    return HostCheck(check=check, result="ok", detail=detail)


def _warning(check: str, detail: str, remedy: str = "") -> HostCheck:
    return HostCheck(check=check, result="warning", detail=detail, remedy=remedy)


def _missing(check: str, detail: str, remedy: str) -> HostCheck:
    return HostCheck(check=check, result="missing", detail=detail, remedy=remedy)


def _not_installed(check: str, detail: str, *installs: str) -> HostCheck:
    return HostCheck(
        check=check, result="missing", detail=detail, remedy=how_to_install(*installs),
        installs=installs,
    )  # fmt: skip


def host_checks(directory: Path | None, connect: str = EMBED) -> dict[str, Callable[[], HostCheck]]:
    """Return the checks for a node in this directory by their names, the fast ones first."""
    system = False  # whether systemd runs the node, as users of its own
    checks: dict[str, Callable[[], HostCheck]] = {
        "system": _system,
        "python": _python,
        "libraries": _libraries,
        "compiled modules": _compiled,
    }
    for program in PROGRAMS:
        checks[program] = partial(_program, program)
    try:
        layout, cache = layout_of(directory), cache_directory()
    except CommandError as error:
        checks["home directory"] = partial(_missing, "home directory", str(error), error.remedy)
    else:
        system = layout.system
        if not system or os.access(layout.directory, os.W_OK):
            checks["state directory"] = lambda: _directory(
                "state directory", layout.directory, option="--dir"
            )
        checks["guests' users"] = lambda: _isolation(layout.directory, connect)
        checks["cache"] = lambda: _directory("cache", cache, option="$TRIVISOR_CACHE")
        checks["socket paths"] = lambda: _socket_paths(layout)
        at_hand = packages_at_hand(cache / "images")
        image: dict[str, Callable[[], HostCheck]] = {
            program: partial(_program, program) for program in IMAGE_PROGRAMS
        }
        if os.geteuid() != 0:
            image["user namespace"] = _user_namespace
        image["image sources"] = _image_sources
        for name, check in image.items():
            checks[name] = partial(_for_image, check, at_hand=at_hand)
    return checks | {
        "account libvirt-qemu": partial(_for_own_node, _account, system),
        "memory": _memory,
        "leftovers": _leftovers,
        "port": _port,
        "libvirt": partial(_for_own_node, partial(_libvirt, connect), system),
        "KVM": _accelerator,
    }


def _isolation(directory: Path, connect: str) -> HostCheck:
    """Report whether a guest that breaks out of its QEMU would reach the others'."""
    from deploy.machine.account import obstacle  # noqa: PLC0415

    why = obstacle(directory, embedded=connect == EMBED)
    if not why:
        return _ok("guests' users", "each guest's QEMU runs as a user of its own")
    if os.geteuid() != 0:
        return _ok("guests' users", why)
    return _warning("guests' users", why, "see docs/security.md")


def _system() -> HostCheck:
    detail = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return _missing("system", detail, "use a Linux host on x86_64")
    return _ok("system", f"{detail}, {os.cpu_count()} processors")


def _python() -> HostCheck:
    return _ok("python", f"{platform.python_version()} {sys.executable}")


def _compiled() -> HostCheck:
    check = "compiled modules"
    if compiled.COMPILED:
        return _ok(check, "voter and agents run them")
    remedy = "" if compiled.pure() else "; in a checkout, `./run setup` makes them"
    return _ok(check, f"voter and agents run pure Python: {compiled.REASON}{remedy}")


def _libraries() -> HostCheck:
    """Compare what is installed with what Trivisor's metadata names; libvirt's is checked apart."""
    check = "libraries"
    try:
        wanted = [text for text in requires("trivisor") or [] if "extra ==" not in text]
    except PackageNotFoundError:
        return _ok(check, "not checked: run from its sources")
    missing = []
    for text in wanted:
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
        try:
            version(name)
        except PackageNotFoundError:
            missing += [name] if name != "libvirt-python" else []
    if not missing:
        return _ok(check, "all are installed")
    detail, remedy = f"not installed: {', '.join(missing)}", how_to_pip(*missing)
    if CAMPAIGN_LIBRARIES.issuperset(missing):
        return _warning(check, f"{detail}; campaigns and figures need them", remedy)
    return _missing(check, detail, remedy)


def _program(program: str) -> HostCheck:
    path = shutil.which(program)
    if path is not None:
        return _ok(program, path)
    return _not_installed(program, "not installed", program)


def _for_image(check: Callable[[], HostCheck], *, at_hand: bool) -> HostCheck:
    """Check what the image build needs: only a warning if Debian's packages are at hand."""
    found = check()
    if found.result == "missing" and at_hand:
        return msgspec.structs.replace(found, result="warning")
    return found


def _for_own_node(check: Callable[[], HostCheck], system: bool) -> HostCheck:
    """Check what only a node needs that this user starts: a warning if systemd runs the node."""
    found = check()
    if found.result == "missing" and system:
        detail = f"{found.detail} (the node that systemd runs does not need it)"
        return msgspec.structs.replace(found, result="warning", detail=detail, installs=())
    return found


def _image_sources() -> HostCheck:
    check = "image sources"
    try:
        debian_sources()
    except ImageError as error:
        return _missing(check, str(error), error.remedy)
    return _ok(check, "apt has a source of Debian's packages")


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


def _user_namespace() -> HostCheck:
    """Check what mmdebstrap needs to build the guest image without root."""
    check, need = "user namespace", "mmdebstrap needs it to build the guest image without root"
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        detail = f"user {os.geteuid()} is not in /etc/passwd; {need}"
        return _missing(check, detail, "run this as a user who is, or as root")
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            detail = f"{program} is not installed; {need}"
            return _not_installed(check, detail, program)
    files = [Path("/etc/subuid"), Path("/etc/subgid")]
    if not all(_has_ids(path, user) for path in files):
        first = max([100_000, *(end for path in files for _, _, end in _ranges(path))])
        ids = f"{first}-{first + _SUBORDINATE - 1}"
        detail = f"{user} has no {_SUBORDINATE} ids in {files[0]} and {files[1]}; {need}"
        command = f"usermod --add-subuids {ids} --add-subgids {ids} {user}"
        return _missing(check, detail, as_root(command))
    if shutil.which("mmdebstrap") is None:
        return _ok(check, "ids and programs are there")
    words = ["mmdebstrap", "--unshare-helper", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        detail = f"`{' '.join(words)}` failed: {done.stderr.strip()[-200:]}"
        command = as_root("sysctl user.max_user_namespaces=10000")
        return _missing(check, detail, f"run this as root, or allow user namespaces: {command}")
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
            if _unit_listens(":8080"):
                return _ok("port", "127.0.0.1:8080 is in use by trivisor.service")
            remedy = "use `trivisor up --http HOST:PORT`, or end the program that uses the port"
            return _warning("port", f"127.0.0.1:8080: {error.strerror}", remedy)
    return _ok("port", "127.0.0.1:8080 is free")


def _unit_listens(port: str) -> bool:
    """Return whether the packaged node's HTTP socket is active and has this port."""
    words = ["systemctl", "show", "--property=ActiveState,Listen", "trivisor-http.socket"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "ActiveState=active" in done.stdout and f"{port} (Stream)" in done.stdout


def _libvirt(connect: str) -> HostCheck:
    """Open libvirt, as a node does."""
    try:
        from deploy.machine.hypervisor import Hypervisor  # noqa: PLC0415 - may not be installed
    except ImportError as error:
        detail = f"its Python binding cannot be imported: {error}"
        needed = BINDING if runs_systems_python() else COMPILER
        missing = _missing("libvirt", detail, how_to_bind())
        return msgspec.structs.replace(missing, installs=(needed, DRIVER))

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
        if error.remedy:
            return _missing("libvirt", error.problem, error.remedy)
        return _not_installed("libvirt", error.problem, DRIVER)
    daemon = "no daemon is needed" if connect == EMBED else f"the daemon at {connect} answers"
    return _ok("libvirt", f"{libvirt} with QEMU {qemu}; {daemon}")


def _accelerator() -> HostCheck:
    from deploy.machine.accel import read_facts  # noqa: PLC0415 - slow

    try:
        facts = asyncio.run(read_facts())
    except CannotRunHere as error:
        return _warning("KVM", error.problem, error.remedy)
    if facts.device is None:
        detail = "no /dev/kvm: guests run under TCG (slower, but it works)"
        return _warning("KVM", detail, _how_to_enable_kvm(facts.virtualization is not False))
    if facts.virtualization is False:
        detail = "/dev/kvm exists, but the CPU has no svm or vmx: guests use TCG"
        return _warning("KVM", detail, _how_to_enable_kvm(False))
    if facts.device.endswith("denied"):
        detail = "this user may not open /dev/kvm: guests run under TCG"
        return _warning("KVM", detail, _how_to_open(KVM))
    return _ok("KVM", "/dev/kvm can be opened; `trivisor up` boots a guest to test it")


def _how_to_enable_kvm(virtualization: bool) -> str:
    """Return how to get a working /dev/kvm.  ``virtualization``: the CPU has svm or vmx."""
    words = set(CPUINFO.read_text().split())
    module = "kvm_amd" if words & {"svm", "AuthenticAMD"} else "kvm_intel"
    if virtualization:
        return as_root(f"modprobe {module}")
    if "hypervisor" not in words:
        return "switch virtualization on in the firmware (Intel VT-x, AMD-V or SVM)"
    return (
        f"this host is a virtual machine: switch nested virtualization on in the host below it "
        f"(`echo options {module} nested=1 >/etc/modprobe.d/kvm-nested.conf && "
        f"modprobe -r {module} && modprobe {module}`, with no VM running), and give this one that "
        "host's CPU (libvirt: <cpu mode='host-passthrough'/>)"
    )


def _how_to_open(device: Path) -> str:
    """Return the command that lets this user open a device of a group."""
    status = device.stat()
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return "run this as a user in /etc/passwd, and give the device to the group kvm"
    if group.gr_gid == 0 or status.st_mode & 0o060 != 0o060:
        command = as_root(f"chgrp kvm {device} && chmod 660 {device}")
        return f"{command}; then: {as_root(f'usermod -aG kvm {user}')}, and log in again"
    if user in group.gr_mem:
        return f"log in again: {user} is in the group {group.gr_name} since this session began"
    return f"{as_root(f'usermod -aG {group.gr_name} {user}')}, and log in again"


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
    for check in host_checks(directory, connect).values():
        result = check()
        results.append(result)
        if not as_json:
            mark = f"[{colours[result.result]}]{result.result:7}[/]"
            out.print(f"{mark} {result.check}: ", end="")
            out.print(result.detail, markup=False)
            if result.remedy:
                out.print(f"        remedy: {result.remedy}", markup=False)
    missing = [result for result in results if result.result == "missing"]
    installs = dict.fromkeys(name for result in missing for name in result.installs)
    if as_json:
        print_json({"ok": not missing, "checks": msgspec.to_builtins(results)})
    elif missing:
        out.print(f"[red]{len(missing)} missing[/]", end=": " if installs else "\n")
        if installs:
            out.print(how_to_install(*installs), markup=False)
    else:
        out.print("[green]this host can run a node[/]")
    return ExitCode.CANNOT_RUN_HERE if missing else ExitCode.OK
