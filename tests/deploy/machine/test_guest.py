"""One real guest: killed, paused, restored by every method.  All tests share the guests."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
from pathlib import Path
from typing import cast

import pytest

from deploy.errors import WrongState
from deploy.host.priority import LOWEST
from deploy.machine.guest import Guest
from deploy.machine.hypervisor import Domain, RunState
from deploy.machine.spec import TRANSITIONS, GuestEvent, GuestState
from tests.deploy.conftest import Booted, answers
from tests.deploy.machine.test_spec import UUIDS, planned
from tests.errors import logs, raises

# The shared node lives in the session's event loop.
in_shared_loop = pytest.mark.asyncio(loop_scope="session")


# These two keep mypy from narrowing a property to its value of a line above.


def state_of(guest: Guest) -> GuestState:
    return guest.state


def yields(guest: Guest) -> bool:
    return guest.yields


def nice_values(guest: Guest) -> set[int]:
    """Those of its QEMU's threads, and of its session if the kernel has autogroups."""
    found = set()
    for thread in Path(f"/proc/{guest.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    group = Path(f"/proc/{guest.pid}/autogroup")
    return found | ({int(group.read_text().split()[-1])} if group.exists() else set())


def test_every_state_can_be_left_and_a_running_guest_can_die() -> None:
    assert TRANSITIONS.keys() == set(GuestState)
    assert all(TRANSITIONS.values())
    living = set(GuestState) - {GuestState.ABSENT, GuestState.DEAD}
    assert all(GuestState.DEAD in TRANSITIONS[state] for state in living)


@pytest.mark.vm
@in_shared_loop
async def test_guests_boot_in_parallel_and_answer(booted: Booted) -> None:
    assert [arrival.how for arrival in booted.arrivals.values()] == ["booted", "booted"]
    for guest in booted.node.guests.values():
        assert state_of(guest) is GuestState.READY
        assert guest.clean
        assert guest.pid is not None
        assert any(line.startswith("trivisor: ready") for line in guest.console.tail())
        assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_guest_yields_to_the_others_until_it_is_restored(booted: Booted) -> None:
    guest, other = booted.node.guests["g1"], booted.node.guests["g2"]
    assert nice_values(guest) == {5}
    await guest.yield_processor(True)
    if not yields(guest):
        pytest.skip("this host does not permit the reversion")
    assert LOWEST in nice_values(guest)
    assert nice_values(other) == {5}
    await guest.yield_processor(False)
    assert (yields(guest), nice_values(guest)) == (False, {5})
    await guest.yield_processor(True)
    assert (await guest.restore()).path == "loadvm"
    assert (yields(guest), nice_values(guest)) == (False, {5})
    await guest.yield_processor(True)
    await guest.kill()
    assert not yields(guest)
    await guest.yield_processor(False)  # nothing to do
    await guest.restore()
    assert (yields(guest), nice_values(guest)) == (False, {5}), "a new QEMU"


@pytest.mark.vm
@in_shared_loop
async def test_new_qemu_yields_before_it_runs_the_guest(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    await guest.yield_processor(True)
    permitted = yields(guest)
    await guest.yield_processor(False)
    if not permitted:
        pytest.skip("this host does not permit the reversion")
    await guest.kill()
    seen: list[GuestState] = []

    def lower(event: GuestEvent) -> None:
        if event.after is GuestState.RESTORING:
            tasks.append(asyncio.create_task(guest.yield_processor(True)))
        elif yields(guest):
            seen.append(event.after)

    tasks: list[asyncio.Task[None]] = []
    end = guest.subscribe(lower)
    try:
        assert (await guest.restore()).path == "start"
    finally:
        end()
    assert (len(tasks), seen) == (1, [GuestState.READY])
    assert set(nice_values(guest)) == {LOWEST}
    await guest.yield_processor(False)
    assert nice_values(guest) == {5}
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_guest_whose_template_cannot_be_written_runs_without_one(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    with logs("TV0152"):
        assert await guest.snapshot_clean(Path("/nowhere/template.qcow2")) == ""
    assert state_of(guest) is GuestState.READY
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_running_guest_is_restored_in_place(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    pid = guest.pid
    done = await guest.restore()
    assert done.path == "loadvm"
    assert guest.pid == pid
    assert state_of(guest) is GuestState.READY
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_killed_guest_is_restored_by_a_new_qemu(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    events: list[GuestEvent] = []
    unsubscribe = guest.subscribe(events.append)
    pid = guest.pid
    assert pid is not None
    await guest.kill()
    assert not Path(f"/proc/{pid}").exists()
    assert guest.pid is None
    assert state_of(guest) is GuestState.DEAD
    done = await guest.restore()
    unsubscribe()
    assert done.path == "start"
    assert getattr(guest, "pid") not in (None, pid)  # noqa: B009 - see state_of
    assert await answers(guest)
    after = [event.after for event in events]
    assert after == [GuestState.DEAD, GuestState.RESTORING, GuestState.READY]
    assert events[0].why == "killed"


@pytest.mark.vm
@in_shared_loop
async def test_kill_from_outside_is_noticed(booted: Booted) -> None:
    guest = booted.node.guests["g2"]
    events: asyncio.Queue[GuestEvent] = asyncio.Queue()
    unsubscribe = guest.subscribe(events.put_nowait)
    assert guest.pid is not None
    os.kill(guest.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        event = await events.get()
    unsubscribe()
    assert (event.guest, event.after, event.pid) == ("g2", GuestState.DEAD, None)
    assert (await guest.restore()).path == "start"


@pytest.mark.vm
@in_shared_loop
async def test_guest_is_paused_and_resumed(booted: Booted) -> None:
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
async def test_paused_guest_runs_after_its_restore(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    await guest.pause()
    assert (await guest.restore()).path == "loadvm"
    assert state_of(guest) is GuestState.READY
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_guest_whose_qemu_a_signal_stopped_is_restored_in_place(booted: Booted) -> None:
    guest = booted.node.guests["g2"]
    pid = guest.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert (await guest.restore()).path == "loadvm"
    assert guest.pid == pid
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_cancelled_pause_leaves_the_recorded_state_correct(
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
async def test_guest_with_a_damaged_snapshot_is_booted_again(booted: Booted) -> None:
    guest = booted.node.guests["g2"]
    await guest.kill()
    Path(guest.spec.disk).write_bytes(b"not a disk")
    with logs("TV0125"):
        done = await guest.restore()
    assert done.path == "boot"
    assert guest.clean
    assert (await guest.restore()).path == "loadvm"
    assert await answers(guest)


@pytest.mark.vm
@in_shared_loop
async def test_host_can_change_the_guests_memory_through_its_file(booted: Booted) -> None:
    guest = booted.node.guests["g1"]
    with guest.ram_file().open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert len(memory) == guest.spec.memory_mib << 20
        at = memory.find(b"trivisor")
        assert at >= 0
        memory[at : at + 8] = b"TRIVISOR"
        await guest.restore()
        assert memory[at : at + 8] == b"trivisor"


class _EndedDomain:
    """A domain that is shut off."""

    async def state(self) -> RunState:
        return RunState.GONE


async def test_guest_that_was_not_started_or_has_ended_is_an_error(tmp_path: Path) -> None:
    guest = Guest(planned(directory=str(tmp_path)).guests[0], node_uuid=UUIDS[0])
    with raises("TV0113", match="is absent"):
        await guest.pause()
    with raises("TV0119", match="not running"):
        await guest.adopt(cast(Domain, _EndedDomain()), 1)
