"""The choice of the accelerator: when it needs a guest, when it is cached, when it is repeated."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from deploy.errors import CannotRunHere
from deploy.machine import accel
from deploy.machine.accel import (
    Accelerator,
    AcceleratorFacts,
    decide,
    probe_kvm,
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
    """A host whose facts and KVM a test sets; counts the guests that were booted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.facts = FACTS
        self.works = True
        self.boots = 0
        monkeypatch.setattr(accel, "read_facts", self._read)
        monkeypatch.setattr(accel, "probe_kvm", self._boot)

    async def _read(self) -> AcceleratorFacts:
        return self.facts

    async def _boot(self, image: Image) -> Accelerator:
        self.boots += 1
        if self.works:
            return Accelerator(name="kvm", reason="it booted")
        return Accelerator(name="tcg", reason="it hung")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


@pytest.mark.parametrize(("works", "name"), [(True, "kvm"), (False, "tcg")])
async def test_a_guest_decides_and_the_decision_is_cached(
    host: Host, scratch: Path, works: bool, name: str
) -> None:
    host.works = works
    first = await decide(IMAGE, scratch)
    assert (first.name, first.reason) == (name, "it booted" if works else "it hung")
    assert await decide(IMAGE, scratch) == first
    assert host.boots == 1


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
async def test_decision_is_repeated_when_host_or_qemu_change(
    host: Host, scratch: Path, change: dict[str, object]
) -> None:
    await decide(IMAGE, scratch)
    host.facts = msgspec.structs.replace(FACTS, **change)
    host.works = False
    assert (await decide(IMAGE, scratch)).name == "tcg"
    assert host.boots == 2


@pytest.mark.parametrize("change", [{"device": None}, {"virtualization": False}])
async def test_no_guest_is_booted_when_kvm_is_impossible(
    host: Host, scratch: Path, change: dict[str, object]
) -> None:
    host.facts = msgspec.structs.replace(FACTS, **change)
    chosen = await decide(IMAGE, scratch)
    assert chosen.name == "tcg"
    assert "/dev/kvm" in chosen.reason
    assert host.boots == 0


async def test_requested_kvm_is_always_tried_and_never_replaced_by_tcg(
    host: Host, scratch: Path
) -> None:
    host.works = False
    host.facts = msgspec.structs.replace(FACTS, virtualization=False)
    with pytest.raises(CannotRunHere, match=r"it hung; use --accel tcg"):
        await decide(IMAGE, scratch, "kvm")
    assert host.boots == 1
    host.works = True
    assert (await decide(IMAGE, scratch, "kvm")).name == "kvm"


async def test_requested_tcg_boots_no_guest(host: Host, scratch: Path) -> None:
    assert (await decide(IMAGE, scratch, "tcg")).name == "tcg"
    assert host.boots == 0


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "kvm"}'])
async def test_unreadable_cache_is_replaced(host: Host, scratch: Path, content: bytes) -> None:
    (scratch / "accelerator.json").write_bytes(content)
    await decide(IMAGE, scratch)
    await decide(IMAGE, scratch)
    assert host.boots == 1


async def test_unwritable_cache_is_ignored(host: Host, scratch: Path) -> None:
    (scratch / "file").write_bytes(b"")
    assert (await decide(IMAGE, scratch / "file")).name == "kvm"


async def test_missing_qemu_is_reported_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setenv("PATH", str(scratch))
    with pytest.raises(CannotRunHere, match="apt-get install qemu-system-x86"):
        await decide(IMAGE, scratch)


@pytest.mark.vm
async def test_facts_of_this_host_are_read() -> None:
    facts = await read_facts()
    assert facts.qemu.startswith("QEMU emulator version")
    assert (facts.device is not None) == Path("/dev/kvm").exists()
    assert facts == await read_facts()


@pytest.mark.vm
async def test_real_guest_tests_kvm_within_the_deadline(image: Image) -> None:
    begin = time.monotonic()
    check = await probe_kvm(image, deadline=5.0)
    assert time.monotonic() - begin < 10
    assert (check.name == "kvm") == ("was ready" in check.reason)
    assert any(text in check.reason for text in ("was ready", "hung", "QEMU ended"))
