"""Faults inside a guest: what counts as read back, and each fault in a real guest."""

from __future__ import annotations

import pytest

from faultinject.faults import inside
from faultinject.faults.site import NotApplied
from tests.deploy.open_guest import OpenGuest

in_shared_loop = pytest.mark.asyncio(loop_scope="session")


class AnsweringShell:
    """A shell with one answer to every command."""

    name = "g1"

    def __init__(self, out: str, status: int = 0) -> None:
        self.answer = (status, out)
        self.commands: list[str] = []

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = 10
    ) -> tuple[int, str]:
        self.commands.append(command + stdin.decode())
        return self.answer


@pytest.mark.parametrize("kind", inside.ACTIONS)
@pytest.mark.parametrize(
    "answer", [("", 0), ("out of memory", 137), ("gone", 0), ("flipped 1 1 1 1 /x", 0)]
)
async def test_fault_is_not_applied_when_nothing_is_read_back(
    kind: str, answer: tuple[str, int]
) -> None:
    with pytest.raises(NotApplied, match="g1"):
        await inside.ACTIONS[kind](AnsweringShell(*answer), 7, 1)


@pytest.mark.parametrize(
    "kind, out, proof",
    [
        ("service-kill", "gone 99\n", "process 99 has ended"),
        ("service-stop", "process 99 T\n", "99 is in state T"),
        ("service-corrupt", "flipped 4096 4 0 4 /proc/9/mem\n", "at 0x1000 was 0 and is 4"),
        ("file-corrupt", "flipped 16 128 1 129 /opt/a\n", "/opt/a at 0x10 was 1 and is 129"),
        ("cpu-hog", "spins 7 R -10\nspins 8 R -10\n", "2 programs run"),
        ("memory-hog", "held 36000 of 40000 free 3990\n", "36000 KiB of 40000 free KiB were taken"),
    ],
)
async def test_proof_describes_what_is_read_back(kind: str, out: str, proof: str) -> None:
    active = await inside.ACTIONS[kind](AnsweringShell(out), 7, 1)
    assert proof in active.proof


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
async def test_fault_is_not_applied_when_something_else_is_read_back(kind: str, out: str) -> None:
    with pytest.raises(NotApplied):
        await inside.ACTIONS[kind](AnsweringShell(out), 7, 1)


async def test_command_is_a_function_of_the_seed() -> None:
    shell = AnsweringShell("")
    for seed in (1, 1, 2):
        with pytest.raises(NotApplied):
            await inside.corrupt_service(shell, seed, 5)
    first, second, third = shell.commands
    assert first == second != third


@pytest.mark.parametrize("kind", inside.ACTIONS)
async def test_commands_fit_the_ssh_servers_limit(kind: str) -> None:
    shell = AnsweringShell("")
    with pytest.raises(NotApplied):
        await inside.ACTIONS[kind](shell, 1, 1)
    assert len(shell.commands[0]) < 9000


# ---- in a real guest -----------------------------------------------------------------------------


async def output_of(opened: OpenGuest, command: str) -> str:
    """Return the output of a command in the guest."""
    status, out = await opened.shell.run(command, timeout=60)
    assert status == 0, out
    return out.strip()


@pytest.mark.vm
@in_shared_loop
async def test_killed_service_is_restarted_by_its_agent(opened: OpenGuest) -> None:
    await opened.clean()
    active = await inside.kill_service(opened.shell, 1, 1)
    await opened.says("trivisor: service ended with status -9; starting incarnation 2")
    assert await active.activated() is True


@pytest.mark.vm
@in_shared_loop
async def test_stopped_service_stays_stopped_and_its_agent_runs(opened: OpenGuest) -> None:
    await opened.clean()
    active = await inside.stop_service(opened.shell, 1, 1)
    pid = int(active.proof.split("process ")[1].split()[0])
    assert "T (stopped)" in await output_of(opened, f"grep State /proc/{pid}/status")
    parent = (await output_of(opened, f"grep PPid /proc/{pid}/status")).split()[1]
    assert "S (sleeping)" in await output_of(opened, f"grep State /proc/{parent}/status")


@pytest.mark.vm
@in_shared_loop
async def test_flips_in_the_services_memory_persist(opened: OpenGuest) -> None:
    await opened.clean()
    first = await inside.corrupt_service(opened.shell, 5, 3)
    assert ", and 2 more" in first.proof
    _, _, rest = first.proof.partition("/proc/")
    pid, place = rest.split("/mem at ")[0], int(rest.split(" at ")[1].split()[0], 16)
    was, now = (int(number) for number in rest.split(" was ")[1].split(",")[0].split(" and is "))
    byte = f"dd if=/proc/{pid}/mem bs=1 skip={place} count=1 2>/dev/null | hexdump -e '1/1 \"%d\"'"
    assert int(await output_of(opened, byte)) == now
    assert "T (stopped)" not in await output_of(opened, f"grep State /proc/{pid}/status")
    assert was ^ now in {1 << bit for bit in range(8)}


@pytest.mark.vm
@in_shared_loop
async def test_large_dose_is_flipped_completely(opened: OpenGuest) -> None:
    await opened.clean()
    # Nearly all flips hit the ballast, not the libc of the shell that flips.
    ballast = "dd if=/dev/zero of=/opt/trivisor/ballast bs=1 seek=1073741823 count=1 2>&1"
    await output_of(opened, ballast)
    active = await inside.corrupt_file(opened.shell, 2, 100)
    assert ", and 99 more" in active.proof


@pytest.mark.vm
@in_shared_loop
async def test_flips_in_files_persist_and_the_same_flips_revert_them(opened: OpenGuest) -> None:
    await opened.clean()
    sums = "find /opt /lib /usr/lib -type f | sort | xargs md5sum | md5sum"
    before = await output_of(opened, sums)
    await inside.corrupt_file(opened.shell, 9, 4)
    assert await output_of(opened, sums) != before
    await inside.corrupt_file(opened.shell, 9, 4)
    assert await output_of(opened, sums) == before


@pytest.mark.vm
@in_shared_loop
async def test_cpu_hog_uses_the_processor(opened: OpenGuest) -> None:
    await opened.clean()
    busy = "read -r _ user nice system _ </proc/stat; echo $((user + nice + system))"
    await inside.hog_cpu(opened.shell, 1, 1)
    first = int(await output_of(opened, busy))
    # Busy time in hundredths of a second: the processor is never idle.
    assert int(await output_of(opened, f"usleep 500000; {busy}")) - first > 30


@pytest.mark.vm
@in_shared_loop
@pytest.mark.parametrize("dose", [1, 4])
async def test_memory_hog_leaves_little_memory(opened: OpenGuest, dose: int) -> None:
    await opened.clean()
    active = await inside.hog_memory(opened.shell, 1, dose)
    assert "free KiB were taken" in active.proof
    free = int((await output_of(opened, "grep MemFree /proc/meminfo")).split()[1])
    assert free < 8192


@pytest.mark.vm
@in_shared_loop
async def test_skewed_clock_is_wrong(opened: OpenGuest) -> None:
    await opened.clean()
    before = int(await output_of(opened, "date +%s"))
    await inside.skew_clock(opened.shell, 3, 1)
    assert abs(int(await output_of(opened, "date +%s")) - before) > 80_000
