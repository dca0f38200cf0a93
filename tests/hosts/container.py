"""A Debian 12 host for tests: systemd is process 1 of a systemd-nspawn container.

``cached_root`` makes the root directory once, from this host's apt sources, and keeps it in the
user's cache.  Each ``Container`` writes to a directory of its own above it (overlayfs, or a copy
where that is impossible) and has its own network.  slirp4netns connects that network with the
outside.  Nothing inside can reach this host's ports.

Nothing outlives the test run, also if it is killed.  Everything of a container runs below one
``unshare`` with namespaces for processes and mounts.  The kernel kills it when the test run ends,
and with it all processes and mounts.  Left directories are removed at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from deploy.host.scratch import MARKER, ScratchDirectory, sweep_abandoned
from deploy.node.records import cache_directory
from tests.faultinject.campaign.processes import following
from tests.vagrant.pristine import give_host_settings, make_debian

__all__ = ["PASSWORD", "Container", "cached_root"]

PACKAGES = (
    "systemd-sysv", "dbus", "libpam-systemd", "openssh-server", "sudo", "adduser", "procps",
    "iproute2", "ca-certificates", "curl", "python3", "python3-venv", "python3-libvirt",
    "qemu-system-x86", "qemu-utils", "libvirt-daemon-driver-qemu",
)  # fmt: skip
PASSWORD = "open sesame"
"""The password of the user `operator`."""

# Users, in a root directory $1: `admin` may use sudo without a password, `operator` with one, and
# `guest` may not use it.  Each container adds its own key to /etc/ssh/test_keys.
PREPARE = f"""
set -e
chroot "$1" groupdel operator  # Debian's, of no use
for user in admin operator guest; do
    chroot "$1" useradd --create-home --shell /bin/bash "$user"
done
printf '%s' 'operator:{PASSWORD}' | chroot "$1" chpasswd
printf '%s\\n' 'admin ALL=(ALL) NOPASSWD: ALL' 'operator ALL=(ALL) ALL' > "$1/etc/sudoers.d/tests"
printf '%s\\n' 'AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/test_keys' 'UseDNS no' \\
    > "$1/etc/ssh/sshd_config.d/tests.conf"
rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/hostname \\
    "$1"/etc/resolv.conf "$1"/etc/machine-id
: > "$1/etc/machine-id"
"""

# $1: the container's directory, $2: the cached root, then options of systemd-nspawn.  The processes
# are in a control group named like the directory, or two containers would share one.  A container
# that reboots ends with 133.
RUN = """
set -e
here=$1 root=$2; shift 2
mount -t tmpfs tmpfs /run
for group in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e "$group/cgroup.procs" ] || continue
    mkdir -p "$group/${here##*/}"
    echo $$ > "$group/${here##*/}/cgroup.procs"
done
cd "$here"
[ -e copied ] || mount -t overlay overlay -o "lowerdir=$root,upperdir=new,workdir=work" root || {
    cp -a --reflink=auto "$root/." root
    cp -a new/. root
    touch copied
}
: > network
unshare --net=network true
slirp4netns --configure --mtu=1400 --disable-host-loopback --netns-type=path --api-socket slirp \
    network tap0 > slirp.log 2>&1 &
while status=0; systemd-nspawn "$@" < /dev/null >> console.log 2>&1 || status=$?; do
    [ $status = 133 ] || exit $status
