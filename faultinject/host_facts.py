"""What absolute figures depend on: the processor, the system, the disk."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import msgspec

from deploy.host.files import write_json
from faultinject.load import percentile

__all__ = ["DiskFacts", "Host", "look_at_disk", "look_at_host", "save"]

VOLATILE = frozenset({"tmpfs", "ramfs"})
TRIES = 200


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What absolute figures depend on."""

    cpu: str
    cores: int
    kernel: str
    python: str
    accel: str  # of the guests; "" where there are none
    load_before: float  # load average over one minute when the run began

    def __str__(self) -> str:
        accel = f"{self.accel}, " if self.accel else ""
        return (
            f"{self.cores} x {self.cpu}, Linux {self.kernel}, Python {self.python}, "
            f"{accel}load {self.load_before:.1f} before"
        )


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where journals and etcd's data lie, and what one small write and its fdatasync take there,
    alone: seconds.
    """

    filesystem: str
    device: str
    sync_p50: float
    sync_p99: float

    @property
    def volatile(self) -> bool:
        """Whether it is memory, where a sync means nothing."""
        return self.filesystem in VOLATILE

    def __str__(self) -> str:
        return (
            f"{self.filesystem} on {self.device}, write and fdatasync p50 "
            f"{self.sync_p50 * 1e6:.0f} us, p99 {self.sync_p99 * 1e6:.0f} us"
        )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def look_at_host(*, accel: str, load_before: float) -> Host:
    """Return this host's facts."""
    return Host(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        kernel=platform.release(),
        python=platform.python_version(),
        accel=accel,
        load_before=load_before,
    )


def _mount(directory: Path) -> tuple[str, str]:
    """The type and source of the filesystem that holds a directory."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            kind, source, *_ = after.split()
            return kind, source
    return "unknown", "unknown"


def look_at_disk(directory: Path) -> DiskFacts:
    """Try the disk that holds ``directory``.  Raises OSError."""
    path = directory / "sync-probe"
    took = []
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        for _ in range(TRIES):
            began = time.perf_counter()
            file.write(b"x" * 256)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    kind, source = _mount(directory)
    return DiskFacts(
        filesystem=kind, device=source,
        sync_p50=percentile(took, 0.5), sync_p99=percentile(took, 0.99),
    )  # fmt: skip


def save(report: msgspec.Struct, path: Path) -> None:
    """Store a report as JSON: written aside, synced, renamed."""
    write_json(path, report)
