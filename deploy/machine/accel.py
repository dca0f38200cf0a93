"""Choose KVM or TCG by booting a guest under a deadline, because /dev/kvm can be misleading.

On some hosts /dev/kvm opens, a VM can be created and libvirt lists it, but a guest's kernel never
prints a byte.  The decision is cached until the host or QEMU change.
"""

from __future__ import annotations

import asyncio
import os
import platform
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from deploy.errors import CannotRunHere
from deploy.host.files import write_json
from deploy.machine.spec import READY_LINE, AcceleratorName
from guests.image import COMMAND_LINE, Image

__all__ = [
    "Accelerator",
    "AcceleratorFacts",
    "decide",
    "probe_kvm",
    "read_facts",
]

PROBE_DEADLINE = 5.0
"""Seconds; with a working KVM a guest is ready in less than 2."""

_EMULATOR = "qemu-system-x86_64"
_RECORD = "accelerator.json"
_MEMORY_MIB = 128
_LONGEST_OUTPUT = 256 * 1024

_log = structlog.get_logger(__name__)


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accelerator for guests, and the reason."""

    name: AcceleratorName
    reason: str


class AcceleratorFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the decision depends on.  `virtualization` is None if the CPU reports no flags.

    `device` is None without /dev/kvm, else its number, mode, owner, and whether we may open it.
    """

    cpu: str
    virtualization: bool | None
    kernel: str
    qemu: str
    device: str | None


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    facts: AcceleratorFacts
    choice: Accelerator


async def decide(
    image: Image,
    cache: Path,
    requested: Literal["auto", "kvm", "tcg"] = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> Accelerator:
    """Return the accelerator for guests of `image` on this host.

    `auto` chooses KVM if it boots a guest, else TCG.  `kvm` never chooses TCG: it raises
    CannotRunHere if KVM boots no guest.  `cache` is a directory.  Raises CannotRunHere without
    QEMU.
    """
    if requested == "tcg":
        return Accelerator(name="tcg", reason="requested")
    begin = time.monotonic()
    facts = await read_facts()
    cached = _read(cache, facts)
    # An explicit request for KVM tries it again, even if it failed before.
    if cached is not None and (requested == "auto" or cached.name == "kvm"):
        progress("the accelerator is known from an earlier start")
        return cached
    impossible = _impossible(facts)
    if impossible is not None and (requested == "auto" or facts.device is None):
        choice = Accelerator(name="tcg", reason=impossible)
    else:
        progress(f"trying KVM: a guest has {PROBE_DEADLINE:g} s to boot")
        choice = await probe_kvm(image)
    if requested == "kvm" and choice.name != "kvm":
        raise CannotRunHere(
            f"KVM does not work here: {choice.reason}",
            remedy="use --accel tcg (slower, works everywhere), or a host with (nested) KVM",
        )
    _write(cache, _Record(facts=facts, choice=choice))
    seconds = round(time.monotonic() - begin, 2)
    _log.info("accelerator", name=choice.name, reason=choice.reason, seconds=seconds)
    return choice


async def probe_kvm(image: Image, *, deadline: float = PROBE_DEADLINE) -> Accelerator:
    """Boot a guest under KVM; return KVM if it becomes ready within `deadline` seconds, else TCG.

    Starts QEMU directly, because this tests KVM and not libvirt.
    """
    begin = time.monotonic()
    process = await _start_qemu(
        "-accel", "kvm", "-cpu", "host", "-machine", "q35", "-m", str(_MEMORY_MIB),
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", COMMAND_LINE,
        "-device", "virtio-serial-pci", "-chardev", "null,id=link",
        "-device", "virtserialport,chardev=link,name=trivisor.link",
    )  # fmt: skip
    console = bytearray()
    try:
        async with asyncio.timeout(deadline):
            ready = await _read_until_ready(process, console)
    except TimeoutError:
        printed = f"{len(console)} bytes on its console" if console else "an empty console"
        return Accelerator(
            name="tcg", reason=f"a guest under KVM hung: {printed} in {deadline:g} s"
        )
    finally:
        if process.returncode is None:
            process.kill()
        _, errors = await process.communicate()  # reads the pipes to their end and closes them
    if ready:
        seconds = time.monotonic() - begin
        return Accelerator(name="kvm", reason=f"a guest under KVM was ready in {seconds:.1f} s")
    lines = errors.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "without a message"
    return Accelerator(name="tcg", reason=f"QEMU ended: {last}")


async def read_facts() -> AcceleratorFacts:
    """Return this host's facts.  Raises CannotRunHere without QEMU."""
    process = await _start_qemu("--version")
    version, _ = await process.communicate()
    model, flag = "", None
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flag = bool({"svm", "vmx"}.intersection(value.split()))
            break
    return AcceleratorFacts(
        cpu=f"{platform.machine()} {model}".strip(),
        virtualization=flag,
        kernel=platform.release(),
        qemu=version.decode(errors="replace").partition("\n")[0].strip(),
        device=_device(Path("/dev/kvm")),
    )


def _impossible(facts: AcceleratorFacts) -> str | None:
    """Return why KVM cannot work, or None if only booting a guest can show that."""
    if facts.device is None:
        return "there is no /dev/kvm"
    if facts.virtualization is False:
        return "/dev/kvm exists, but the CPU has neither svm nor vmx, so it cannot run guests"
    return None


def _device(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError:
        return None
    usable = os.access(path, os.R_OK | os.W_OK)
    mode, number = stat.filemode(status.st_mode), f"{os.major(status.st_rdev)}:{status.st_rdev}"
    return f"{number} {mode} {status.st_uid}:{status.st_gid} {'usable' if usable else 'denied'}"


async def _start_qemu(*arguments: str) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            _EMULATOR,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise CannotRunHere(
            f"{_EMULATOR} is missing", remedy="install it: apt-get install qemu-system-x86"
        ) from error


async def _read_until_ready(process: asyncio.subprocess.Process, console: bytearray) -> bool:
    """Collect the guest's output until it is ready (True) or its output ends (False)."""
    assert process.stdout is not None
    while data := await process.stdout.read(4096):
        console += data
        if READY_LINE.encode() in console:
            return True
        del console[:-_LONGEST_OUTPUT]
    return False


def _read(cache: Path, facts: AcceleratorFacts) -> Accelerator | None:
    """Return the cached decision for exactly these facts, if there is one."""
    try:
        record = msgspec.json.decode((cache / _RECORD).read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.info("the cached accelerator is unreadable: deciding again", error=str(error))
        return None
    return record.choice if record.facts == facts else None


def _write(cache: Path, record: _Record) -> None:
    """Cache the decision.  A failure only means that the next start decides again."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / _RECORD, record)
    except OSError as error:
        _log.info("cannot cache the accelerator", error=str(error))
