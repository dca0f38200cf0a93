"""Faults on real guests: each act of the catalogue that needs no proxy and no shell, read back.

The guests are those all tests share, and are put back to their clean snapshots after each.
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
from deploy.machine.states import GuestState
from faultinject.faults import Injection
from faultinject.faults.injection import inject
from faultinject.faults.registers import flip_registers
from faultinject.faults.site import ActiveFault, NotApplied, Site
from tests.deploy.conftest import Booted
from tests.deploy.greeting import answers

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session")]


class RealSite(Site):
    """The shared node as a site; it has no voter, no client, no shell."""

    def __init__(self, booted: Booted) -> None:
        self.guests = booted.node.guests

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.guests)

    def machine(self, name: str) -> Guest:
        return self.guests[name]


@pytest_asyncio.fixture(loop_scope="session")
async def site(booted: Booted) -> AsyncIterator[RealSite]:
    """Give the shared guests, and put them back afterwards."""
    yield RealSite(booted)
    await asyncio.gather(*(guest.put_back(120) for guest in booted.node.guests.values()))


async def strike(site: RealSite, kind: str, target: str = "g1", **more: int) -> ActiveFault:
    return await inject(Injection(target=target, kind=kind, at=0, **{"seed": 1, **more}), site)


def state_of(guest: Guest) -> GuestState:
    """The state at this moment; mypy would take `guest.state` for what it was a line above."""
    return guest.state


def differing(before: bytes, after: bytes) -> list[int]:
    """Where two memories differ; looked at by pages, for there are millions of bytes."""
    return [
        at
        for page in range(0, len(before), 4096)
        if before[page : page + 4096] != after[page : page + 4096]
        for at in range(page, page + 4096)
        if before[at] != after[at]
    ]


async def test_crash(site: RealSite) -> None:
    guest = site.machine("g1")
    assert "has ended" in (await strike(site, "crash")).proof
    assert state_of(guest) is GuestState.DEAD
    assert (await guest.put_back(120)).path == "start"
    assert await answers(guest)


async def test_hang(site: RealSite) -> None:
    guest = site.machine("g1")
    await strike(site, "hang")
    assert state_of(guest) is GuestState.PAUSED
    assert not await answers(guest, 0.3)
    assert (await guest.put_back(120)).path == "loadvm"
    assert await answers(guest)


async def test_slow(site: RealSite) -> None:
    guest = site.machine("g1")
    applied = await strike(site, "slow")
    assert await answers(guest)
    await applied.undo()
    assert state_of(guest) is GuestState.READY


async def test_nmi(site: RealSite) -> None:
    guest = site.machine("g1")
    applied = await strike(site, "nmi")
    assert "Uhhuh. NMI received" in applied.proof
    assert await answers(guest)  # Linux tells of it and goes on
    assert "Uhhuh" in (await strike(site, "nmi")).proof  # a second one is a second line


async def test_a_reset_ends_a_guest_that_is_not_to_start_again(site: RealSite) -> None:
    guest, dead = site.machine("g1"), asyncio.Event()
    forget = guest.subscribe(lambda event: dead.set() if event.after is GuestState.DEAD else None)
    applied = await strike(site, "reset")
    assert "has ended" in applied.proof
    async with asyncio.timeout(20):
        await dead.wait()
    forget()


async def test_a_reset_starts_a_guest_again_that_is_to(site: RealSite) -> None:
    guest = site.machine("g2")
    spec, uuid = guest.spec, "00000000-0000-4000-8000-000000000000"
    xml = guest._xml
    guest._xml = domain_xml(
        type(spec)(**{name: getattr(spec, name) for name in spec.__struct_fields__}
                   | {"on_reset": "restart"}), node_uuid=uuid)  # fmt: skip
    try:
        await guest.kill()
        assert (await guest.put_back(120)).path == "start"
        pid = guest.pid
        assert "in the firmware" in (await strike(site, "reset", "g2")).proof
        assert not await answers(guest, 0.3)
        assert guest.pid == pid
        assert (await guest.put_back(120)).path == "loadvm"
        assert await answers(guest)
    finally:
        guest._xml = xml
        await guest.kill()


async def test_flips_of_memory_are_seen_by_the_guest_and_gone_with_its_snapshot(
    site: RealSite,
) -> None:
    guest = site.machine("g1")
    await guest.pause()  # so that nothing but the flips changes its memory
    with guest.ram_file().open("rb") as file, mmap.mmap(
        file.fileno(), 0, prot=mmap.PROT_READ
    ) as ram:  # fmt: skip
        before = bytes(ram)
        applied = await strike(site, "flip-ram", dose=300)
        after = bytes(ram)
        changed = differing(before, after)
        # QEMU reads the same pages that were written: by physical address, through its monitor.
        place = next(at for at in changed if at > 1 << 20)
        said = await guest._living_domain().monitor(f"xp /1xb {place:#x}")
        assert int(said.split(":")[1], 16) == after[place]
    assert sum((before[at] ^ after[at]).bit_count() for at in changed) == 300
    assert "300 of 300 flipped bits read back" in applied.proof
    assert await applied.activated() is None
    await guest.put_back(120)
    assert await answers(guest)


async def test_one_flip_in_all(site: RealSite) -> None:
    applied = await strike(site, "flip-all", "host", dose=10)
    assert "in each of 2 guests" in applied.proof


async def test_enough_flips_break_a_guest(site: RealSite) -> None:
    guest = site.machine("g1")
    await strike(site, "flip-ram", dose=200_000)
    assert not await answers(guest, 1.0)
    await guest.put_back(120)
    assert await answers(guest)


async def test_a_flip_of_a_register_is_read_back_and_the_guest_runs_on(site: RealSite) -> None:
    guest = site.machine("g1")
    applied = await strike(site, "flip-register", seed=3)
    assert "read back" in applied.proof
    assert await guest._living_domain().monitor("info status") == "VM status: running"
    assert state_of(guest) is GuestState.READY
    assert not list(site.guests["g1"].ram_file().parent.glob("*.gdb"))
    # And again: the stub of before is gone.
    async with guest.debug_stub() as stub:
        flips = await flip_registers(stub, 4, 3)
    assert len(flips) == 3
    assert all(flip.before ^ flip.after == 1 << flip.bit for flip in flips)
    assert (await guest.put_back(120)).path == "loadvm"
    assert await answers(guest)


async def test_flips_in_every_register_stop_the_guest(site: RealSite) -> None:
    guest = site.machine("g1")
    # More than one try: a processor that is just then in another process, or in a thread of the
    # kernel's, loses only that, and the agent lives.
    for seed in range(1, 11):
        await strike(site, "flip-register", seed=seed, dose=17 * 32)
        if not await answers(guest, 1.0):
            break
    else:
        pytest.fail("ten times half of all bits in the registers did nothing to the guest")


async def test_a_paused_guest_stays_so_after_its_stub(site: RealSite) -> None:
    guest = site.machine("g1")
    await guest.pause()
    async with guest.debug_stub() as stub:
        assert stub.exists()
    assert not stub.exists()
    await strike(site, "flip-register")  # a debugger that leaves lets the processor run
    assert await guest._living_domain().monitor("info status") == "VM status: paused"


async def test_a_host_crash_and_what_then_cannot_be(site: RealSite) -> None:
    applied = await strike(site, "host-crash", "host")
    assert applied.proof.count("has ended") == 2
    with pytest.raises(WrongState, match="is dead, not ready or paused"):
        await site.machine("g1").reset()
    for kind in ("nmi", "hang", "flip-ram", "flip-register", "crash"):
        with pytest.raises(NotApplied):
            await strike(site, kind)
