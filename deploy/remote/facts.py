"""Facts about a host, collected before a deployment, and what in them prevents one."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from deploy.errors import CannotRunHere, DeployError

__all__ = ["DROPIN", "SCRIPT", "Facts", "HostFinding", "examine", "parse_facts"]

SCRIPT = Path(__file__).with_name("host.sh")
"""What runs on the host."""
DROPIN = "etc/systemd/system/trivisor-http.socket.d/trivisor-deploy.conf"
"""The drop-in for another HTTP address, on the host below /."""
RESERVE = 1 << 30
"""Bytes that must be free besides the package: Debian packages, the guests' snapshots."""
GUEST_OVERHEAD = 64
"""MiB that a guest's QEMU needs besides the guest's memory: 52 were measured."""
PYTHON = "3.11"
"""The Python that the package is made for: Debian 12's."""
_HOST_PACKAGES = "qemu-system-x86 qemu-utils libvirt-daemon-driver-qemu python3-libvirt"


class HostFinding(NamedTuple):
    """Something about the host that keeps it from running a node well."""

    problem: str
    remedy: str


class Facts(NamedTuple):
    """What the host's script printed: the values of each name, in their order."""

    values: dict[str, list[str]]

    def get(self, name: str) -> str:
        """Return the first value of a name; empty without one."""
        return next(iter(self.values.get(name, [])), "")

    def number(self, name: str) -> int:
        """Return the number of a name; 0 without one."""
        text = self.get(name)
        return int(text) if text.isdecimal() else 0

    @property
    def installed(self) -> str | None:
        """The installed package's version; None if it is not completely installed."""
        text = self.get("package")
        return text[3:] if text.startswith("ii ") else None

    @property
    def known(self) -> bool:
        """Whether dpkg knows the package: installed, broken, or removed but not purged."""
        return self.get("package") != ""

    @property
    def deployed(self) -> str | None:
        """The SHA-256 of the package that was deployed last."""
        for line in self.values.get("record", []):
            if line.startswith("package "):
                return line.removeprefix("package ")
        return None

    @property
    def active(self) -> bool:
        """Whether the node runs, or starts."""
        return self.get("node_state") in ("active", "activating", "reloading")

    def file(self, name: str) -> str | None:
        """Return the text of a file of the host; None without one.  Raises DeployError."""
        if name in self.values.get("unreadable", []):
            raise DeployError(
                f"{self.get('user')} may not read /{name}",
                remedy="deploy as root, or as a user with sudo",
                error_code="TV0759",
            )
        for line in self.values.get("file", []):
            path, _, content = line.partition(" ")
            if path == name:
                return base64.b64decode(content).decode(errors="replace")
        return None

    def sums(self) -> dict[str, str]:
        """Return the SHA-256 of each user-supplied service on the host, by path."""
        pairs = (line.rpartition(" ") for line in self.values.get("sum", []))
        return {path: digest for path, _, digest in pairs}


def parse_facts(output: str) -> Facts:
    """Return the facts of the script's output.  Raises DeployError if it is not complete."""
    values: dict[str, list[str]] = defaultdict(list)
    for line in output.splitlines():
        if line.startswith("@"):
            name, _, value = line[1:].partition(" ")
            values[name].append(value.strip())
    if "end" not in values:
        shown = " ".join(output.split())[-300:] or "nothing"
        raise DeployError(
            f"the host's shell does not run scripts as expected; it printed {shown}",
            remedy="deploy as a user whose login shell is sh, bash, zsh or similar",
            error_code="TV0759",
        )
    return Facts(dict(values))


# ---- judgement


def examine(
    facts: Facts, *, guests: int, memory: int, accel: str, http: str, space: int
) -> list[HostFinding]:
    """Return what a user should know about the host; raise CannotRunHere if no node can run there.

    ``memory``: MiB of each guest.  ``space``: bytes that the package needs; 0 if it is there.
    """
    _require_debian(facts)
    _require_systemd(facts)
    broken = facts.values.get("broken")
    if broken:
        raise CannotRunHere(
            f"dpkg on the host is in a broken state: {'; '.join(broken)[:300]}",
            remedy="repair it there: `dpkg --configure -a`, then `apt-get install -f`",
            error_code="TV0760",
        )
    _require_space(facts, space)
    _require_port(facts, http)
    return [*_memory(facts, guests, memory), *_virtualization(facts, accel), *_overrides(facts)]


def _require_debian(facts: Facts) -> None:
    name, _, version = facts.get("os").partition(" ")
    shown = facts.get("os_name") or facts.get("os") or "an unknown system"
    if name != "debian" or version != "12" or "apt" not in facts.values:
        raise CannotRunHere(
            f"the host runs {shown}, and the package is for Debian 12",
            remedy="use a host with Debian 12; or install there by hand Python "
            f"{PYTHON}, what Debian calls {_HOST_PACKAGES}, and the wheel of `./run package` "
            "(pip install), and start a node with `trivisor up`",
            error_code="TV0759",
        )
    if facts.get("arch") not in ("amd64", "x86_64"):
        raise CannotRunHere(
            f"the host's architecture is {facts.get('arch')}, and the package is for amd64",
            remedy="use a host with an x86-64 processor and Debian's amd64",
            error_code="TV0759",
        )
    python = facts.get("python")
    if python not in ("", PYTHON):
        raise CannotRunHere(
            f"`python3` on the host is Python {python}, and the package is for Debian's {PYTHON}",
            remedy="make /usr/bin/python3 Debian's own again: "
            "`apt-get install --reinstall python3-minimal`",
            error_code="TV0759",
        )


