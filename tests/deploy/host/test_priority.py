"""How a QEMU goes behind others and comes back, shown on a process that stands in for it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host import priority
from deploy.host.priority import LAST, hold_back, step_aside
from tests.deploy.conftest import may_raise_priority

THREADS = """
import sys, threading, time
def one():
    while not over.wait(0.001):
        threading.Thread(target=time.sleep, args=(0.003,)).start()
over = threading.Event()
for _ in range(3):
    threading.Thread(target=one).start()
print("up", flush=True)
sys.stdin.read()
over.set()
"""
"""Threads that make threads, which soon end, all the time."""

RAISES = may_raise_priority()


@pytest.fixture
def stand_in() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process with a session of its own, as QEMU has: else these tests would share it."""
    process = subprocess.Popen(
        [sys.executable, "-c", THREADS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def values(pid: int) -> set[int]:
    """The nice values of a process's threads."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
        except ProcessLookupError:
            continue  # it has ended
    return found


def group_value(pid: int) -> int | None:
    """That of its session, where the kernel has autogroups."""
    group = Path(f"/proc/{pid}/autogroup")
    return int(group.read_text().split()[-1]) if group.exists() else None


async def test_it_is_held_back_with_all_its_threads(stand_in: subprocess.Popen[bytes]) -> None:
    assert await hold_back(stand_in.pid, nice=5)
    assert values(stand_in.pid) == {5}
    assert group_value(stand_in.pid) in (5, None)


@pytest.mark.skipif(not RAISES, reason="this host does not let us raise a priority")
async def test_it_steps_aside_and_comes_back_with_threads_made_meanwhile(
    stand_in: subprocess.Popen[bytes],
) -> None:
    for _ in range(10):
        assert await step_aside(stand_in.pid, nice=5)
        assert values(stand_in.pid) == {LAST}
        assert group_value(stand_in.pid) in (LAST, None)
        assert await hold_back(stand_in.pid, nice=5)
        assert values(stand_in.pid) == {5}
        assert group_value(stand_in.pid) in (5, None)


async def test_who_could_not_come_back_does_not_step_aside(
    stand_in: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priority, "_may_return", lambda pid, nice: False)
    monkeypatch.setattr(priority, "_AUTOGROUPS", Path("/proc/sys/kernel/no_such_thing"))
    assert await hold_back(stand_in.pid, nice=5)
    assert not await step_aside(stand_in.pid, nice=5)
    assert values(stand_in.pid) == {5}
    assert group_value(stand_in.pid) in (5, None)


async def test_a_session_s_value_is_enough_where_it_counts(
    stand_in: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if group_value(stand_in.pid) is None:
        pytest.skip("a kernel without autogroups")
    monkeypatch.setattr(priority, "_may_return", lambda pid, nice: False)
    monkeypatch.setattr(priority, "_grouped", lambda pid: True)
    assert await hold_back(stand_in.pid, nice=5)
    assert await step_aside(stand_in.pid, nice=5)
    assert values(stand_in.pid) == {5}
    assert group_value(stand_in.pid) == LAST
    assert await hold_back(stand_in.pid, nice=5)
    assert group_value(stand_in.pid) == 5


def test_whether_we_may_raise_a_priority(stand_in: subprocess.Popen[bytes]) -> None:
    assert priority._may_return(stand_in.pid, os.getpriority(os.PRIO_PROCESS, 0)) is RAISES


@pytest.mark.parametrize(
    "limit,nice,may", [(0, 5, False), (15, 5, True), (14, 5, False), (-1, 5, True), (8, 12, True)]
)
def test_a_limit_may_let_us_raise_a_priority(
    monkeypatch: pytest.MonkeyPatch, limit: int, nice: int, may: bool
) -> None:
    """Root of another namespace than the host's has only what the limit of a process says."""
    monkeypatch.setattr(priority, "_FIRST_USER_NAMESPACE", "user:[1]")
    monkeypatch.setattr(resource, "prlimit", lambda pid, kind: (limit, limit))
    assert priority._may_return(1, nice) is may


@pytest.mark.parametrize(("said", "done"), [(errno.EINVAL, True), (errno.EACCES, False)])
async def test_a_process_in_the_root_group_needs_no_group_value(
    stand_in: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, said: int, done: bool
) -> None:
    """The kernel answers so (EINVAL) for what belongs to no session made since boot."""

    def answer(path: Path, text: str) -> int:
        raise OSError(said, os.strerror(said), str(path))

    monkeypatch.setattr(Path, "write_text", answer)
    assert await hold_back(stand_in.pid, nice=5) is done


async def test_the_kernel_takes_so_many_changes_a_second_and_no_more(
    stand_in: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says EAGAIN to who is not root: that is waited out, for a while."""
    if group_value(stand_in.pid) is None:
        pytest.skip("a kernel without autogroups")
    refusals = iter([True, True, False])

    def answer(path: Path, text: str) -> int:
        if next(refusals, True):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        return len(text)

    monkeypatch.setattr(Path, "write_text", answer)
    assert await hold_back(stand_in.pid, nice=5)
    monkeypatch.setattr(priority, "_GROUP_PATIENCE", 0.2)
    assert not await hold_back(stand_in.pid, nice=5)


async def test_who_has_ended_is_not_set(stand_in: subprocess.Popen[bytes]) -> None:
    stand_in.kill()
    stand_in.wait()
    assert not await hold_back(stand_in.pid, nice=5)
    assert not await step_aside(stand_in.pid, nice=5)
