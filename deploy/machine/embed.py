"""The directory of an embedded libvirt (no daemon): what must stand in it before it is opened."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import structlog

__all__ = ["keep_capabilities", "prepare_root"]

# Why each line is there (measured on Debian 12):
# - user, group: QEMU as the user that probes it. As another user it may not open /dev/kvm as the
#   probe could, so the probe's result never counts as valid, and every start probes again: 4 to
#   60 s in place of 0.4.
# - security_driver, remember_owner: the files are the node's own; no labels on them.
# - stdio_handler: there is no virtlogd without daemons.
# - namespaces: a mount namespace for each QEMU shields devices that our guests do not have.
# - cgroup_controllers: a container may have none; `priority.hold_back` sets the priority.
_CONF = """\
user = "+{uid}"
group = "+{gid}"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
"""

# Libvirt makes these when its driver starts, which it does once in a process: a process that ends a
# node and starts another in the same directory finds them gone.
_DIRECTORIES = (
    "cache/qemu/capabilities",
    "lib/qemu/channel/target",
    "lib/qemu/checkpoint",
    "lib/qemu/dump",
    "lib/qemu/nvram",
    "lib/qemu/ram",
    "lib/qemu/save",
    "lib/qemu/snapshot",
    "log/qemu",
    "run/qemu/autostarted",
    "run/qemu/dbus",
    "run/qemu/passt",
    "run/qemu/slirp",
)

_LONGEST_LOG = 1 << 20
"""Bytes; QEMU's log of a guest grows by its command line (4 kB) at each start."""

_CAPABILITIES = Path("cache/qemu/capabilities")

_log = structlog.get_logger(__name__)


def prepare_root(root: Path, *, capabilities: Path | None = None) -> None:
    """Make the directory `root` fit for `qemu:///embed?root=`; what is in it already stays.

    `capabilities` is a directory of ours that outlives nodes: what libvirt learnt of QEMU (4 s
    for a fresh root) is taken from there. Libvirt checks it against QEMU, kernel, CPU and KVM
    itself.  Raises OSError if the directory cannot be made.
    """
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    conf = root / "etc" / "qemu.conf"
    conf.parent.mkdir(exist_ok=True)
    conf.write_text(_CONF.format(uid=os.geteuid(), gid=os.getegid()))
    for log in (root / "log" / "qemu").glob("*.log"):
        if log.stat().st_size > _LONGEST_LOG:
            os.truncate(log, 0)
    if capabilities is not None and capabilities.is_dir():
        _copy(capabilities, root / _CAPABILITIES)


def keep_capabilities(root: Path, capabilities: Path) -> None:
    """Copy what libvirt learnt of QEMU from `root` to `capabilities`, for the next node's sake."""
    try:
        _copy(root / _CAPABILITIES, capabilities)
    except OSError as error:
        _log.info("what libvirt learnt of QEMU is not kept", error=str(error))


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in source.glob("*.xml"):
        # Aside and renamed: another node may read it at this moment.
        aside = target / f".{file.name}.{os.getpid()}"
        shutil.copy2(file, aside)
        aside.rename(target / file.name)
