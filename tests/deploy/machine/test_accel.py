"""Which accelerator: what is decided without a guest, what is kept, when it is decided again."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from deploy.errors import CannotRunHere
from deploy.machine import accel
from deploy.machine.accel import (
    AcceleratorCheck,
    AcceleratorFacts,
    boots_with_kvm,
    decide,
    read_facts,
)
from guests.image import Image

FACTS = AcceleratorFacts(
    cpu="x86_64 Some CPU",
    virtualization=True,
    kernel="6.1",
    qemu="QEMU 7.2",
    device="10:232 crw-rw---- 0:109 usable",
)
IMAGE = Image(kernel=Path("/k"), initrd=Path("/i"), sha256="0" * 64, manifest=Path("/m"))


class Host:
    """A host whose facts and whose KVM a test sets; it counts the guests booted to find out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.facts = FACTS
        self.works = True
        self.boots = 0
        monkeypatch.setattr(accel, "read_facts", self._read)
        monkeypatch.setattr(accel, "boots_with_kvm", self._boot)

    async def _read(self) -> AcceleratorFacts:
        return self.facts

    async def _boot(self, image: Image) -> AcceleratorCheck:
        self.boots += 1
        return AcceleratorCheck(works=self.works, seen="it booted" if self.works else "it hung")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


async def test_a_guest_decides_and_the_decision_is_kept(host: Host, scratch: Path) -> None:
    first = await decide(IMAGE, scratch)
    assert (first.name, first.reason, first.cached) == ("kvm", "it booted", False)
    second = await decide(IMAGE, scratch)
    assert (second.name, second.reason, second.cached) == ("kvm", "it booted", True)
    assert host.boots == 1


async def test_kvm_that_hangs_means_tcg(host: Host, scratch: Path) -> None:
    host.works = False
    assert (await decide(IMAGE, scratch)).name == "tcg"
    assert (await decide(IMAGE, scratch)).cached


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "x86_64 Another"},
        {"kernel": "6.2"},
        {"qemu": "QEMU 8.0"},
        {"device": "10:232 crw------- 0:0 denied"},
        {"virtualization": None},
    ],
)
async def test_another_host_or_qemu_is_decided_again(
    host: Host, scratch: Path, change: dict[str, object]
) -> None:
    await decide(IMAGE, scratch)
    host.facts = msgspec.structs.replace(FACTS, **change)
    host.works = False
    again = await decide(IMAGE, scratch)
    assert (again.name, again.cached) == ("tcg", False)
    assert host.boots == 2


@pytest.mark.parametrize("change", [{"device": None}, {"virtualization": False}])
async def test_where_it_is_hopeless_no_guest_is_booted(
    host: Host, scratch: Path, change: dict[str, object]
) -> None:
    host.facts = msgspec.structs.replace(FACTS, **change)
    chosen = await decide(IMAGE, scratch)
    assert chosen.name == "tcg"
    assert "/dev/kvm" in chosen.reason
    assert host.boots == 0


async def test_asked_for_outright_kvm_gets_its_try_and_nothing_else_is_taken(
    host: Host, scratch: Path
) -> None:
    host.works = False
    host.facts = msgspec.structs.replace(FACTS, virtualization=False)
    with pytest.raises(CannotRunHere, match=r"it hung; use --accel tcg"):
        await decide(IMAGE, scratch, "kvm")
    assert host.boots == 1
    host.works = True
    assert (await decide(IMAGE, scratch, "kvm")).name == "kvm"


async def test_tcg_asked_for_is_tcg(host: Host, scratch: Path) -> None:
    assert (await decide(IMAGE, scratch, "tcg")).name == "tcg"
    assert host.boots == 0


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "kvm"}'])
async def test_an_unreadable_decision_is_made_again(
    host: Host, scratch: Path, content: bytes
) -> None:
    (scratch / "accelerator.json").write_bytes(content)
    assert not (await decide(IMAGE, scratch)).cached
    assert (await decide(IMAGE, scratch)).cached


async def test_a_cache_that_cannot_be_written_stops_nothing(host: Host, scratch: Path) -> None:
    (scratch / "file").write_bytes(b"")
    assert (await decide(IMAGE, scratch / "file")).name == "kvm"


async def test_without_qemu_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setenv("PATH", str(scratch))
    with pytest.raises(CannotRunHere, match="apt-get install qemu-system-x86"):
        await decide(IMAGE, scratch)


@pytest.mark.vm
async def test_the_facts_of_this_host_are_seen() -> None:
    facts = await read_facts()
    assert facts.qemu.startswith("QEMU emulator version")
    assert (facts.device is not None) == Path("/dev/kvm").exists()
    assert facts == await read_facts()


@pytest.mark.vm
async def test_a_real_guest_judges_kvm_within_the_deadline(image: Image) -> None:
    """On a host whose /dev/kvm lies this is the only thing that tells."""
    begin = time.monotonic()
    verdict = await boots_with_kvm(image, deadline=5.0)
    assert time.monotonic() - begin < 10
    assert verdict.works == ("was ready" in verdict.seen)
    assert verdict.works or "hung" in verdict.seen or "QEMU ended" in verdict.seen
