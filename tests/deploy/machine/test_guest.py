"""One real guest: killed, paused, put back by every path. The guests are those all tests share."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
from pathlib import Path

import pytest

from deploy.errors import WrongState
from deploy.host.priority import LAST
from deploy.machine.guest import Guest
from deploy.machine.states import TRANSITIONS, GuestEvent, GuestState
from tests.deploy.conftest import Booted
from tests.deploy.greeting import answers

# The shared node lives in the session's event loop.
in_shared_loop = pytest.mark.asyncio(loop_scope="session")


def state_of(guest: Guest) -> GuestState:
    """The state at this moment; mypy would take `guest.state` for what it was a line above."""
    return guest.state


def pid_of(guest: Guest) -> int | None:
    """The pid at this moment."""
    return guest.pid


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_every_state_can_be_left_and_dead_is_always_near() -> None:
    assert TRANSITIONS.keys() == set(GuestState)
    assert all(TRANSITIONS.values())
    living = set(GuestState) - {GuestState.ABSENT, GuestState.DEAD}
    assert all(GuestState.DEAD in TRANSITIONS[state] for state in living)


@pytest.mark.vm
@in_shared_loop
async def test_guests_boot_side_by_side_and_answer(booted: Booted) -> None:
    assert [arrival.how for arrival in booted.arrivals.values()] == ["booted", "booted"]
    for guest in booted.node.guests.values():
        assert state_of(guest) is GuestState.READY
        assert guest.clean
        assert guest.pid is not None
        assert guest.memory_bytes is not None
        assert guest.memory_bytes < 600 << 20
        assert any(line.startswith("trivisor: ready") for line in guest.console.tail())
        assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_the_voter_goes_first(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    assert len(list(Path(f"/proc/{guest.pid}/task").iterdir())) > 1
    assert nice_values(guest) == {5}


def nice_values(guest: Guest) -> set[int]:
    """Those of its QEMU's threads, and of its session where there is such a value."""
    found = set()
    for thread in Path(f"/proc/{guest.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    group = Path(f"/proc/{guest.pid}/autogroup")
    return found | ({int(group.read_text().split()[-1])} if group.exists() else set())


@pytest.mark.vm
@in_shared_loop
async def test_it_yields_to_the_others_and_comes_back(booted: Booted) -> None:
    guest, other = booted.node.guests["g1"], booted.node.guests["g2"]
    await guest.yield_processor(True)
    if not yields(guest):
        pytest.skip("this host would not let it come back")
    assert LAST in nice_values(guest)
    assert nice_values(other) == {5}
    await guest.yield_processor(False)
    assert (yields(guest), nice_values(guest)) == (False, {5})
    await guest.yield_processor(True)
    assert (await guest.put_back()).path == "loadvm", "that has a deadline of seconds"
    assert (yields(guest), nice_values(guest)) == (False, {5})
    await guest.yield_processor(True)
    await guest.kill()
    assert not yields(guest)
    await guest.yield_processor(False)  # nothing to do
    await guest.put_back()
    assert (yields(guest), nice_values(guest)) == (False, {5}), "a new QEMU"


def yields(guest: Guest) -> bool:
    """At this moment."""
    return guest.yields


@pytest.mark.vm
@in_shared_loop
async def test_a_living_guest_is_put_back_in_place(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    pid = guest.pid
    done = await guest.put_back()
    assert done.path == "loadvm"
    assert guest.pid == pid
    assert state_of(guest) is GuestState.READY
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_a_killed_guest_is_gone_and_comes_back_from_its_snapshot(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    events: list[GuestEvent] = []
    unsubscribe = guest.subscribe(events.append)
    pid = guest.pid
    assert pid is not None
    await guest.kill()
    assert not running(pid)
    assert pid_of(guest) is None
    assert state_of(guest) is GuestState.DEAD
    done = await guest.put_back()
    unsubscribe()
    assert done.path == "start"
    assert pid_of(guest) not in (None, pid)
    assert await answers(guest)
    after = [event.after for event in events]
    assert after == [GuestState.DEAD, GuestState.RESTORING, GuestState.READY]
    assert events[0].why == "killed"


@pytest.mark.vm
@in_shared_loop
async def test_a_kill_from_outside_is_noticed_by_itself(booted: Booted) -> None:
    guest = booted.node.guests["g2"]
    told: asyncio.Queue[GuestEvent] = asyncio.Queue()
    unsubscribe = guest.subscribe(told.put_nowait)
    assert guest.pid is not None
    os.kill(guest.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        event = await told.get()
    unsubscribe()
    assert (event.guest, event.after, event.pid) == ("g2", GuestState.DEAD, None)
    assert (await guest.put_back()).path == "start"


@pytest.mark.vm
@in_shared_loop
async def test_pause_and_resume(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    await guest.pause()
    assert state_of(guest) is GuestState.PAUSED
    with pytest.raises(WrongState, match="is paused, not ready"):
        await guest.pause()
    assert not await answers(guest, seconds=0.5)
    await guest.resume()
    assert state_of(guest) is GuestState.READY
    with pytest.raises(WrongState, match="is ready, not paused"):
        await guest.resume()
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_a_paused_guest_runs_again_once_put_back(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    await guest.pause()
    assert (await guest.put_back()).path == "loadvm"
    assert state_of(guest) is GuestState.READY
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_a_qemu_that_was_stopped_by_a_signal_is_put_back_in_place(booted: Booted) -> None:
    guest = booted.node.guests["g2"]
    pid = guest.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert (await guest.put_back()).path == "loadvm"
    assert guest.pid == pid
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_who_is_cancelled_in_a_pause_leaves_a_guest_that_is_what_it_says(
    booted: Booted,
) -> None:
    guest = booted.node.guests["g2"]
    for turns in range(6):
        pausing = asyncio.create_task(guest.pause())
        for _ in range(turns):
            await asyncio.sleep(0)
        pausing.cancel()
        await asyncio.wait([pausing])
        if guest.state.value == "paused":
            await guest.resume()
        assert guest.state.value == "ready"
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_a_guest_whose_snapshot_is_spoilt_is_booted_anew(booted: Booted) -> None:
    guest = booted.node.guests["g2"]
    await guest.kill()
    Path(guest.spec.disk).write_bytes(b"not a disk")
    done = await guest.put_back(120)
    assert done.path == "boot"
    assert guest.clean
    assert (await guest.put_back()).path == "loadvm"
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_the_memory_is_a_file_that_the_host_can_change(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    with guest.ram_file().open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert len(memory) == guest.spec.memory_mib << 20
        at = memory.find(b"trivisor")
        assert at >= 0
        memory[at : at + 8] = b"TRIVISOR"
        await guest.put_back()
        assert memory[at : at + 8] == b"trivisor"
