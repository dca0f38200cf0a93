"""The choice of the accelerator: when it needs a guest, when it is cached, when it is repeated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from deploy.machine import accel
from deploy.machine.accel import AcceleratorFacts, decide, read_cpu, read_facts
from deploy.machine.accel_probe import ProbeResult, probe
from deploy.machine.spec import AcceleratorName, Progress
from guests.image import Image
from tests.errors import raises

FACTS = AcceleratorFacts(
    cpu="x86_64 Some CPU",
    virtualization=True,
    kernel="6.1",
    module="kvm_amd nested=1 npt=Y",
    qemu="QEMU 7.2",
    device="10:232 crw-rw---- 0:109 usable",
)
IMAGE = Image(kernel=Path("/k"), initrd=Path("/i"), sha256="0" * 64, manifest=Path("/m"))


class Host:
    """A host whose facts and accelerators a test sets; counts the guests that KVM booted.

    `kvm_seconds` and `tcg_seconds` are the times that a boot takes; None: for ever.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.facts = FACTS
        self.works = True
        self.final = True
        self.boots = 0
        self.kvm_seconds: float | None = 0.0
        self.tcg_seconds: float | None = 0.0
        self.cancelled: list[str] = []
        monkeypatch.setattr(accel, "read_facts", self._read)
        monkeypatch.setattr(accel, "probe", self._boot)
        monkeypatch.setattr(accel, "SLOW_AFTER", 0.05)

    async def _read(self) -> AcceleratorFacts:
        return self.facts

    async def _boot(self, image: Image, name: AcceleratorName, progress: Progress) -> ProbeResult:
        self.boots += name == "kvm"
        seconds = self.kvm_seconds if name == "kvm" else self.tcg_seconds
        try:
            await asyncio.sleep(3600 if seconds is None else seconds)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if name == "tcg" or self.works:
            return ProbeResult(True, "it booted", True)
        return ProbeResult(False, "it hung", self.final)


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
        {"module": "kvm_amd nested=1 npt=N"},
        {"qemu": "QEMU 8.0"},
        {"device": "10:232 crw------- 0:0 usable"},
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


@pytest.mark.parametrize(
    "change",
    [{"device": None}, {"device": "10:232 crw-rw---- 0:109 denied"}, {"virtualization": False}],
)
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
    with raises("TV0102", match=r"it hung; use --accel tcg"):
        await decide(IMAGE, scratch, "kvm")
    assert host.boots == 1
    host.works = True
    assert (await decide(IMAGE, scratch, "kvm")).name == "kvm"


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        (None, "there is no /dev/kvm; use --accel tcg"),
        ("10:232 crw-rw---- 0:109 denied", r"may not open /dev/kvm; join .*usermod -aG kvm"),
    ],
)
async def test_requested_kvm_without_the_device_is_an_error_that_says_what_to_do(
    host: Host, scratch: Path, device: str | None, problem: str
) -> None:
    host.facts = msgspec.structs.replace(FACTS, device=device)
    with raises("TV0102", match=problem):
        await decide(IMAGE, scratch, "kvm")
    assert host.boots == 0


CPUINFO = """\
processor\t: 0
model name\t: Some CPU
microcode\t: 0xa101148
flags\t\t: fpu vme svm
bugs\t\t: none

processor\t: 1
model name\t: Other
flags\t\t: fpu
"""


@pytest.mark.parametrize(
    ("text", "model", "flag"),
    [
        (CPUINFO, "Some CPU microcode 0xa101148", True),
        (CPUINFO.replace(" svm", ""), "Some CPU microcode 0xa101148", False),
        (CPUINFO.replace("microcode\t: 0xa101148\n", ""), "Some CPU", True),
        ("processor\t: 0\nFeatures\t: fp\n", "", None),
        ("", "", None),
    ],
)
def test_first_processor_is_read(text: str, model: str, flag: bool | None) -> None:
    assert read_cpu(text) == (model, flag)


async def test_requested_tcg_boots_no_guest(host: Host, scratch: Path) -> None:
    assert (await decide(IMAGE, scratch, "tcg")).name == "tcg"
    assert host.boots == 0


async def test_kvm_that_is_slower_than_tcg_is_not_used(host: Host, scratch: Path) -> None:
    host.kvm_seconds = None
    chosen = await decide(IMAGE, scratch)
    assert (chosen.name, host.cancelled) == ("tcg", ["kvm"])
    assert "slower" in chosen.reason


async def test_slow_kvm_is_used_where_tcg_is_slower(host: Host, scratch: Path) -> None:
    host.kvm_seconds, host.tcg_seconds = 0.2, None
    assert (await decide(IMAGE, scratch)).name == "kvm"
    assert host.cancelled == ["tcg"]


async def test_requested_kvm_may_be_slow(host: Host, scratch: Path) -> None:
    host.kvm_seconds = 0.2
    assert (await decide(IMAGE, scratch, "kvm")).name == "kvm"


async def test_failure_that_another_try_may_not_see_is_not_cached(
    host: Host, scratch: Path
) -> None:
    host.works = host.final = False
    assert (await decide(IMAGE, scratch)).name == "tcg"
    host.works = True
    assert (await decide(IMAGE, scratch)).name == "kvm"


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
    with raises("TV0103", match=r"apt-get install .*qemu-system-x86"):
        await decide(IMAGE, scratch)


@pytest.mark.vm
async def test_facts_of_this_host_are_read() -> None:
    facts = await read_facts()
    assert facts.qemu.startswith("QEMU emulator version")
    assert (facts.device is not None) == Path("/dev/kvm").is_char_device()
    assert facts == await read_facts()


@pytest.mark.vm
async def test_real_guest_tests_an_accelerator(image: Image) -> None:
    result = await probe(image, "tcg")
    assert result.ready, result
    result = await probe(image, "tcg", cpu="no-such-model")
    assert (result.ready, result.final) == (False, True)
    assert result.outcome.startswith("QEMU ended: ")
    assert "no-such-model" in result.outcome
