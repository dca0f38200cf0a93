"""A process's share of the processor is bounded and freed again, by the kernel's control groups."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host import cpu_share
from deploy.host.cpu_share import FULL_SHARE, lift, limit, sweep

SPIN = "import sys\nprint('up', flush=True)\nwhile True: pass"


@pytest.fixture
def spinner() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that wants all of a processor."""
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()
        process.wait()
        sweep()


def processor_time(pid: int) -> float:
    """The seconds of processor time that its thread has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def used(pid: int, seconds: float) -> float:
    """The share of one processor that a process uses during so many seconds."""
    began, before = time.monotonic(), processor_time(pid)
    time.sleep(seconds)  # it is the length of the measurement
    return (processor_time(pid) - before) / (time.monotonic() - began)


def test_share_is_bounded_until_it_is_lifted(spinner: subprocess.Popen[bytes]) -> None:
    how = limit(spinner.pid, 20)
    if how is None:
        pytest.skip("this host has no control group that can be written")
    assert how.startswith("cgroup")
    assert used(spinner.pid, 1.0) < 0.35
    assert lift(spinner.pid)
    assert not lift(spinner.pid), "it has no bound any more"
    assert not list(cpu_share.GROUPS.glob(f"*/trivisor-share-{spinner.pid}"))


def test_lowest_weight_leaves_an_idle_processor_to_the_process(
    spinner: subprocess.Popen[bytes],
) -> None:
    if limit(spinner.pid, cpu_share.LOWEST_WEIGHT) is None:
        pytest.skip("this host has no control group that can be written")
    before = processor_time(spinner.pid)
    deadline = time.monotonic() + 30
    while processor_time(spinner.pid) < before + 0.1:  # no quota: it runs whenever it may
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lift(spinner.pid)


def test_full_share_changes_nothing(spinner: subprocess.Popen[bytes]) -> None:
    before = Path(f"/proc/{spinner.pid}/cgroup").read_text()
    assert limit(spinner.pid, FULL_SHARE) == "none"
    assert Path(f"/proc/{spinner.pid}/cgroup").read_text() == before
    assert not lift(spinner.pid)


def test_group_of_an_ended_process_is_swept(spinner: subprocess.Popen[bytes]) -> None:
    if limit(spinner.pid, 50) is None:
        pytest.skip("this host has no control group that can be written")
    spinner.kill()
    spinner.wait()
    deadline = time.monotonic() + 10
    while list(cpu_share.GROUPS.glob(f"*/trivisor-share-{spinner.pid}")):
        sweep()  # the kernel empties a group soon after its last process has ended
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_directory_that_is_no_control_group_is_never_written(
    spinner: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a host with version 1 the root of the groups is an ordinary directory.
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    monkeypatch.setattr(cpu_share, "GROUPS", tmp_path)
    assert limit(spinner.pid, 50) is None
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["cpu"]


def test_process_that_has_ended_is_no_error(spinner: subprocess.Popen[bytes]) -> None:
    spinner.kill()
    spinner.wait()
    assert limit(spinner.pid, 50) is None
    assert not lift(spinner.pid)
