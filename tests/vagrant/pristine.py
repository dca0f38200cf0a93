"""A pristine Debian 12 root to run scripts in, with this host's access to packages.

apt's sources, keys and settings, pip's settings (``host_pip``) and the certificates are the host's
when the test runs.  The root contains the files that they name, at the same paths.  mmdebstrap
makes the root.  A command in it has its own mount and pid namespaces, so mounts and processes end
with it.  No init runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from guests.image.sources import RELEASE, debian_sources
from tests.vagrant.host_pip import find_host_pip

__all__ = [
    "PristineRoot", "copy_named", "give_host_settings", "make_debian", "make_root",
    "network_settings",
]  # fmt: skip

# Environment by which an administrator configures access to the network.
PROXIES = re.compile(r"(https?|ftp|all|no)_proxy", re.IGNORECASE)
# Environment that names a file, or a folder, of trusted certificates.
TRUSTED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL_CERTIFICATES = Path("/usr/local/share/ca-certificates")

# $1 is the root, then pairs SOURCE TARGET of folders to show read-only, then --, then the command.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"  # a root that is a mount point, as on any machine: libvirt asks for it
mount --rbind /dev "$root/dev"
# qemu-system-common gives /dev/kvm to a group of the root: not the host's /dev/kvm.
if [ -e "$root/dev/kvm" ]; then
    : >"$root/.no-kvm"
    mount --bind "$root/.no-kvm" "$root/dev/kvm"
fi
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind -o ro "$1" "$root$2"
    shift 2
done
shift
# Not chroot: a process in a chroot may not make user namespaces, as mmdebstrap does without root.
cd "$root"
pivot_root . mnt
exec chroot . bash -c 'umount -l /mnt && cd / && exec "$@"' enter "$@"
"""


class PristineRoot(NamedTuple):
    """A Debian root directory, the environment in it, and host directories to mount."""

    path: Path
    environment: Mapping[str, str]
    shown: tuple[Path, ...]

    def run(self, *command: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a command inside; its stdout contains its errors too.

        The command is the first process of a pid namespace: all that it started ends with it.
        Raises subprocess.TimeoutExpired after `seconds`.
        """
        shown = [str(folder) for path in self.shown for folder in (path, path)]
        # env -i, because the caller's PATH (of a pyenv or virtual environment) is not valid inside.
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        inside = ["bash", "-c", ENTER, "enter", str(self.path), *shown, "--"]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return subprocess.run(
            [*namespaces, "--", *inside, "env", "-i", *settings, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )


def make_root(folder: Path, log: Path, *, seconds: float) -> PristineRoot:
    """Make a minimal Debian 12 in `folder` (about 300 MB): no Python, no git, no init.

    Raises AssertionError with the end of mmdebstrap's output if that fails.
    """
    make_debian(folder, log, seconds=seconds)
    (folder / "etc/apt/sources.list").unlink(missing_ok=True)
    shutil.rmtree(folder / "etc/apt/sources.list.d", ignore_errors=True)
    environment, shown = give_host_settings(folder)
    return PristineRoot(path=folder, environment=environment, shown=shown)


def make_debian(
    folder: Path, log: Path, *, seconds: float, include: Iterable[str] = (), then: str = ""
) -> None:
    """Make a minimal Debian 12 with further packages in `folder`, from this host's apt sources.

    `then`: a shell command, run at the end, with the root's path as its $1.
    Raises AssertionError with the end of mmdebstrap's output if that fails.
    """
    sources = log.with_name("debian.sources")
    sources.write_text(debian_sources())
    options = [f"--include={','.join(include)}"] if include else []
    with log.open("w") as output:
        done = subprocess.run(
            [
                "mmdebstrap",
                "--variant=minbase",
                "--format=directory",
                # A root for a test need not survive a power cut; this halves the time.
                "--dpkgopt=force-unsafe-io",
                *options,
                *([f"--customize-hook={then}"] if then else []),
                RELEASE,
                str(folder),
                str(sources),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
    assert done.returncode == 0, log.read_text()[-3000:]


def give_host_settings(root: Path) -> tuple[dict[str, str], tuple[Path, ...]]:
    """Copy this host's access to packages into a root directory.

    Returns the environment in it, and directories of this host to show at the same path.
    """
    copy_apt_settings(root)
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    network, trusted = network_settings(os.environ)
    pip = find_host_pip()
    local = (CERTIFICATES, *LOCAL_CERTIFICATES.glob("*.crt"))
    copy_named(root, (*filter(Path.is_file, local), *trusted, *pip.copied))
    environment = {
        **network,
        **pip.environment,
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    }
    return environment, pip.shown


def network_settings(environment: Mapping[str, str]) -> tuple[dict[str, str], list[Path]]:
    """Return the environment for access to the network, and the paths that it names.

    A variable that names a missing file is left out.
    """
    settings = {name: text for name, text in environment.items() if PROXIES.fullmatch(name)}
    paths = []
    for name in TRUSTED:
        path = Path(environment.get(name, "")).absolute()
        if environment.get(name) and path.exists():
            settings[name] = str(path)
            paths.append(path)
    return settings, paths


def copy_named(root: Path, paths: Iterable[Path]) -> None:
    """Copy files and folders of this host to the same paths in the root.

    Not mounts: a package that is installed in the root may replace such a file.
    """
    for source in paths:
        target = root / str(source).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=dangling_links)
        else:
            shutil.copyfile(source, target)


def dangling_links(directory: str, names: list[str]) -> list[str]:
    """Return those names in a directory that point to nothing."""
    return [name for name in names if not Path(directory, name).exists()]


def copy_apt_settings(root: Path) -> None:
    """Give the root the host's Debian sources, its keys, and its apt.conf."""
    inside = root / "etc/apt"
    (inside / "sources.list.d").mkdir(parents=True)
    text = debian_sources()
    (inside / "sources.list.d/debian.sources").write_text(text)
    for name in ("apt.conf.d", "auth.conf.d", "keyrings", "trusted.gpg.d"):
        if Path("/etc/apt", name).is_dir():
            shutil.copytree(f"/etc/apt/{name}", inside / name, dirs_exist_ok=True)
    for name in ("apt.conf", "auth.conf"):
        if Path("/etc/apt", name).is_file():
            shutil.copyfile(f"/etc/apt/{name}", inside / name)
    for key in re.findall(r"^Signed-By: *(/\S+)$", text, re.MULTILINE):
        target = root / key.lstrip("/")
        if Path(key).is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(key, target)
