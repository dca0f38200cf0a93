"""Injection into a substitute site: what is done, how it is proved, when it is not active."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from deploy.errors import DeployError, WrongState
from deploy.machine.spec import GuestState
from faultinject.faults import CATALOGUE, FaultLayer, Injection
from faultinject.faults.injection import inject
from faultinject.faults.lies import Delay
from faultinject.faults.machines import SLOW_RUNNING, SLOW_STOPPED
from faultinject.faults.proxy import ProxiedLink
from faultinject.faults.site import NotApplied, Site
from faultinject.services import PLANTED
from guests.answer import answer
from guests.protocol.message import Reply, encode_request
from guests.protocol.wire import FrameKind, encode
from guests.service import Context, Service, load
from tests.errors import logs


class FakeMachine:
    """A guest with a state and a file as its memory; a ``deaf`` one ignores its hypervisor."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.state = GuestState.READY
        self.pid: int | None = 2**22 + 1  # no process has it
        self.deaf = False
        self.lines: list[str] = []
        self.booting = False
        self.ending = False
        self._ram = directory / f"{name}.ram"
        self._ram.write_bytes(bytes(1 << 16))

    async def kill(self) -> None:
        self.state, self.pid = GuestState.DEAD, None

    async def pause(self) -> None:
        self.state = self.state if self.deaf else GuestState.PAUSED

    async def resume(self) -> None:
        self.state = GuestState.READY

    async def reset(self) -> None:
        self.booting = not self.deaf

    async def nmi(self) -> None:
        if not self.deaf:
            self.lines.append("[    1.5] Uhhuh. NMI received for unknown reason 21 on CPU 0.")

    async def registers(self) -> str:
        if self.ending:
            self.state, self.pid = GuestState.DEAD, None
            raise DeployError("the monitor is closed")
        # A running processor has left the firmware before the first poll.
        firmware = self.booting and self.state is GuestState.PAUSED
        return f"RIP=0 CR0={0x11 if firmware else 0x80050033:08x} CR2=0"

    @contextlib.asynccontextmanager
    async def debug_stub(self) -> AsyncIterator[Path]:
        raise DeployError("no stub here")
        yield  # type: ignore[unreachable]

    def ram_file(self) -> Path:
        return self._ram

    def tail(self, count: int = 20) -> list[str]:
        return self.lines[-count:]

    @property
    def ram(self) -> bytes:
        return self._ram.read_bytes()


class FakeSite(Site):
    """Three guests; no voter."""

    def __init__(self, directory: Path) -> None:
        self.machines = {name: FakeMachine(name, directory) for name in ("g1", "g2", "g3")}
        self.links = {name: ProxiedLink(name, "", "") for name in self.machines}

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.machines)

    def machine(self, name: str) -> FakeMachine:  # type: ignore[override]
        return self.machines[name]

    def link(self, name: str) -> ProxiedLink:
        return self.links[name]


class ClientSite(FakeSite):
    """A site with a client and one replica of ``service``, which copies each body to the RAM."""

    def __init__(self, directory: Path, service: str) -> None:
        super().__init__(directory)
        self.service: Service = load(service)()

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        request = encode_request(method, target, headers, body)
        reply = Reply.decode(answer(self.service, request, Context(1, 0, bytes(8), "test")))
        ram = self.machines["g1"].ram_file()
        head = len(body).to_bytes(8, "little") + bytes(8)  # of an object: its size, its hash
        ram.write_bytes(b"..." + body + head + body)
        return reply.status, reply.body


@pytest.fixture
def site(scratch: Path) -> FakeSite:
    return FakeSite(scratch)


def planned(kind: str, target: str = "g1", *, seed: int = 1, dose: int = 1) -> Injection:
    return Injection(target=target, kind=kind, at=0, seed=seed, dose=dose)


async def test_crash_kills_the_guests_qemu(site: FakeSite) -> None:
    active = await inject(planned("crash"), site)
    assert site.machine("g1").state is GuestState.DEAD
    assert "has ended" in active.proof
    with pytest.raises(NotApplied, match="g1 has no QEMU"):
        await inject(planned("crash"), site)


async def test_hang_is_not_applied_when_the_guest_does_not_pause(site: FakeSite) -> None:
    assert "stopped" in (await inject(planned("hang"), site)).proof
    site.machine("g2").deaf = True
    with pytest.raises(NotApplied, match="g2 is ready, not paused"):
        await inject(planned("hang", "g2"), site)


async def test_slow_guest_alternates_until_undone(site: FakeSite) -> None:
    active = await inject(planned("slow"), site)
    seen = set()
    for _ in range(40):
        seen.add(site.machine("g1").state)
        await asyncio.sleep(0.01)
    assert seen == {GuestState.READY, GuestState.PAUSED}
    await active.undo()
    assert site.machine("g1").state is GuestState.READY
    await active.undo()


