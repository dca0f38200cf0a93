"""Facts of the host that absolute figures depend on: processor, system, disk."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

__all__ = ["DiskFacts", "Host", "describe_host", "measure_disk", "own_version"]

VOLATILE = frozenset({"tmpfs", "ramfs"})
"""Filesystems in memory, where a sync stores nothing."""
SYNCS = 200
"""Writes that ``measure_disk`` times."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A host, and how busy it was."""

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
    """The disk that holds the data, and the seconds of one small write with its fdatasync."""

    filesystem: str
    device: str
    sync_p50: float
    sync_p99: float

    @property
    def volatile(self) -> bool:
        """Whether the filesystem is in memory."""
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


def describe_host(*, accel: str, load_before: float) -> Host:
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
    """Return the type and source of the filesystem that holds a directory."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            kind, source, *_ = after.split()
            return kind, source
    return "unknown", "unknown"


def measure_disk(directory: Path) -> DiskFacts:
    """Measure the disk that holds ``directory``.  Raises OSError."""
    path = directory / "sync-probe"
    took = []
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(b"x" * 256)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    took.sort()
    kind, source = _mount(directory)
    return DiskFacts(
        filesystem=kind, device=source,
        sync_p50=took[SYNCS // 2], sync_p99=took[SYNCS * 99 // 100],
    )  # fmt: skip


@lru_cache
def own_version() -> str:
    """Return Trivisor's version and a digest of its sources, which change more often."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.blake2b(digest_size=6)
    for package in ("deploy", "faultinject", "guests", "voter"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    try:
        release = version("trivisor")
    except PackageNotFoundError:
        release = "not installed"  # run from a source tree
    return f"{release}, sources {digest.hexdigest()}"
