"""The user that the QEMU of a guest runs as.

A guest that breaks out of its virtual machine has the rights of its QEMU.  If that were root, or
one user for all guests, it would reach the journal and the other guests' memory and links.  So,
where the host allows it, each QEMU has a user of its own, without any account: its number follows
from the guest's uuid, so nothing is allocated or recorded, and two nodes do not share one.  All
QEMUs of a node have one group, which may pass through the node's directory and read the image, and
nothing else.  QEMU's seccomp filter (libvirt's ``seccomp_sandbox``) forbids it to start programs
and to change its user.

Libvirt gives a guest's files to its user, also kernel and initrd, which are those of all guests:
they are taken back, and its sockets are closed to the group, before the guest runs (``confine``).
"""

from __future__ import annotations

import contextlib
import grp
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import structlog

from deploy.machine.spec import GuestSpec, NodeSpec

__all__ = ["Account", "account_of", "confine", "obstacle", "open_to_guests", "run_as", "why_shared"]

_log = structlog.get_logger(__name__)

PROC = Path("/proc/self")
"""Where the kernel describes this process."""

_FIRST = 0x7000_0000
_MASK = 0x0FFF_FFFF
"""0x70000000 to 0x7fffffff: the range that no distribution and no container manager assigns."""

_CAPABILITIES = {
    0: "CHOWN", 1: "DAC_OVERRIDE", 3: "FOWNER", 5: "KILL", 6: "SETGID", 7: "SETUID",
    19: "SYS_PTRACE", 23: "SYS_NICE",
}  # fmt: skip
"""What the supervisor needs to run, watch and end processes of other users, by number."""


class Account(NamedTuple):
    """A user and a group, by number; ``own``: no other guest has that user."""

    uid: int
    gid: int
    own: bool = False

    @property
    def label(self) -> str:
        """How libvirt writes it."""
        return f"+{self.uid}:+{self.gid}"


def _number(uuid: str) -> int:
    return _FIRST | (UUID(uuid).int & _MASK)


def account_of(node: NodeSpec, guest: GuestSpec) -> Account | None:
    """Return the account of a guest's QEMU; None if it is that of libvirt in this process.

    A system libvirt runs it as this process's user, and otherwise as one that may not have access
    to the node's directory.
    """
    directory = Path(node.directory)
    if urlsplit(node.uri).path.endswith("/system"):
        shared = directory.exists() and directory.stat().st_mode & stat.S_ISGID
        return Account(os.geteuid(), directory.stat().st_gid if shared else os.getegid())
    if why_shared(node):
        return None
    return Account(_number(guest.uuid), _group(node), own=True)


def _group(node: NodeSpec) -> int:
    """Return the group of a node's QEMUs: that of /dev/kvm, if they need it to open that."""
    if node.guests[0].accel == "kvm":
        with contextlib.suppress(KeyError):
            return grp.getgrnam("kvm").gr_gid
    return _number(node.uuid)


def why_shared(node: NodeSpec) -> str:
    """Return why the guests of a node do not each have a user of their own; empty if they have."""
    image = Path(node.guests[0].kernel)  # it may be elsewhere
    return obstacle(Path(node.directory), image, embedded=node.embedded)


def obstacle(directory: Path, image: Path | None = None, *, embedded: bool) -> str:
    """Return why the guests of a node in a directory would share a user; empty if they would not.

    ``image`` is a file of the guest image, if that is known.
    """
    if not embedded:
        return f"libvirt's daemon runs all guests as one user, uid {os.geteuid()}"
    if os.geteuid() != 0:
        return f"the supervisor is not root: all guests run as its user, uid {os.geteuid()}"
    if missing := _missing_capabilities():
        return f"the supervisor has no CAP_{', CAP_'.join(missing)}: all guests run as root"
    if not _has_users():
        return "this container has no user numbers above 0x70000000: all guests run as root"
    directory = directory.resolve()
    elsewhere = image.resolve().parents if image is not None else ()
    others = (each for each in elsewhere if directory not in (each, *each.parents))
    for above in (*directory.parents, *others):
        with contextlib.suppress(OSError):
            if not above.stat().st_mode & stat.S_IXOTH:
                return (
                    f"{above} is closed to other users: all guests run as root; use a directory "
                    "that can be reached, below /var/lib for example (--dir)"
                )
    return ""


def _missing_capabilities() -> list[str]:
    status = (PROC / "status").read_text(encoding="ascii")
    held = int((re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE) or ["", "0"])[1], 16)
    return [name for number, name in _CAPABILITIES.items() if not held >> number & 1]


def _has_users() -> bool:
    """Return whether this user namespace has the numbers of the guests' users."""
    for line in (PROC / "uid_map").read_text(encoding="ascii").splitlines():
        inside, _, count = map(int, line.split())
        if inside <= _FIRST and inside + count > _FIRST + _MASK:
            return True
    return False


def open_to_guests(node: NodeSpec) -> None:
    """Let the QEMUs of a node reach what they need in its directory.  Raises OSError."""
    directory = Path(node.directory)
    mode = stat.S_IMODE(directory.stat().st_mode)
    if urlsplit(node.uri).path.endswith("/system"):
        # The daemon makes the sockets as root, writable to their group: with this bit that is the
        # directory's, so this user can connect.  The directory stays closed.
        if not mode & stat.S_ISGID:
            os.chown(directory, -1, os.getegid())
            directory.chmod(mode | stat.S_ISGID)
    elif why := why_shared(node):
        _log.info("guests share a user", why=why)
    else:
        Path(node.root).mkdir(mode=0o700, exist_ok=True)
        for path in (directory, Path(node.root)):
            _admit(path, _group(node))
        for initrd in {Path(guest.initrd) for guest in node.guests}:
            mode = stat.S_IMODE(initrd.stat().st_mode)
            if not mode & stat.S_IROTH:
                # It holds a secret key.  Its directory keeps others out from now on, not its mode:
                # libvirt gives the file to one guest after the other, and all of them read it.
                initrd.parent.chmod(0o700)
                _admit(initrd.parent, _group(node))
                initrd.chmod(mode | 0o044)


def _admit(directory: Path, group: int) -> None:
    """Let a group pass through a directory."""
    os.chown(directory, -1, group)
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXGRP)


def confine(guest: GuestSpec, account: Account | None) -> None:
    """Take from a guest's own user, whose QEMU has started paused, what it does not need.

    Raises OSError.
    """
    if account is None or not account.own:
        return
    for path in (guest.kernel, guest.initrd):
        os.chown(path, os.geteuid(), os.getegid())
    for path in (guest.bound_link, guest.console_socket):
        Path(path).chmod(0o700)
    for place in Path(guest.directory, "r", "lib", "qemu").glob(f"domain-*-{guest.domain}"):
        place.chmod(0o700)


def run_as(account: Account, *command: str) -> None:
    """Run a program as a guest's user.  Raises OSError, subprocess.CalledProcessError."""
    program = shutil.which(command[0]) or command[0]
    subprocess.run(
        [program, *command[1:]], user=account.uid, group=account.gid, extra_groups=[],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
