"""What guests that allow faults inside have besides: a network card's driver and an SSH server.

It is an archive of its own, which only an overlay that asks for it puts behind the base image: to
all other guests nobody can log in. Keys are each node's own, made by whoever makes the overlay.
"""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec

from guests.image import cpio

__all__ = ["ARCHIVE", "START", "Access", "access_entries", "key_entries"]

ARCHIVE = "access"
"""The archive's name, beside the base image's initramfs."""

START = Path(__file__).parent / "access.sh"
"""What init runs before the agent."""

_HOME = "root"
_PASSWD = f"root:x:0:0:root:/{_HOME}:/bin/sh\n"


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's keys: `host` is a private key in dropbear's own format, `client` the public key
    (an OpenSSH line) whose owner may log in as root.
    """

    host: bytes
    client: str


def access_entries() -> list[cpio.ArchiveEntry]:
    """What the archive holds beside Debian's files: nothing of a node's own."""
    return [
        cpio.file("etc/trivisor/access", START.read_bytes(), executable=True),
        cpio.file("etc/passwd", _PASSWD.encode()),
        cpio.file("etc/group", b"root:x:0:\n"),
        cpio.symlink("bin/sh", "busybox"),
    ]


def key_entries(access: Access) -> list[cpio.ArchiveEntry]:
    """A node's keys, where `access.sh` and dropbear look for them."""
    return [
        _secret("etc/trivisor/host_key", access.host),
        _secret(f"{_HOME}/.ssh/authorized_keys", f"{access.client}\n".encode()),
    ]


def _secret(name: str, body: bytes) -> cpio.ArchiveEntry:
    """A file that root alone may read: dropbear takes no other."""
    return cpio.ArchiveEntry(name, stat.S_IFREG | 0o600, body)
