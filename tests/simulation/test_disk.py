"""The simulated disk: what survives a killed process and a power loss, and its faults."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from random import Random

import pytest

from faultinject.simulation.disk import SimDisk, SimFile, SimFiles
from faultinject.simulation.loop import Process, SimLoop

Work = Callable[[SimFiles], Coroutine[object, object, None]]


class Machine:
    """A disk and processes that use it."""

    def __init__(self, seed: int = 1, block: int = 512) -> None:
        self.loop = SimLoop()
        self.disk = SimDisk(self.loop, Random(seed), block)

    def run(self, work: Work, *, calls: int = 0) -> Process:
        """Run work as a process, which dies in its ``calls``-th system call."""
        process = Process("p")
        process.calls_left = calls
        task = self.loop.spawn(process, work(SimFiles(self.disk, process)))
        self.loop.call_later(10, self.loop.stop, context=self.loop.outside)
        self.loop.run_forever()
        if process.alive:
            task.result()
        return process

    def read(self, name: str) -> bytes:
        """Return what a new process reads."""
        return SimFiles(self.disk, Process("reader")).read(name)


async def begin(files: SimFiles) -> SimFile:
    """Create a file of two blocks."""
    return await files.create("a", 1024)


def test_unsynced_write_survives_the_process_and_may_be_lost_with_the_power() -> None:
    machine = Machine()

    async def work(files: SimFiles) -> None:
        (await begin(files)).append(b"x" * 100)

    machine.run(work).kill()
    assert machine.read("a") == b"x" * 100 + bytes(924)
    assert not machine.disk.holds(b"x" * 100, durable=True)
    kept = set()
    for seed in range(20):
        other = Machine(seed)
        other.run(work).kill()
        other.disk.lose_power()
        kept.add(other.read("a")[:100])
    assert kept == {b"x" * 100, bytes(100)}


def test_synced_write_survives_a_power_loss() -> None:
    for seed in range(20):
        machine = Machine(seed)

        async def work(files: SimFiles) -> None:
            file = await begin(files)
            file.append(b"x" * 100)
            await file.sync()
            file.append(b"y" * 100)

        machine.run(work).kill()
        machine.disk.lose_power()
        assert machine.read("a").startswith(b"x" * 100)


def test_power_loss_keeps_or_loses_each_block() -> None:
    seen = set()
    for seed in range(60):
        machine = Machine(seed)

        async def work(files: SimFiles) -> None:
            (await begin(files)).append(b"x" * 1024)

        machine.run(work).kill()
        machine.disk.lose_power()
        data = machine.read("a")
        seen.add((data[:512].count(b"x"), data[512:].count(b"x")))
    assert seen == {(0, 0), (512, 0), (0, 512), (512, 512)}


def test_failed_sync_stores_nothing_now_or_later() -> None:
    machine = Machine()

    async def work(files: SimFiles) -> None:
        file = await begin(files)
        file.append(b"x" * 100)
        machine.disk.failing = 1
        with pytest.raises(OSError, match="Input/output"):
            await file.sync()
        file.append(b"y" * 100)
        await file.sync()

    machine.run(work)
    assert machine.read("a").startswith(b"x" * 100 + b"y" * 100)
    machine.disk.lose_power()
    assert machine.read("a").startswith(bytes(100) + b"y" * 100)


def test_full_disk_has_room_in_allocated_files() -> None:
    machine = Machine()

    async def work(files: SimFiles) -> None:
        file = await begin(files)
        machine.disk.full = True
        file.append(b"x" * 1000)
        for attempt in (lambda: files.create("b", 10), lambda: files.write_whole("b", [b"b"])):
            with pytest.raises(OSError, match="No space") as failure:
                await attempt()
            assert failure.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space"):
            file.grow(1)
        with pytest.raises(OSError, match="No space"):
            file.append(b"y" * 100)
        assert files.read("a") == b"x" * 1000 + b"y" * 24  # in part, as Linux does
        assert files.names() == ["a"]
        machine.disk.full = False
        file.grow(10)
        assert files.read("a").endswith(bytes(10))

    machine.run(work)


@pytest.mark.parametrize("calls", range(2, 8))
def test_write_whole_is_atomic_when_the_process_dies(calls: int) -> None:
    for seed in range(8):
        machine = Machine(seed)

        async def first(files: SimFiles) -> None:
            await files.write_whole("a", [b"old"])

        async def second(files: SimFiles) -> None:
            await files.write_whole("a", [b"n", b"ew"])

        machine.run(first)
        machine.run(second, calls=calls)
        machine.disk.lose_power()
        assert machine.read("a") in (b"old", b"new")


def test_removed_file_does_not_return_after_a_power_loss() -> None:
    for seed in range(10):
        machine = Machine(seed)

        async def work(files: SimFiles) -> None:
            await begin(files)
            await files.remove("a")

        machine.run(work).kill()
        machine.disk.lose_power()
        assert machine.disk.cached == {}


def test_change_bit_changes_one_stored_bit() -> None:
    machine = Machine()

    async def work(files: SimFiles) -> None:
        file = await begin(files)
        file.append(b"x" * 100)
        await file.sync()

    assert not machine.disk.change_bit(Random(1))
    machine.run(work)
    assert machine.disk.change_bit(Random(1))
    data = machine.read("a")[:100]
    assert sum((byte ^ ord("x")).bit_count() for byte in data) == 1


def test_reopen_zeroes_the_bytes_behind_its_offset() -> None:
    machine = Machine()

    async def work(files: SimFiles) -> None:
        (await begin(files)).append(b"x" * 100)
        file = files.reopen("a", 50, 50)
        file.append(b"y" * 10)
        await file.sync()

    machine.run(work)
    machine.disk.lose_power()
    assert machine.read("a") == b"x" * 50 + b"y" * 10 + bytes(964)
