"""Faults on real guests: each kind that needs neither proxy nor shell, with its proof.

All tests share the guests, which are restored to their clean snapshots after each.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from deploy.errors import WrongState
from deploy.machine.domain_xml import domain_xml
from deploy.machine.guest import Guest
from deploy.machine.spec import GuestState
from faultinject.faults import Injection, injection
from faultinject.faults.registers import flip_registers
from faultinject.faults.site import ActiveFault, NotApplied, Site
from tests.deploy.conftest import Booted, answers

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session")]


class RealSite(Site):
    """The shared node as a site without a voter, a client and a shell."""

    def __init__(self, booted: Booted) -> None:
        self.guests = booted.node.guests

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.guests)

    def machine(self, name: str) -> Guest:
        return self.guests[name]


@pytest_asyncio.fixture(loop_scope="session")
async def site(booted: Booted) -> AsyncIterator[RealSite]:
    """Give the shared guests, and restore them afterwards."""
    yield RealSite(booted)
    await asyncio.gather(*(guest.restore() for guest in booted.node.guests.values()))


async def inject(site: RealSite, kind: str, target: str = "g1", **more: int) -> ActiveFault:
    order = Injection(target=target, kind=kind, at=0, **{"seed": 1, **more})
    return await injection.inject(order, site)


def state_of(guest: Guest) -> GuestState:
    """The state at this moment; mypy would take `guest.state` for what it was a line above."""
    return guest.state


def differing(before: bytes, after: bytes) -> list[int]:
    """Where two memories differ; compared by pages, which is fast."""
    return [
        at
        for page in range(0, len(before), 4096)
        if before[page : page + 4096] != after[page : page + 4096]
        for at in range(page, page + 4096)
        if before[at] != after[at]
    ]


async def test_crash_ends_the_guest(site: RealSite) -> None:
    guest = site.machine("g1")
    assert "has ended" in (await inject(site, "crash")).proof
    assert state_of(guest) is GuestState.DEAD
    assert (await guest.restore()).path == "start"
    assert await answers(guest)


async def test_hang_pauses_the_guest(site: RealSite) -> None:
    guest = site.machine("g1")
    await inject(site, "hang")
    assert state_of(guest) is GuestState.PAUSED
    assert not await answers(guest, 0.3)
    assert (await guest.restore()).path == "loadvm"
    assert await answers(guest)


async def test_slow_guest_still_answers(site: RealSite) -> None:
    guest = site.machine("g1")
    applied = await inject(site, "slow")
    assert await answers(guest)
    await applied.undo()
    assert state_of(guest) is GuestState.READY


async def test_nmi_is_logged_by_the_guests_kernel(site: RealSite) -> None:
    guest = site.machine("g1")
    applied = await inject(site, "nmi")
    assert "Uhhuh. NMI received" in applied.proof
    assert await answers(guest)  # Linux logs it and continues
    assert "Uhhuh" in (await inject(site, "nmi")).proof  # a second one is a second line


async def test_reset_ends_a_guest_with_on_reset_end(site: RealSite) -> None:
    guest, dead = site.machine("g1"), asyncio.Event()
    forget = guest.subscribe(lambda event: dead.set() if event.after is GuestState.DEAD else None)
    applied = await inject(site, "reset")
    assert "has ended" in applied.proof
    async with asyncio.timeout(20):
        await dead.wait()
    forget()


async def test_reset_restarts_a_guest_with_on_reset_restart(site: RealSite) -> None:
    guest = site.machine("g2")
    spec, uuid = guest.spec, "00000000-0000-4000-8000-000000000000"
    xml = guest._xml
    guest._xml = domain_xml(
        type(spec)(**{name: getattr(spec, name) for name in spec.__struct_fields__}
                   | {"on_reset": "restart"}), node_uuid=uuid)  # fmt: skip
    try:
        await guest.kill()
        assert (await guest.restore()).path == "start"
        pid = guest.pid
        assert "in the firmware" in (await inject(site, "reset", "g2")).proof
        assert not await answers(guest, 0.3)
        assert guest.pid == pid
        assert (await guest.restore()).path == "loadvm"
        assert await answers(guest)
    finally:
        guest._xml = xml
        await guest.kill()


async def test_flips_of_memory_are_visible_to_qemu_and_undone_by_a_restore(
    site: RealSite,
) -> None:
    guest = site.machine("g1")
    await guest.pause()  # so that only the flips change its memory
    with guest.ram_file().open("rb") as file, mmap.mmap(
        file.fileno(), 0, prot=mmap.PROT_READ
    ) as ram:  # fmt: skip
        before = bytes(ram)
        applied = await inject(site, "flip-ram", dose=300)
        after = bytes(ram)
        changed = differing(before, after)
        # QEMU reads the same pages that were written: by physical address, through its monitor.
        place = next(at for at in changed if at > 1 << 20)
        output = await guest._running_domain().monitor(f"xp /1xb {place:#x}")
        assert int(output.split(":")[1], 16) == after[place]
    assert sum((before[at] ^ after[at]).bit_count() for at in changed) == 300
    assert "300 of 300 flipped bits read back" in applied.proof
    assert await applied.activated() is None
    await guest.restore()
    assert await answers(guest)


async def test_flip_all_flips_in_each_guest(site: RealSite) -> None:
    applied = await inject(site, "flip-all", "host", dose=10)
    assert "in each of 2 guests" in applied.proof


async def test_many_flips_break_a_guest(site: RealSite) -> None:
    guest = site.machine("g1")
    await inject(site, "flip-ram", dose=200_000)
    assert not await answers(guest, 1.0)
    await guest.restore()
    assert await answers(guest)


async def test_flip_of_a_register_is_read_back_and_the_guest_continues(site: RealSite) -> None:
    guest = site.machine("g1")
    applied = await inject(site, "flip-register", seed=3)
    assert "read back" in applied.proof
    assert await guest._running_domain().monitor("info status") == "VM status: running"
    assert state_of(guest) is GuestState.READY
    assert not list(site.guests["g1"].ram_file().parent.glob("*.gdb"))
    # Again: the first stub has ended.
    async with guest.debug_stub() as stub:
        flips = await flip_registers(stub, 4, 3)
    assert len(flips) == 3
    assert all(flip.before ^ flip.after == 1 << flip.bit for flip in flips)
    assert (await guest.restore()).path == "loadvm"
    assert await answers(guest)


async def test_flips_in_all_registers_stop_the_guest(site: RealSite) -> None:
    guest = site.machine("g1")
    # Several attempts: if the CPU is just running another process or a kernel thread, only that is
    # damaged, and the agent survives.
    for seed in range(1, 11):
        await inject(site, "flip-register", seed=seed, dose=17 * 32)
        if not await answers(guest, 1.0):
            break
    else:
        pytest.fail("ten times half of all register bits did not stop the guest")


async def test_paused_guest_stays_paused_after_its_debug_stub(site: RealSite) -> None:
    guest = site.machine("g1")
    await guest.pause()
    async with guest.debug_stub() as stub:
        assert stub.exists()
    assert not stub.exists()
    await inject(site, "flip-register")  # a debugger that disconnects continues the CPU
    assert await guest._running_domain().monitor("info status") == "VM status: paused"


async def test_host_crash_ends_all_guests_and_rules_out_other_faults(site: RealSite) -> None:
    applied = await inject(site, "host-crash", "host")
    assert applied.proof.count("has ended") == 2
    with pytest.raises(WrongState, match="is dead, not ready or paused"):
        await site.machine("g1").reset()
    for kind in ("nmi", "hang", "flip-ram", "flip-register", "crash"):
        with pytest.raises(NotApplied):
            await inject(site, kind)
