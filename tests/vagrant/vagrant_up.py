"""`vagrant up` with this project's Vagrantfile on a private libvirtd, as root, without systemd.

The libvirtd, its networks, the machine and all their processes live in namespaces of their own and
end with them.  slirp4netns gives the network.  The machine gets this host's access to packages:
apt's sources and proxies, pip's indexes, certificates.  They come from a Vagrantfile in Vagrant's
home directory, so the project's own one is used unchanged.

By hand, for a log with times and the results in DIRECTORY:

    python -m tests.vagrant.vagrant_up --box FILE DIRECTORY
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from guests.image.sources import debian_sources
from tests.project.tree import ROOT, tracked
from tests.vagrant.host_pip import find_host_pip
from tests.vagrant.pristine import CERTIFICATES, LOCAL_CERTIFICATES, network_settings

__all__ = ["BOX", "VagrantHost"]

BOX = "debian/bookworm64"
"""The name under which the Vagrantfile asks for its box."""

# What a progress meter overwrites, and colours.
PROGRESS = re.compile(r"\x1b\[K|\x1b\[[0-9;]*m|\r|Progress: \d+%")

# Ends a child process when this one was killed.
WITH_US = ("setpriv", "--pdeathsig", "KILL")

# Where libvirtd keeps its files.  $1: the scratch directory; the rest: the command to run.
INSIDE = r"""
set -e
scratch=$1; shift
mkdir -p /etc/libvirt /var/lib/libvirt  # of Debian's packages, so they are usually there
resolver=$(cat /etc/resolv.conf)
for directory in /run /etc/libvirt /var/log /var/cache /var/lib/libvirt; do
    mount -t tmpfs tmpfs "$directory"
done
if [ ! -s /etc/resolv.conf ]; then  # it was a link into /run
    mkdir -p "$(dirname "$(readlink -m /etc/resolv.conf)")"
    printf '%s\n' "$resolver" >"$(readlink -m /etc/resolv.conf)"
fi
mkdir -p /run/libvirt /var/log/libvirt/qemu /var/cache/libvirt /var/lib/libvirt/images
mkdir -p "$scratch/images"
mount --bind "$scratch/images" /var/lib/libvirt/images  # not in memory
cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
cgroup_controllers = [ ]
CONF
printf 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n' >/etc/libvirt/libvirtd.conf
ip link set lo up
pause() { read -rt 0.1 <> <(:) || :; }
until ip -o link show tap0 2>/dev/null | grep -q UP; do pause; done
libvirtd --daemon
until [ -S /run/libvirt/libvirt-sock ]; do pause; done
exec "$@"
"""

HOME_VAGRANTFILE = """
Vagrant.configure("2") do |config|
  config.vm.provision "host", type: "file", source: "{archive}", destination: "/tmp/host.tar"
  config.vm.provision "use", type: "shell",
    inline: "rm -f /etc/apt/sources.list && tar -C / --no-overwrite-dir -xf /tmp/host.tar"
