"""Faults inside a guest: what counts as read back; and each of them in a real guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from faultinject.faults import CATALOGUE, inside
from faultinject.faults.regions import REGIONS
from faultinject.faults.site import NotApplied
from tests.deploy.open_guest import OpenGuest, open_guest

in_shared_loop = pytest.mark.asyncio(loop_scope="session")


class Says:
    """A shell that gives one answer to every command."""

    name = "g1"

    def __init__(self, out: str, status: int = 0) -> None:
        self.answer = (status, out)
        self.commands: list[str] = []

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = 10
    ) -> tuple[int, str]:
        self.commands.append(command + stdin.decode())
        return self.answer


def test_there_is_an_act_for_every_fault_that_needs_a_shell() -> None:
    in_shell = {kind for kind, fault in CATALOGUE.items() if "ssh" in fault.needs}
    assert set(inside.ACTS) == in_shell - set(REGIONS)


@pytest.mark.parametrize("kind", inside.ACTS)
@pytest.mark.parametrize(
    "answer", [("", 0), ("out of memory", 137), ("gone", 0), ("flipped 1 1 1 1 /x", 0)]
)
async def test_what_is_not_read_back_is_not_applied(kind: str, answer: tuple[str, int]) -> None:
    with pytest.raises(NotApplied, match="g1"):
        await inside.ACTS[kind](Says(*answer), 7, 1)


@pytest.mark.parametrize(
    "kind, out, proof",
    [
        ("service-kill", "gone 99\n", "process 99 is gone"),
        ("service-stop", "process 99 T\n", "99 is in state T"),
        ("service-corrupt", "flipped 4096 4 0 4 /proc/9/mem\n", "at 0x1000 was 0 and is 4"),
        ("file-corrupt", "flipped 16 128 1 129 /opt/a\n", "/opt/a at 0x10 was 1 and is 129"),
        ("cpu-hog", "spins 7 R -10\nspins 8 R -10\n", "2 programs run"),
        ("memory-hog", "held 36000 of 40000 free 3990\n", "36000 KiB of memory are taken"),
    ],
)
async def test_what_is_read_back_is_told(kind: str, out: str, proof: str) -> None:
    applied = await inside.ACTS[kind](Says(out), 7, 1)
    assert proof in applied.proof


@pytest.mark.parametrize(
    "kind, out",
    [
        ("service-kill", "alive 99\n"),
        ("service-stop", "process 99 S\n"),
        ("service-corrupt", "flipped 4096 4 0 0 /proc/9/mem\n"),
        ("cpu-hog", "spins 7 R -10\nspins 8 S -10\n"),
        ("cpu-hog", "spins 7 R 0\nspins 8 R 0\n"),
        ("memory-hog", "held 0 of 40000 free 40000\n"),
        ("clock-skew", "clock 1700000000 1700000000\n"),
    ],
)
async def test_what_is_read_back_and_wrong_is_not_applied(kind: str, out: str) -> None:
    with pytest.raises(NotApplied):
        await inside.ACTS[kind](Says(out), 7, 1)


async def test_one_seed_asks_for_the_same_and_another_for_else() -> None:
    shell = Says("")
    for seed in (1, 1, 2):
        with pytest.raises(NotApplied):
            await inside.corrupt_service(shell, seed, 5)
    first, second, third = shell.commands
    assert first == second != third


@pytest.mark.parametrize("kind", inside.ACTS)
async def test_no_command_is_longer_than_the_guests_server_takes(kind: str) -> None:
    shell = Says("")
    with pytest.raises(NotApplied):
        await inside.ACTS[kind](shell, 1, 1)
    assert len(shell.commands[0]) < 9000


# ---- in a real guest -----------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def opened(shared_scratch: Path) -> AsyncIterator[OpenGuest]:
    async with open_guest(shared_scratch, shared_scratch / "capabilities", "i") as one:
        yield one


async def asked(opened: OpenGuest, command: str) -> str:
    """What a command in the guest says."""
    status, out = await opened.shell.run(command, timeout=60)
    assert status == 0, out
    return out.strip()


@pytest.mark.vm
@in_shared_loop
async def test_a_killed_service_is_started_again_by_its_agent(opened: OpenGuest) -> None:
    await opened.clean()
    applied = await inside.kill_service(opened.shell, 1, 1)
    await opened.says("trivisor: service ended with status -9; starting incarnation 2")
    assert await applied.used() is True


@pytest.mark.vm
@in_shared_loop
async def test_a_stopped_service_stays_stopped_and_its_agent_lives(opened: OpenGuest) -> None:
    await opened.clean()
    applied = await inside.stop_service(opened.shell, 1, 1)
    pid = int(applied.proof.split("process ")[1].split()[0])
    assert "T (stopped)" in await asked(opened, f"grep State /proc/{pid}/status")
    parent = (await asked(opened, f"grep PPid /proc/{pid}/status")).split()[1]
    assert "S (sleeping)" in await asked(opened, f"grep State /proc/{parent}/status")


@pytest.mark.vm
@in_shared_loop
async def test_flips_in_the_services_memory_are_there(opened: OpenGuest) -> None:
    await opened.clean()
    first = await inside.corrupt_service(opened.shell, 5, 3)
    assert ", and 2 more" in first.proof
    _, _, rest = first.proof.partition("/proc/")
    pid, place = rest.split("/mem at ")[0], int(rest.split(" at ")[1].split()[0], 16)
    was, now = (int(word) for word in rest.split(" was ")[1].split(",")[0].split(" and is "))
    byte = f"dd if=/proc/{pid}/mem bs=1 skip={place} count=1 2>/dev/null | hexdump -e '1/1 \"%d\"'"
    assert int(await asked(opened, byte)) == now
    assert "T (stopped)" not in await asked(opened, f"grep State /proc/{pid}/status")
    assert was ^ now in {1 << bit for bit in range(8)}


@pytest.mark.vm
@in_shared_loop
async def test_a_large_dose_is_flipped_whole(opened: OpenGuest) -> None:
    await opened.clean()
    # Nearly all of it goes there, not into the libc of the shell that flips, which would end it.
    ballast = "dd if=/dev/zero of=/opt/trivisor/ballast bs=1 seek=1073741823 count=1 2>&1"
    await asked(opened, ballast)
    applied = await inside.corrupt_file(opened.shell, 2, 100)
    assert ", and 99 more" in applied.proof


@pytest.mark.vm
@in_shared_loop
async def test_flips_in_files_are_there_and_the_same_again_undoes_them(opened: OpenGuest) -> None:
    await opened.clean()
    sums = "find /opt /lib /usr/lib -type f | sort | xargs md5sum | md5sum"
    before = await asked(opened, sums)
    await inside.corrupt_file(opened.shell, 9, 4)
    assert await asked(opened, sums) != before
    await inside.corrupt_file(opened.shell, 9, 4)
    assert await asked(opened, sums) == before


@pytest.mark.vm
@in_shared_loop
async def test_hogs_leave_little_processor(opened: OpenGuest) -> None:
    await opened.clean()
    busy = "read -r _ user nice system _ </proc/stat; echo $((user + nice + system))"
    await inside.hog_cpu(opened.shell, 1, 1)
    first = int(await asked(opened, busy))
    # Hundredths of a second that were worked meanwhile: the guest does not rest any more.
    assert int(await asked(opened, f"usleep 500000; {busy}")) - first > 30


@pytest.mark.vm
@in_shared_loop
@pytest.mark.parametrize("dose", [1, 4])
async def test_hogs_leave_little_memory(opened: OpenGuest, dose: int) -> None:
    await opened.clean()
    applied = await inside.hog_memory(opened.shell, 1, dose)
    assert "KiB of memory are taken" in applied.proof
    free = int((await asked(opened, "grep MemFree /proc/meminfo")).split()[1])
    assert free < 8192


@pytest.mark.vm
@in_shared_loop
async def test_a_skewed_clock_is_wrong(opened: OpenGuest) -> None:
    await opened.clean()
    before = int(await asked(opened, "date +%s"))
    await inside.skew_clock(opened.shell, 3, 1)
    assert abs(int(await asked(opened, "date +%s")) - before) > 80_000
