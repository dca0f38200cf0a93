"""A process's priority is lowered and raised again, shown on a substitute for QEMU."""

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
from deploy.host.priority import LOWEST, set_lowest, set_nice
from tests.deploy.conftest import may_raise_priority

# Threads that permanently make short-lived threads.
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
PERMITTED = may_raise_priority()


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process with its own session, as QEMU has, so that these tests do not share it."""
    with subprocess.Popen(
        [sys.executable, "-c", THREADS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def thread_values(pid: int) -> set[int]:
    """The nice values of a process's threads."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
        except ProcessLookupError:
            continue  # it has ended
    return found


def group_value(pid: int) -> int | None:
    """The value of its session, if the kernel has autogroups."""
    group = Path(f"/proc/{pid}/autogroup")
    return int(group.read_text().split()[-1]) if group.exists() else None


def refuse_writes(monkeypatch: pytest.MonkeyPatch, *numbers: int, then: bool = False) -> None:
    """Have the kernel answer writes of a session's value with these errors; accept them `then`."""
    errors = iter(numbers)

    def write(path: Path, text: str) -> int:
        number = next(errors, None if then else numbers[-1])
        if number is not None:
            raise OSError(number, os.strerror(number), str(path))
        return len(text)

    monkeypatch.setattr(Path, "write_text", write)


@pytest.mark.skipif(not PERMITTED, reason="this host does not permit raising a priority")
async def test_priority_of_all_threads_is_lowered_and_raised_again(
    qemu: subprocess.Popen[bytes],
) -> None:
    assert await set_nice(qemu.pid, nice=5)
    for _ in range(10):
        assert await set_lowest(qemu.pid, revertible_to=5)
        assert thread_values(qemu.pid) == {LOWEST}
        assert group_value(qemu.pid) in (LOWEST, None)
        assert await set_nice(qemu.pid, nice=5)
        assert thread_values(qemu.pid) == {5}
        assert group_value(qemu.pid) in (5, None)


async def test_priority_is_not_lowered_when_that_cannot_be_reverted(
    qemu: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priority, "_may_raise", lambda pid, nice: False)
    monkeypatch.setattr(priority, "_AUTOGROUPS", Path("/proc/sys/kernel/no_such_thing"))
    assert await set_nice(qemu.pid, nice=5)
    assert not await set_lowest(qemu.pid, revertible_to=5)
    assert thread_values(qemu.pid) == {5}
    assert group_value(qemu.pid) in (5, None)


async def test_only_the_sessions_value_is_changed_when_threads_cannot_be_raised(
    qemu: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if group_value(qemu.pid) is None:
        pytest.skip("a kernel without autogroups")
    monkeypatch.setattr(priority, "_may_raise", lambda pid, nice: False)
    monkeypatch.setattr(priority, "_grouped", lambda pid: True)
    assert await set_nice(qemu.pid, nice=5)
    assert await set_lowest(qemu.pid, revertible_to=5)
    assert (thread_values(qemu.pid), group_value(qemu.pid)) == ({5}, LOWEST)
    assert await set_nice(qemu.pid, nice=5)
    assert group_value(qemu.pid) == 5


def test_permission_to_raise_a_priority_is_predicted(qemu: subprocess.Popen[bytes]) -> None:
    assert priority._may_raise(qemu.pid, os.getpriority(os.PRIO_PROCESS, 0)) is PERMITTED


@pytest.mark.parametrize(
    "limit,nice,may", [(0, 5, False), (15, 5, True), (14, 5, False), (-1, 5, True), (8, 12, True)]
)
def test_resource_limit_may_permit_raising_a_priority(
    monkeypatch: pytest.MonkeyPatch, limit: int, nice: int, may: bool
) -> None:
    """Root of another user namespace than the host's only has what the limit permits."""
    monkeypatch.setattr(priority, "_FIRST_USER_NAMESPACE", "user:[1]")
    monkeypatch.setattr(resource, "prlimit", lambda pid, kind: (limit, limit))
    assert priority._may_raise(1, nice) is may


@pytest.mark.parametrize(("number", "done"), [(errno.EINVAL, True), (errno.EACCES, False)])
async def test_process_in_the_root_group_needs_no_sessions_value(
    qemu: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, number: int, done: bool
) -> None:
    """The kernel answers EINVAL for a process that belongs to no session made since boot."""
    refuse_writes(monkeypatch, number)
    assert await set_nice(qemu.pid, nice=5) is done


async def test_setting_a_sessions_value_is_retried_for_a_while(
    qemu: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel allows so many changes a second, and answers others with EAGAIN."""
    if group_value(qemu.pid) is None:
        pytest.skip("a kernel without autogroups")
    refuse_writes(monkeypatch, errno.EAGAIN, errno.EAGAIN, then=True)
    assert await set_nice(qemu.pid, nice=5)
    refuse_writes(monkeypatch, errno.EAGAIN)
    monkeypatch.setattr(priority, "_GROUP_TIMEOUT", 0.2)
    assert not await set_nice(qemu.pid, nice=5)


async def test_ended_process_has_no_priority_to_set(qemu: subprocess.Popen[bytes]) -> None:
    qemu.kill()
    qemu.wait()
    assert not await set_nice(qemu.pid, nice=5)
    assert not await set_lowest(qemu.pid, revertible_to=5)