end
"""


class VagrantHost:
    """A private libvirtd and a Vagrant home directory, below the directory ``scratch``.

    ``environment``: variables for vagrant, such as TRIVISOR_VAGRANT_DRIVER.  ``project`` is a copy
    of this project: `vagrant up` writes there.
    """

    def __init__(self, scratch: Path, box: Path, environment: Mapping[str, str]) -> None:
        self.scratch = scratch.absolute()
        self.project = self.scratch / "trivisor"
        self._box = box.absolute()
        self._environment = {
            **os.environ,
            "VAGRANT_HOME": str(self.scratch / "home"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            **environment,
        }

    def prepare(self) -> None:
        """Copy the project, write the host's settings, and register the box."""
        for path in tracked():
            target = self.project / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        home = self.scratch / "home"
        home.mkdir()
        archive = self.scratch / "host.tar"
        with tarfile.open(archive, "w") as tar:
            for name, content in host_settings().items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(content))
        (home / "Vagrantfile").write_text(HOME_VAGRANTFILE.format(archive=archive))
        added = subprocess.run(
            ["vagrant", "box", "add", "--name", BOX, "--provider", "libvirt", str(self._box)],
            env=self._environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert added.returncode == 0, added.stdout + added.stderr

    def run(self, command: str, log: Path, *, seconds: float) -> int:
        """Run a shell command in the copy's directory vagrant/, next to the libvirtd.

        Append its output to ``log``, each line with the seconds since the start; ``scratch`` reads
        DIRECTORY there.  Return its exit status.  All that it started has ended then, on every way
        out.  Raises subprocess.TimeoutExpired after ``seconds``.
        """
        start = time.monotonic()
        with self._namespaces(command) as process, log.open("a") as output:
            assert process.stdout is not None
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            for line in process.stdout:
                text = PROGRESS.sub("", line).rstrip().replace(str(self.scratch), "DIRECTORY")
                if text:
                    output.write(f"{time.monotonic() - start:7.1f}  {text}\n")
                    output.flush()
            status = process.wait()
            timer.cancel()
        if time.monotonic() - start >= seconds:
            raise subprocess.TimeoutExpired(command, seconds)
        return status

    @contextlib.contextmanager
    def _namespaces(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """Start the command behind a libvirtd in new namespaces; end all of it afterwards."""
        with contextlib.ExitStack() as stack:
            process = subprocess.Popen(
                [*WITH_US, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
                 "--mount-proc", "--", "bash", "-c", INSIDE, "inside", str(self.scratch),
                 "bash", "-c", command],
                cwd=self.project / "vagrant", env=self._environment, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            stack.enter_context(process)  # closes its pipe
            stack.callback(end, process)
            inner = first_child(process)
            slirp = subprocess.Popen(
                [*WITH_US, "slirp4netns", "--configure", "--mtu=1400", "--disable-host-loopback",
                 str(inner), "tap0"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(end, slirp)
            yield process


def host_settings() -> dict[str, bytes]:
    """Return files for the machine, by path without the first slash: its access to packages."""
    network, _ = network_settings(os.environ)
    pip = find_host_pip().environment
    # Only what the machine can reach: it sees no directory of this host.
    remote = {
        name: " ".join(word for word in text.split() if not word.startswith(("/", "file:")))
        for name, text in pip.items()
    }
    remote |= {name: str(CERTIFICATES) for name in ("PIP_CERT", "SSL_CERT_FILE")}
    remote |= {name: text for name, text in network.items() if name.lower().endswith("_proxy")}
    environment = "".join(f'{name}="{text}"\n' for name, text in remote.items() if text)
    apt = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    kept = ("Acquire::http", "Acquire::Retries ", "Acquire::Check-")
    options = "".join(f"{line}\n" for line in apt.splitlines() if line.startswith(kept))
    files = {
        "etc/apt/sources.list.d/debian.sources": debian_sources().encode(),
        "etc/apt/apt.conf.d/90host": options.encode(),
        "etc/environment": environment.encode(),
    }
    certificates = (CERTIFICATES, *LOCAL_CERTIFICATES.glob("*.crt"))
    return files | {str(path)[1:]: path.read_bytes() for path in certificates if path.is_file()}


def first_child(process: subprocess.Popen[str]) -> int:
    """Return the process id of a process's first child, once there is one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise AssertionError(f"unshare ended with status {process.returncode}")


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for it.  With --kill-child, unshare's whole pid namespace ends."""
    process.kill()
    process.wait()


@click.command()
@click.option("--box", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--hours", default=2.0, show_default=True, help="Time limit.")
@click.argument("directory", type=click.Path(path_type=Path, exists=False))
def main(box: Path, hours: float, directory: Path) -> None:
    """Run `vagrant up` and `vagrant destroy`; leave the log and the results in DIRECTORY."""
    directory.mkdir()
    host = VagrantHost(directory, box, {})
    host.prepare()
    command = "vagrant up; status=$?; vagrant destroy --force; exit $status"
    status = host.run(command, directory / "vagrant-up.txt", seconds=hours * 3600)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
