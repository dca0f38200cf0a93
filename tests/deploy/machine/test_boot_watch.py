"""A boot is judged by its progress: slow ones wait, hung and failed ones end."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from deploy.machine.boot_watch import BootWatch, instruction_page, watch_boot

# As guests of this image printed them.
PANICS = {
    "[    0.220000] Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug"
    " and send a report.  Then try booting with the 'noapic' option.": "IO-APIC + timer",
    "[    0.873411] Kernel panic - not syncing: No working init found.  Try passing init= option"
    " to kernel. See Linux Documentation/admin-guide/init.rst for guidance.": "No working init",
    "Kernel panic - not syncing: System is deadlocked on memory": "deadlocked on memory",
    "[    1.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0xb": "kill init",
    "[    2.5] Kernel panic - not syncing: VFS: Unable to mount root fs": "VFS",
}
HARMLESS = [
    "[   26.4] watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [swapper/0:1]",
    "[   21.0] rcu: INFO: rcu_sched self-detected stall on CPU",
    "[   21.0] rcu: 0-....: (5249 ticks this GP) idle=0c4/1/0x4000000000000000 softirq=11/11",
    "[    0.2] ..MP-BIOS bug: 8254 timer not connected to IO-APIC",
    "[    0.1] APIC calibration not consistent with PM-Timer: 312ms instead of 100ms",
    "[    3.1] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable",
    "a service that prints: Kernel panic - not syncing: no",
]


@pytest.mark.parametrize(("line", "why"), PANICS.items())
def test_panic_ends_the_boot_at_once_and_another_may_succeed(line: str, why: str) -> None:
    watch = BootWatch(60)
    watch.line(line)
    assert watch.over.is_set()
    assert watch.failure.startswith("its kernel panicked: ")
    assert why in watch.failure
    assert watch.transient


def test_lockups_and_stalls_are_no_panic() -> None:
    watch = BootWatch(60)
    for line in HARMLESS:
        watch.line(line)
    assert not watch.over.is_set()
    watch.line("trivisor: ready service=kv build=-")
    assert (watch.ready, watch.failure) == ("trivisor: ready service=kv build=-", "")


def test_first_verdict_stands() -> None:
    watch = BootWatch(60)
    watch.line("trivisor: ready service=kv build=-")
    watch.line("Kernel panic - not syncing: later")
    watch.end("its QEMU ended")
    assert (watch.failure, watch.ended) == ("", False)
    watch = BootWatch(60)
    watch.line("Kernel panic - not syncing: first")
    watch.line("trivisor: ready service=kv build=-")
    assert watch.ready == ""


def test_guest_that_executes_new_pages_is_slow_and_not_hung() -> None:
    watch = BootWatch(60)
    for number in range(1000):
        watch.sample(59, f"{number:x}")
    assert not watch.over.is_set()


def test_loop_is_hung() -> None:
    watch = BootWatch(60)
    for _ in range(10):
        for page in ("fff1", "fff2", "fff3"):
            watch.sample(1, page)
    assert not watch.over.is_set()
    for _ in range(40):
        watch.sample(1, "fff2")
    assert (watch.hung, watch.transient) == (True, False)
    assert "no progress for 60 s" in watch.failure


def test_loop_that_prints_the_same_with_other_numbers_is_hung() -> None:
    watch = BootWatch(10)
    for turn in range(30):
        watch.line(f"[   {turn}.5] rcu: INFO: stall on CPU {turn} (t={turn * 100} jiffies)")
        watch.sample(1, None)
    assert watch.hung


def test_guest_that_prints_new_lines_is_not_hung() -> None:
    watch = BootWatch(10)
    for word in ["one", "two", "three", "four", "five", "six", "seven"]:
        watch.sample(9, None)
        watch.line(f"unpacked {word}")
    assert not watch.over.is_set()


def test_guest_that_never_left_its_first_page_is_given_up_early() -> None:
    stuck, moving = BootWatch(60, first_limit=5), BootWatch(60, first_limit=5)
    for number in range(8):
        stuck.sample(1, "fff0")
        moving.sample(1, "fff0" if number else "1")
    assert (stuck.hung, moving.hung) == (True, False)


def test_qemu_that_still_starts_is_not_a_guest_on_its_first_page() -> None:
    watch = BootWatch(60, first_limit=5)
    for _ in range(30):
        watch.sample(1, None, idle=0.1)
    assert not watch.over.is_set()
    for _ in range(8):
        watch.sample(1, "fff0", idle=0.1)
    assert watch.hung


def test_qemu_that_hangs_as_it_starts_is_noticed() -> None:
    watch = BootWatch(60, first_limit=5)
    for _ in range(6):
        watch.sample(1, None, idle=1)
    assert watch.hung


def test_agent_that_ends_again_and_again_does_not_start() -> None:
    watch = BootWatch(60)
    for _ in range(2):
        watch.line("trivisor: agent ended with status 1, starting it again")
    assert not watch.over.is_set()
    watch.line("trivisor: agent ended with status 1, starting it again")
    assert watch.over.is_set()
    assert not watch.transient


def test_page_is_read_from_the_registers() -> None:
    assert instruction_page("EAX=0\nRIP=ffffffff81000123 RFL=00000246") == "ffffffff8100"
    assert instruction_page("EIP=0000fff0 EFL=00000002") == "0"
    assert instruction_page("Error: no such CPU") is None


async def test_boot_that_makes_progress_ends_with_its_total_time() -> None:
    watch, pages = BootWatch(0.01), iter(range(10**6))

    async def page() -> str:
        return f"{next(pages):x}"

    async with asyncio.timeout(60):
        await watch_boot(watch, pid=os.getpid(), page=page, ends=time.monotonic() + 0.1)
    assert watch.failure
    assert not watch.ready


async def test_panic_is_noticed_between_two_samples() -> None:
    watch = BootWatch(3600)

    async def page() -> str | None:
        return None

    asyncio.get_running_loop().call_soon(watch.line, "Kernel panic - not syncing: planted")
    async with asyncio.timeout(60):
        await watch_boot(watch, pid=os.getpid(), page=page, ends=time.monotonic() + 3600)
    assert "planted" in watch.failure


async def test_qemu_that_does_not_answer_holds_up_nobody() -> None:
    watch = BootWatch(0.01)

    async def page() -> str | None:
        await asyncio.sleep(3600)
        return None

    async with asyncio.timeout(60):
        await watch_boot(watch, pid=os.getpid(), page=page, ends=time.monotonic() + 3600)
    assert watch.hung