done
"""

BOOT_SECONDS = 120
"""Seconds until systemd must be up: it needs one on a quiet machine."""
BUILD_SECONDS = 900
"""Seconds to make the root: 35 on a quiet machine with a near mirror."""
KEPT = 7 * 86400
"""Seconds that a root is kept unused: another checkout may have another recipe."""
COMMAND_SECONDS = 300.0
"""Seconds for a command that does not set its own limit."""
CGROUPS = Path("/sys/fs/cgroup")


def cached_root() -> Path:
    """Return the root directory of all containers; make it first if the recipe is new.

    Raises AssertionError with the end of mmdebstrap's output if that fails.
    """
    cache = cache_directory() / "test-hosts"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\n".join([*PACKAGES, PREPARE]).encode()).hexdigest()[:16]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / key).is_dir():
            for old in cache.iterdir():  # of other recipes, and what a killed build left
                if old.is_dir() and time.time() - old.stat().st_mtime > KEPT:
                    shutil.rmtree(old)
            work = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
            log = work / "log"
            make_debian(work / "root", log, seconds=BUILD_SECONDS, include=PACKAGES, then=PREPARE)
            (work / "root").rename(cache / key)
            shutil.rmtree(work)
        os.utime(cache / key)
    return cache / key


class Container:
    """A running host, until ``stop`` or the end of the ``with`` block.

    ``root``: what ``cached_root`` returned.  Raises TimeoutError if it does not boot, with the end
    of its console.
    """

    def __init__(self, root: Path) -> None:
        before = os.environ.get(MARKER)
        sweep_abandoned()
        self._scratch = ScratchDirectory("host")
        os.environ.pop(MARKER)  # only the container's processes are to carry it
        if before is not None:
            os.environ[MARKER] = before
        self._root = root
        self.path = self._scratch.path
        """A directory of this host; removed with the container."""
        self.key = self.path / "key"
        """The private key with which all users, root too, may log in by ssh."""
        self._boot: subprocess.Popen[bytes] | None = None
        self._leader = 0
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(self) -> None:
        _sweep_cgroups()
        for name in ("new", "work", "root"):
            (self.path / name).mkdir()
        new = self.path / "new"
        (new / "etc/ssh").mkdir(parents=True)
        self._environment, self._shown = give_host_settings(new)
        (new / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n")
        (new / "etc/hostname").write_text("debian\n")
        (new / "etc/environment").write_text(  # for those who log in
            "".join(
                f'{name}="{value}"\n'
                for name, value in self._environment.items()
                if name not in ("HOME", "PATH")
            )
        )
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self.key)],
            check=True,
        )
        shutil.copyfile(f"{self.key}.pub", new / "etc/ssh/test_keys")

    def start(self) -> None:
        """Boot the container; return when systemd has started everything."""
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.path / "notify"))
        # Read them all, also after the boot: systemd waits until its messages have room.
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._read_messages, args=(self._notify,), daemon=True
        )
        self._reader.start()
        options = [
            "--quiet", "--boot", "--register=no", "--keep-unit", "--notify-ready=yes",
            "--machine=debian", "--resolv-conf=off", "--timezone=off", "--console=pipe",
            f"--directory={self.path / 'root'}",
            f"--network-namespace-path={self.path / 'network'}",
            *(f"--bind-ro={path}" for path in self._shown),
        ]  # fmt: skip
        self._boot = subprocess.Popen(
            following(
                "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                "bash", "-c", RUN, "container", str(self.path), str(self._root), *options,
            ),
            env=os.environ
            | {MARKER: str(self.path), "NOTIFY_SOCKET": str(self.path / "notify")},
        )  # fmt: skip
        self._await_boot()

    def _read_messages(self, notify: socket.socket) -> None:
        while message := notify.recv(4096):  # nothing after `shutdown`
            self._messages.put(message.decode())

    def _await_boot(self) -> None:
        """Wait until systemd says that it is ready, and every unit has been started."""
        deadline = time.monotonic() + BOOT_SECONDS
        leader = ready = False
        while not (leader and ready):
            try:
                message = self._messages.get(timeout=1.0)
            except queue.Empty:
                message = ""
            assert self._boot is not None
            if self._boot.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the container does not boot:\n{self.console()[-3000:]}")
            for line in message.splitlines():
                name, _, value = line.partition("=")
                if name == "X_NSPAWN_LEADER_PID":
                    self._leader, leader, ready = int(value), True, False
                ready |= line == "READY=1"
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def console(self) -> str:
        """Return what was printed on the console, and by the processes around the container."""
        logs = [self.path / name for name in ("console.log", "slirp.log")]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def run(
        self,
        *command: str,
        seconds: float = COMMAND_SECONDS,
        check: bool = True,
        stdin: bytes = b"",
        user: str = "root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside; its stdout contains its errors too.  No shell, no terminal.

        Raises AssertionError with the output if the command fails, unless not ``check``.  After
        ``seconds`` the command is ended, and its exit status is 124.
        """
        assert self._boot is not None, "the container has been stopped"
        outside = f"/proc/{self._boot.pid}/ns"
        home = "/root" if user == "root" else f"/home/{user}"
        done = subprocess.run(
            [
                "nsenter", f"--pid={outside}/pid_for_children", f"--mount={outside}/mnt", "--",
                "nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net",
                "--pid", "--root", "--wd", "--",
                "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--",
                "env", "-i", *(f"{name}={value}" for name, value in self._environment.items()),
                f"HOME={home}", f"USER={user}", "DEBIAN_FRONTEND=noninteractive",
                "timeout", "--kill-after=5", str(seconds), *command,
            ],
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds + 60,
        )  # fmt: skip
        output = done.stdout.decode(errors="replace")
        if check:
            assert done.returncode == 0, f"{command} failed with {done.returncode}:\n{output}"
        return subprocess.CompletedProcess(command, done.returncode, output)

    def push(self, source: Path, target: str, *, mode: str = "644") -> None:
        """Copy a file of this host to a path inside; make the directory if needed."""
        command = ("install", "-D", f"--mode={mode}", "/dev/stdin", target)
        self.run(*command, stdin=source.read_bytes())

    def forward(self, port: int) -> int:
        """Return the port of 127.0.0.1 on this host that leads to a port inside."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local: int = free.getsockname()[1]
        request = {
            "execute": "add_hostfwd",
            "arguments": {
                "proto": "tcp", "host_addr": "127.0.0.1", "host_port": local, "guest_port": port,
            },
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as api:
            api.settimeout(30)
            api.connect(str(self.path / "slirp"))
            api.sendall(json.dumps(request).encode())
            api.shutdown(socket.SHUT_WR)
            answer = json.loads(api.recv(4096))
        assert "return" in answer, answer
        return local

    def host_key(self) -> str:
        """Return the line of a known_hosts file for this host, without its first word."""
        return self.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.rsplit(" ", 1)[0]

    def reboot(self) -> None:
        """Reboot as a person does; return when it is up again."""
        self.run("systemctl", "reboot", check=False)
        self._await_boot()

    def cut_power(self) -> None:
        """Kill everything inside at once, and boot again with the files as they are."""
        self._kill()
        self.start()

    def _kill(self) -> None:
        if self._boot is not None:
            self._boot.kill()
            self._boot.wait()
            self._boot = None
            self._notify.shutdown(socket.SHUT_RDWR)
            self._reader.join()
            self._notify.close()
            (self.path / "notify").unlink()
            (self.path / "slirp").unlink(missing_ok=True)

    def stop(self) -> None:
        """Kill everything inside and remove its files."""
        self._kill()
        self._scratch.close()
        _sweep_cgroups()


def _sweep_cgroups() -> None:
    """Remove the control groups of containers that have ended; one in use stays."""
    for group in _groups():
        with contextlib.suppress(OSError):  # in use
            group.rmdir()


def _groups() -> Iterator[Path]:
    for hierarchy in (CGROUPS, CGROUPS / "systemd", CGROUPS / "unified"):
        for top in hierarchy.glob("tv-host-*"):
            for folder, _, _ in os.walk(top, topdown=False):
                yield Path(folder)
