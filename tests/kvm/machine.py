"""The KVM test host: a virtual machine under emulation (TCG) whose processor has AMD's SVM.

So /dev/kvm works inside, on any host.  QEMU's snapshots of its disk are thrown away at the end.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kvm.disk import INSIDE, Disk
from tests.project.tree import ROOT, tracked

__all__ = ["MachineFailed", "TestHost", "run_machine"]

COMMAND_LINE = "root=/dev/vda rw console=ttyS0 tsc=reliable mitigations=off"
"""Of the test host's kernel.  ``tsc=reliable``: under emulation the kernel otherwise distrusts the
TSC and reads a much slower clock."""
MEMORY_MIB = 6144
CORES = 2
SILENCE = 1800.0
"""Seconds without a line on the console after which a test host that boots counts as hung: it can
share its processors with anything."""
POLL = 2.0
END = 120.0
"""Seconds for the test host to power itself off."""


class MachineFailed(Exception):
    """The test host ended or hung."""


class TestHost:
    """A running test host.  Its ssh server is reachable through a port of the loopback."""

    def __init__(self, process: subprocess.Popen[bytes], disk: Disk, work: Path, port: int) -> None:
        self.process = process
        self.console = work / "console.txt"
        self._port = port
        self._disk = disk
        self._known = work / "known_hosts"
        self._known.write_text(
            f"[127.0.0.1]:{port} {disk.key.with_name('hostkey.pub').read_text()}"
        )

    def ssh(self, command: str) -> list[str]:
        """Return the command line that runs a shell command as root on the test host."""
        return [
            "ssh", "-q", "-T", "-i", str(self._disk.key), "-p", str(self._port),
            "-o", f"UserKnownHostsFile={self._known}", "-o", "StrictHostKeyChecking=yes",
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=600",
            "-o", "ServerAliveInterval=60", "-o", "ServerAliveCountMax=60",
            "root@127.0.0.1", command,
        ]  # fmt: skip

    def wait(self, report: Callable[[str], None]) -> None:
        """Wait until its ssh server answers.  Raises MachineFailed if it ends or hangs first."""
        began = reported = time.monotonic()
        size, grew = 0, began
        while subprocess.run(
            self.ssh("true"), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode:
            now = time.monotonic()
            if (found := self.console.stat().st_size) > size:
                size, grew = found, now
            if self.process.poll() is not None:
                raise MachineFailed(f"its QEMU ended with status {self.process.returncode}")
            if now - grew > SILENCE:
                raise MachineFailed(f"it printed nothing for {SILENCE:.0f} s")
            if now - reported > 60:
                reported = now
                report(f"still booting after {now - began:.0f} s")
            time.sleep(POLL)  # nothing reports that its ssh server listens

    def copy_in(self, *more: Path) -> None:
        """Replace the project's files on the test host by this tree's, and add more."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path in tracked():
                tar.add(path, arcname=str(path.relative_to(ROOT)))
            for path in more:
                tar.add(path, arcname=path.name)
        keep = "! -name .venv ! -name .setup"
        script = (
            f"cd /{INSIDE} && find . -mindepth 1 -maxdepth 1 {keep} -exec rm -rf {{}} + && tar -x"
        )
        subprocess.run(self.ssh(script), input=archive.getvalue(), check=True)

    def run(self, command: str, output: Callable[[str], None]) -> int:
        """Run a shell command, pass on each line that it prints, return its exit status."""
        with subprocess.Popen(
            self.ssh(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    output(line.rstrip("\n"))
            except BaseException:
                process.kill()
                raise
        return process.returncode


@contextlib.contextmanager
def run_machine(disk: Disk, work: Path, *, monitor: Path | None = None) -> Iterator[TestHost]:
    """Boot a test host from a copy of the disk; end it with the block.

    `work` is a directory for its console and the disk's changes.  `monitor`, a path, is for QEMU's
    monitor.
    """
    overlay, port = work / "changes.qcow2", _free_port()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(disk.image), "-F", "raw",
         str(overlay)],
        check=True,
    )  # fmt: skip
    words = [
        "qemu-system-x86_64", "-name", "trivisor-kvm-test-host",
        "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max",
        "-smp", str(CORES), "-m", str(MEMORY_MIB),
        "-nodefaults", "-no-user-config", "-display", "none",
        "-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", COMMAND_LINE,
        "-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe,discard=unmap",
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
        "-serial", f"file:{work / 'console.txt'}",
    ]  # fmt: skip
    if monitor is not None:
        words += ["-monitor", f"unix:{monitor},server=on,wait=off"]
    (work / "console.txt").touch()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        yield TestHost(process, disk, work, port)
    finally:
        process.kill()
        process.wait()
        overlay.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
