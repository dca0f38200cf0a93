"""Choose KVM or TCG by booting a guest, because /dev/kvm can be misleading.

On some hosts /dev/kvm opens, a VM can be created and libvirt lists it, but a guest's kernel never
prints a byte.  On others KVM works and is slow, inside another VM for example: the guest is judged
by its progress (`boot_watch`).  The decision is cached until the host or QEMU change (see
`AcceleratorFacts`), unless the guest was only slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import stat
import time
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from deploy.errors import CannotRunHere
from deploy.host.files import write_json
from deploy.machine.accel_probe import probe, start_qemu
from deploy.machine.spec import AcceleratorName, Progress
from guests.image import Image

__all__ = [
    "Accelerator",
    "AcceleratorFacts",
    "decide",
    "read_cpu",
    "read_facts",
]

SLOW_AFTER = 15.0
"""Seconds until KVM counts as slow; with a working KVM a guest is ready in less than 2."""

_RECORD = "accelerator.json"

_log = structlog.get_logger(__name__)


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accelerator for guests, and the reason."""

    name: AcceleratorName
    reason: str


class AcceleratorFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the decision depends on.  `virtualization` is None if the CPU reports no flags.

    `cpu` contains its microcode, `kernel` its build.  `module` has the parameters of KVM's module,
    among them whether it uses nested paging; it is empty if that is not loaded.  `device` is None
    without /dev/kvm, else its number, mode, owner, and whether we may open it.
    """

    cpu: str
    virtualization: bool | None
    kernel: str
    module: str
    qemu: str
    device: str | None

    @property
    def snapshots(self) -> str:
        """What a guest's snapshot depends on: a guest has seen its processor's features."""
        return f"{self.cpu}; {self.kernel}; {self.qemu}"


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    facts: AcceleratorFacts
    choice: Accelerator


async def decide(
    image: Image,
    cache: Path,
    requested: Literal["auto", "kvm", "tcg"] = "auto",
    progress: Progress = lambda _: None,
) -> Accelerator:
    """Return the accelerator for guests of `image` on this host.

    `auto` chooses KVM if it boots a guest (a slow KVM: before TCG does), else TCG.  `kvm` never
    chooses TCG: it raises CannotRunHere if KVM boots no guest.  `cache` is a directory.  Raises
    CannotRunHere without QEMU.
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
    denied = facts.device is None or facts.device.endswith("denied")
    if impossible is not None and (requested == "auto" or denied):
        choice, final = Accelerator(name="tcg", reason=impossible), True
    else:
        progress("trying KVM: booting a guest")
        choice, final = await _choose(image, progress, alternative=requested == "auto")
    if requested == "kvm" and choice.name != "kvm":
        remedy = "use --accel tcg (slower, works everywhere), or a host with (nested) KVM"
        if facts.device is not None and facts.device.endswith("denied"):
            remedy = "join the group that owns it (usermod -aG kvm USER), and log in again"
        raise CannotRunHere(
            f"KVM does not work here: {choice.reason}", remedy=remedy, error_code="TV0102"
        )
    if final:
        _write(cache, _Record(facts=facts, choice=choice))
    seconds = round(time.monotonic() - begin, 2)
    _log.info("accelerator", name=choice.name, reason=choice.reason, seconds=seconds)
    return choice


async def _choose(
    image: Image, progress: Progress, *, alternative: bool
) -> tuple[Accelerator, bool]:
    """Return KVM if it boots a guest, else TCG, and whether another try would choose the same.

    With `alternative`, a KVM that is slow has to be faster than TCG: inside another VM either can
    be too slow to use.
    """
    kvm = asyncio.create_task(probe(image, "kvm", progress))
    tasks = {kvm}
    try:
        await asyncio.wait(tasks, timeout=SLOW_AFTER if alternative else None)
        if not kvm.done():
            progress("KVM is slow here: comparing it with TCG")
            tcg = asyncio.create_task(probe(image, "tcg", progress))
            tasks.add(tcg)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not kvm.done() and tcg.result().ready:
                reason = "a guest under KVM was slower: " + tcg.result().outcome
                return Accelerator(name="tcg", reason=reason), True
        found = await kvm
        return Accelerator(name="kvm" if found.ready else "tcg", reason=found.outcome), found.final
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def read_facts() -> AcceleratorFacts:
    """Return this host's facts.  Raises CannotRunHere without QEMU."""
    process = await start_qemu("--version")
    version, _ = await process.communicate()
    cpu, flag = read_cpu(Path("/proc/cpuinfo").read_text())
    return AcceleratorFacts(
        cpu=f"{platform.machine()} {cpu}".strip(),
        virtualization=flag,
        kernel=f"{platform.release()} {platform.version()}",
        module=_module(Path("/sys/module")),
        qemu=version.decode(errors="replace").partition("\n")[0].strip(),
        device=_device(Path("/dev/kvm")),
    )


def read_cpu(cpuinfo: str) -> tuple[str, bool | None]:
    """Return the first processor's model and microcode, and whether it can run guests."""
    found: dict[str, str] = {}
    for line in cpuinfo.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        found[key.strip()] = value.strip()
    flags = found["flags"].split() if "flags" in found else None
    microcode = f"microcode {found['microcode']}" if "microcode" in found else ""
    model = f"{found.get('model name', '')} {microcode}".strip()
    return model, None if flags is None else bool({"svm", "vmx"}.intersection(flags))


def _module(modules: Path) -> str:
    """Return KVM's loaded module and its parameters, "" if there is none."""
    texts = []
    for name in ("kvm_amd", "kvm_intel"):
        if (modules / name).is_dir():
            texts.append(name)
            for parameter in sorted((modules / name / "parameters").glob("*")):
                with contextlib.suppress(OSError):  # some may only be written
                    texts.append(f"{parameter.name}={parameter.read_text().strip()}")
    return " ".join(texts)


def _impossible(facts: AcceleratorFacts) -> str | None:
    """Return why KVM cannot work, or None if only booting a guest can show that."""
    if facts.device is None:
        return "there is no /dev/kvm"
    if facts.device.endswith("denied"):
        return "this user may not open /dev/kvm"
    if facts.virtualization is False:
        return "/dev/kvm exists, but the CPU has neither svm nor vmx, so it cannot run guests"
    return None


def _device(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISCHR(status.st_mode):
        return None  # a container may hide the device behind a file
    usable = os.access(path, os.R_OK | os.W_OK)
    mode = stat.filemode(status.st_mode)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return f"{number} {mode} {status.st_uid}:{status.st_gid} {'usable' if usable else 'denied'}"


def _read(cache: Path, facts: AcceleratorFacts) -> Accelerator | None:
    """Return the cached decision for exactly these facts, if there is one."""
    try:
        record = msgspec.json.decode((cache / _RECORD).read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.info("the cached accelerator is unreadable", error=str(error))
        return None
    return record.choice if record.facts == facts else None


def _write(cache: Path, record: _Record) -> None:
    """Cache the decision.  A failure only means that the next start decides again."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / _RECORD, record)
    except OSError as error:
        _log.info("cannot cache the accelerator", error=str(error))
