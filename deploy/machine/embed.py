"""The directory of an embedded libvirt (no daemon), prepared before libvirt is opened."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
from pathlib import Path
from urllib.parse import quote

import structlog

from deploy.errors import HypervisorFailed
from deploy.host.files import SOCKET_PATH_LIMIT, short_link, write_whole
from deploy.machine.spec import EMBED

__all__ = ["carried_root", "check_owner", "embed_uri", "keep_capabilities", "prepare_root"]

# The reason for each line (measured on Debian 12):
# - user, group: QEMU runs as the user that probes it.  Another user may not be able to open
#   /dev/kvm as the probe did; libvirt then probes again at every start: 4 to 60 s, not 0.4.
# - security_driver, remember_owner: the files belong to the node and need no labels.
# - stdio_handler: without daemons there is no virtlogd.
# - namespaces: a mount namespace for each QEMU protects devices that our guests do not have.
# - cgroup_controllers: a container may have none; `priority.set_nice` sets the priority.
_CONF = """\
user = "+{uid}"
group = "+{gid}"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
"""

# Libvirt makes these once in a process, when its driver starts.  They would be missing for a second
# node that the process starts in the same directory.
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

_LONGEST_SOCKET = "/lib/qemu/domain-99999-guest678/monitor.sock"
"""The number counts the starts of one process; a guest's name has 8 characters at most."""

_CAPABILITIES = Path("cache/qemu/capabilities")

_log = structlog.get_logger(__name__)

_checked: set[Path] = set()  # the directory that this process's libvirt was seen to use


def carried_root(root: Path) -> Path:
    """Return the path of an existing `root` for libvirt: itself, or a short link to it.

    Libvirt 9 asks QEMU for its capabilities through a socket below its root, and does not escape
    "," and "=" in that option; and its monitor sockets have long names.  All else of a node has its
    true path.  Raises CannotRunHere if there can be no link.
    """
    length = len(os.fsencode(root)) + len(_LONGEST_SOCKET)
    if length <= SOCKET_PATH_LIMIT and not {",", "="} & set(str(root)):
        return root
    return short_link(root)


def embed_uri(root: Path) -> str:
    """Return the URI of the embedded libvirt in this directory."""
    return f"{EMBED}?root={quote(os.fsencode(root), safe='/')}"


def check_owner(root: Path) -> None:
    """Raise HypervisorFailed unless this process's libvirt, just opened, uses this directory.

    A URI that libvirt reads differently would put the node's files elsewhere.  A process's libvirt
    keeps its directory, and writes its pid only when the process opens it first.
    """
    if root in _checked:
        return
    file = root / "run/qemu/driver.pid"
    try:
        owner = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise HypervisorFailed(
            f"libvirt does not use {root}: {error}", error_code="TV0118"
        ) from error
    if owner != str(os.getpid()):
        raise HypervisorFailed(
            f"libvirt does not use {root}: {file} names process {owner}", error_code="TV0118"
        )
    _checked.add(root)


def prepare_root(root: Path, *, capabilities: Path | None = None) -> None:
    """Prepare the directory `root` for `qemu:///embed?root=`; keep what it contains.

    `capabilities` is a cache of what libvirt found out about QEMU, which takes 4 s for a new root.
    Libvirt itself compares it with QEMU, kernel, CPU and KVM.  Raises OSError if the directory
    cannot be made.
    """
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(root.stat().st_mode) != 0o710:  # with that the guests' users pass through it
        root.chmod(0o700)
    conf = root / "etc" / "qemu.conf"
    conf.parent.mkdir(exist_ok=True)
    write_whole(conf, _CONF.format(uid=os.geteuid(), gid=os.getegid()).encode())
    for log in (root / "log" / "qemu").glob("*.log"):
        if log.stat().st_size > _LONGEST_LOG:
            os.truncate(log, 0)
    if capabilities is not None and capabilities.is_dir():
        try:
            _copy(capabilities, root / _CAPABILITIES)
        except OSError as error:
            _log.warning(
                "cannot use the cache of QEMU's capabilities", error=str(error), error_code="TV0123"
            )


def keep_capabilities(root: Path, capabilities: Path) -> None:
    """Copy what libvirt found out about QEMU from `root` to the cache, for the next node."""
    try:
        _copy(root / _CAPABILITIES, capabilities)
    except OSError as error:
        _log.info("cannot cache QEMU's capabilities", error=str(error))


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in source.glob("*.xml"):
        if (target / file.name).exists() and filecmp.cmp(file, target / file.name):
            continue  # so that this also succeeds on a full disk
        # Renamed into place: another node may read it at this moment.
        temporary = target / f".{file.name}.{os.getpid()}"
        shutil.copy2(file, temporary)
        temporary.rename(target / file.name)