def _require_systemd(facts: Facts) -> None:
    if facts.get("pid1") != "systemd" or "systemd" not in facts.values:
        raise CannotRunHere(
            f"the host is not run by systemd: process 1 is {facts.get('pid1') or 'unknown'} (is it "
            "a chroot, or a container?)",
            remedy="use a host with systemd; or start a node there without it, by `trivisor up`",
            error_code="TV0759",
        )


def _require_space(facts: Facts, space: int) -> None:
    """Require room for the package on each file system, for all directories that are on it."""
    if not space:
        return
    free: dict[str, int] = {}
    needed: dict[str, int] = {}
    for line in facts.values.get("disk", []):
        place, _, rest = line.partition(" ")
        blocks, _, mount = rest.partition(" ")
        if blocks.isdecimal():
            free[mount] = int(blocks) << 10
            share = {"/usr": space, "/var/lib": RESERVE, "/var/tmp": space}
            needed[mount] = needed.get(mount, 0) + share[place]
    for mount, size in needed.items():
        if free[mount] < size:
            raise CannotRunHere(
                f"the host has {free[mount] >> 20} MiB free on {mount}, and {size >> 20} MiB are "
                "needed",
                remedy=f"make room there; `du -xh --max-depth=2 {mount} | sort -h` shows what "
                "takes it, `apt-get clean` deletes downloaded packages",
                error_code="TV0761",
            )


def _require_port(facts: Facts, http: str) -> None:
    """Require that nobody else listens on the HTTP address."""
    host, _, port = http.rpartition(":")
    host = host.strip("[]")
    if facts.get("socket_state") == "active" and any(
        each.rpartition(":")[2] == port for each in facts.get("listen").replace("(", " ").split()
    ):
        return  # the node's own socket
    for text in facts.values.get("listening", []):
        address, _, number = text.partition(":")
        if port != "0" and int(number, 16) == int(port) and _overlap(_kernel_ip(address), host):
            raise CannotRunHere(
                f"port {port} of the host is in use{_owner(facts, port)}",
                remedy="choose another address with --http HOST:PORT, or end that program; "
                f"`ss -ltnp 'sport = :{port}'` shows it",
                error_code="TV0762",
            )


def _owner(facts: Facts, port: str) -> str:
    for line in facts.values.get("listener", []):
        address, _, program = line.partition(" ")
        if address.rpartition(":")[2] == port and '"' in program:
            return f" by {program.split(chr(34))[1]}"
    return ""


def _kernel_ip(text: str) -> str:
    """Return the address that the kernel prints in hexadecimal words of the host's byte order."""
    raw = binascii.unhexlify(text)
    words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _overlap(bound: str, wanted: str) -> bool:
    try:
        ours = ipaddress.ip_address(wanted)
    except ValueError:
        return True  # a name: it may be any address
    theirs = ipaddress.ip_address(bound)
    return ours == theirs or theirs.is_unspecified or ours.is_unspecified


def _memory(facts: Facts, guests: int, memory: int) -> list[HostFinding]:
    total, available = facts.number("memory_total") >> 10, facts.number("memory_available") >> 10
    needed = guests * (memory + GUEST_OVERHEAD)
    if total < needed:
        raise CannotRunHere(
            f"the host has {total} MiB of memory, and {guests} guests of {memory} MiB need "
            f"{needed} MiB",
            remedy="use --memory or --guests with less, or a host with more memory",
            error_code="TV0761",
        )
    if available < needed and not facts.active:
        return [
            HostFinding(
                f"{available} of {total} MiB of the host's memory are available, and {guests} "
                f"guests need up to {needed} MiB",
                "end other programs there, or use --memory with less",
            )
        ]
    return []


def _virtualization(facts: Facts, accel: str) -> list[HostFinding]:
    """Report why guests will run under TCG.  Raises CannotRunHere if KVM is required."""
    if accel == "tcg" or ("kvm" in facts.values and "cpu_virtualization" in facts.values):
        return []
    kind = facts.get("virtual")
    module = "kvm_intel" if facts.get("cpu") == "intel" else "kvm_amd"
    if kind in ("systemd-nspawn", "lxc", "lxc-libvirt", "docker", "podman", "openvz", "wsl"):
        problem = f"the host is a container ({kind}) without /dev/kvm"
        remedy = "give the container the device /dev/kvm, and its users the right to open it"
    elif kind not in ("", "none"):
        problem = f"the host is a virtual machine ({kind}) without nested virtualization"
        remedy = (
            f"enable it on the machine that runs this host: `modprobe -r {module} && modprobe "
            f"{module} nested=1`, and give this VM that processor (QEMU: -cpu host; libvirt: "
            "<cpu mode='host-passthrough'/>)"
        )
    elif "cpu_virtualization" not in facts.values:
        problem = "the host's processor offers no virtualization (neither svm nor vmx)"
        remedy = "enable it in the firmware (AMD-V/SVM or Intel VT-x)"
    else:
        problem = "the host has no /dev/kvm"
        remedy = f"load the kernel module: `modprobe {module}`"
    if accel == "kvm":
        raise CannotRunHere(
            f"{problem}, and --accel kvm needs KVM",
            remedy=f"{remedy}; or use --accel auto",
            error_code="TV0102",
        )
    return [HostFinding(f"{problem}: guests will run under TCG, slower", remedy)]


def _overrides(facts: Facts) -> list[HostFinding]:
    """Report what an administrator has added to the units; it stays as it is."""
    return [
        HostFinding(f"/{path} changes a unit of the package, and stays as it is", "")
        for path in facts.values.get("override", [])
        if path != DROPIN
    ]
