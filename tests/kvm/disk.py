"""The disk of the KVM test host: Debian 12 with systemd, Trivisor installed by the README.

Everything expensive runs natively, in a root directory (``tests.vagrant.pristine``): the packages,
``./run setup`` and the guest image.  The root then becomes the file system of a virtual machine.
Under emulation the same would take hours.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.project.tree import ROOT, tracked
from tests.vagrant.pristine import PristineRoot, make_root

__all__ = ["Disk", "INSIDE", "copy_project", "make_disk"]

INSIDE = "root/trivisor"
"""The project's directory on the test host, below /."""
SIZE_MIB = 12_288
"""Of the file system.  The file is sparse."""
SETUP_SECONDS = 3600
"""Seconds for each step: a busy host and a slow mirror, not a hang."""

_PACKAGES = (
    "linux-image-amd64",  # with kvm_amd, which the cloud kernel has not
    "systemd-sysv", "dbus", "udev", "openssh-server", "git", "python3", "procps", "iproute2",
    "curl",
)  # fmt: skip

_FILES = {
    "etc/hostname": "trivisor-kvm\n",
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 1\n",
    "etc/initramfs-tools/conf.d/trivisor": "MODULES=list\nCOMPRESS=lz4\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n",
    "etc/modules-load.d/trivisor.conf": "kvm_amd\n",
    "etc/systemd/network/50-user.network": (
        "[Match]\nName=en*\n\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
    ),
    # Under emulation a key exchange can take longer than the default two minutes.
    "etc/ssh/sshd_config.d/trivisor.conf": "PermitRootLogin prohibit-password\nUseDNS no\n"
    "LoginGraceTime 0\n",
}
"""Files of the test host, below /."""

_UNITS_OFF = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "haproxy.service", "etcd.service", "fstrim.timer",
    "systemd-timesyncd.service",
)  # fmt: skip
"""Units that would take processor time from the test."""


class Disk(NamedTuple):
    """A file with the root file system, what boots it, and the key for its ssh server."""

    image: Path
    kernel: Path
    initrd: Path
    key: Path


def make_disk(cache: Path, report: Callable[[str], None]) -> Disk:
    """Return the disk in `cache`, made anew if what it is made from has changed.

    Raises subprocess.CalledProcessError, RuntimeError with the output's end if a step fails.
    """
    directory = cache / _key()
    disk = Disk(*(directory / name for name in ("disk.img", "vmlinuz", "initrd", "key")))
    if disk.image.exists():
        report(f"the test host's disk is in {directory}")
        return disk
    shutil.rmtree(cache, ignore_errors=True)
    directory.mkdir(parents=True)
    report("Debian packages (mmdebstrap)")
    root = make_root(directory / "root", directory / "mmdebstrap.log", seconds=SETUP_SECONDS)
    _run(root, report, "apt-get", "-q", "update")
    for name, text in _FILES.items():
        path = root.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _run(
        root, report, "env", "DEBIAN_FRONTEND=noninteractive",
        "apt-get", "-q", "install", "-y", "--no-install-recommends", *_PACKAGES,
    )  # fmt: skip
    (root.path / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    _local("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kvm test", "-f", str(disk.key))
    shutil.copyfile(f"{disk.key}.pub", root.path / "root/.ssh/authorized_keys")
    hostkey = root.path / "etc/ssh/ssh_host_ed25519_key.pub"
    shutil.copyfile(hostkey, directory / "hostkey.pub")
    _run(root, report, "systemctl", "enable", "systemd-networkd.service", "ssh.service")
    _run(root, report, "systemctl", "mask", *_UNITS_OFF)
    copy_project(root.path / INSIDE)
    _run(root, report, f"/{INSIDE}/run", "setup")
    _run(
        root, report, "bash", "-c",
        f"cd /{INSIDE} && .venv/bin/python -m guests.image --cache ~/.cache/trivisor/images",
    )  # fmt: skip
    boot = root.path / "boot"
    for pattern, path in (("vmlinuz-*", disk.kernel), ("initrd.img-*", disk.initrd)):
        shutil.copyfile(sorted(boot.glob(pattern))[-1], path)
    _run(root, report, "apt-get", "clean")
    report("making the file system")
    making = disk.image.with_suffix(".part")
    with making.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    _local("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(root.path), str(making))
    making.rename(disk.image)
    shutil.rmtree(root.path)
    return disk


def copy_project(target: Path) -> None:
    """Copy the files that git tracks, or would track, to a directory."""
    for path in tracked():
        place = target / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def _key() -> str:
    """Return a name that changes with what the disk is made from, the project's code apart."""
    digest = hashlib.sha256()
    paths = [ROOT / "run", ROOT / "pyproject.toml", Path(__file__)]
    for path in sorted([*paths, *(ROOT / "locks").iterdir(), *(ROOT / "guests").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(root: PristineRoot, report: Callable[[str], None], *words: str) -> None:
    report(" ".join(words)[:100])
    done = root.run(*words, seconds=SETUP_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{words} failed with status {done.returncode}:\n{done.stdout[-3000:]}")


def _local(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