async def test_end_of_a_slow_guest_is_logged(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended() -> None:
        raise WrongState("g1 has ended")

    active = await inject(planned("slow"), site)
    with logs("TV0511"):
        monkeypatch.setattr(site.machine("g1"), "pause", ended)
        await asyncio.sleep(SLOW_STOPPED + 2 * SLOW_RUNNING)
    await active.undo()


async def test_reset_is_proved_by_the_processors_state(site: FakeSite) -> None:
    assert "CR0 0x11" in (await inject(planned("reset"), site)).proof
    assert site.machine("g1").state is GuestState.READY, "it boots"


async def test_reset_is_proved_by_the_end_of_qemu(site: FakeSite) -> None:
    site.machine("g1").ending = True
    assert "has ended" in (await inject(planned("reset"), site)).proof


async def test_reset_is_not_applied_when_it_is_not_observed(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faultinject.faults.machines._DEADLINE", 0.05)
    site.machine("g1").deaf = True
    with pytest.raises(NotApplied, match="not observed to reset"):
        await inject(planned("reset"), site)
    assert site.machine("g1").state is GuestState.READY


async def test_interrupt_is_proved_by_the_console(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "NMI received" in (await inject(planned("nmi"), site)).proof
    monkeypatch.setattr("faultinject.faults.machines._DEADLINE", 0.05)
    site.machine("g1").deaf = True  # the line of the first interrupt does not count
    with pytest.raises(NotApplied, match="does not report the interrupt"):
        await inject(planned("nmi"), site)


async def test_flip_all_flips_the_same_bits_in_all_guests(site: FakeSite) -> None:
    active = await inject(planned("flip-all", "host", seed=4, dose=30), site)
    assert "in each of 3 guests" in active.proof
    assert await active.activated() is None
    rams = {site.machine(name).ram for name in site.names}
    assert len(rams) == 1
    assert sum(byte.bit_count() for byte in rams.pop()) == 30
    await inject(planned("flip-ram", "g1", seed=5), site)
    assert site.machine("g1").ram != site.machine("g2").ram


async def test_flip_is_not_applied_when_the_dose_is_invalid(site: FakeSite) -> None:
    with pytest.raises(NotApplied, match="a dose is 1 to"):
        await inject(planned("flip-ram", dose=0), site)


async def test_host_crash_kills_all_guests(site: FakeSite) -> None:
    await inject(planned("host-crash", "host"), site)
    assert {machine.state for machine in site.machines.values()} == {GuestState.DEAD}
    with pytest.raises(NotApplied, match="has no QEMU"):
        await inject(planned("host-crash", "host"), site)


async def test_fault_is_not_applied_when_the_machine_refuses(site: FakeSite) -> None:
    with pytest.raises(NotApplied, match="flip-register of g1: no stub here"):
        await inject(planned("flip-register"), site)


LIES = [kind for kind, fault in CATALOGUE.items() if fault.layer is FaultLayer.LINK]


@pytest.mark.parametrize("kind", LIES)
async def test_lie_is_injected_activated_and_undone(site: FakeSite, kind: str) -> None:
    link = site.link("g1")
    active = await inject(planned(kind), site)
    assert link.kind == kind
    assert link.lie is not None
    assert await active.activated() is False
    for seq in (1, 2):
        link.lie.feed(encode(FrameKind.REPLY, 1, seq, b"reply %d" % seq))
    if isinstance(link.lie, Delay):  # the proxy holds the pieces
        link.lie.late()
    assert await active.activated() is True
    await active.undo()
    assert site.link("g1").lie is None
    assert await active.activated() is True


async def test_lies_are_equal_when_their_seeds_are(site: FakeSite) -> None:
    replies = []
    for name, seed in (("g1", 7), ("g2", 7), ("g3", 8)):
        await inject(planned("corrupt-reply", name, seed=seed), site)
        lie = site.link(name).lie
        assert lie is not None
        replies.append(lie.feed(encode(FrameKind.REPLY, 1, 5, b"a long enough reply")))
    assert replies[0] == replies[1] != replies[2]


async def test_undoing_a_lie_keeps_a_later_one(site: FakeSite) -> None:
    first = await inject(planned("garbage"), site)
    await inject(planned("drop-reply"), site)
    await first.undo()
    assert site.link("g1").kind == "drop-reply"


@pytest.mark.parametrize("kind, target, message", [
    ("gamma rays", "g1", "no fault 'gamma rays'"),
    ("crash", "g9", "no guest g9: give one of g1, g2, g3"),
    ("crash", "voter", "no guest voter"),
    ("voter-kill", "g1", "voter-kill is for the voter, not g1"),
    ("voter-kill", "voter", "no voter to inject into"),
    ("service-kill", "g1", "g1 has no network card"),
    ("poison", "client", "has no client"),
    ("corrupt-state", "g1", "has no client"),
])  # fmt: skip
async def test_fault_is_not_applied_when_the_site_lacks_something(
    site: FakeSite, kind: str, target: str, message: str
) -> None:
    with pytest.raises(NotApplied, match=message) as caught:
        await inject(planned(kind, target), site)
    if "no fault" in message:
        assert caught.value.error_code == "TV0503"
    elif "has no" in message:
        assert caught.value.error_code == "TV0508"
    else:
        assert caught.value.error_code == "TV0507"


async def test_poison_is_applied_only_to_a_service_with_the_bug(scratch: Path) -> None:
    active = await inject(
        planned("poison", "client"), ClientSite(scratch, str(PLANTED["poisoned"]))
    )
    assert "was answered wrongly (201)" in active.proof
    for kind in ("poison", "poison-crash"):
        with pytest.raises(NotApplied, match="has no such bug"):
            await inject(planned(kind, "client"), ClientSite(scratch, "kv"))


async def test_corrupt_state_flips_every_copy_of_the_canary(scratch: Path) -> None:
    site = ClientSite(scratch, "kv")
    active = await inject(planned("corrupt-state"), site)
    assert "one bit of 2 copies flipped and read back (at 0x3, 0x33)" in active.proof
    with pytest.raises(NotApplied, match="cannot be written: status 405"):
        await inject(planned("corrupt-state"), ClientSite(scratch, "static"))
