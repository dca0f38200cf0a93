"""Boot one guest to see whether an accelerator works; judged by its progress (`boot_watch`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from deploy.errors import CannotRunHere
from deploy.host.install import how_to_install
from deploy.machine.boot_watch import BootWatch, instruction_page, watch_boot
from deploy.machine.console import Console
from deploy.machine.spec import AcceleratorName, Progress
from guests.image import COMMAND_LINE, Image

__all__ = ["CPU_MODELS", "ProbeResult", "probe", "start_qemu"]

FIRST_LIMIT, LIMIT = 5.0, 60.0
"""Seconds without progress: from the guest's start, and once it has made progress."""
DEADLINE = 600.0
"""Seconds for a guest that makes progress."""

_EMULATOR = "qemu-system-x86_64"
CPU_MODELS = {"kvm": "host,svm=off,vmx=off", "tcg": "max"}
"""A guest's processor by accelerator, as a node's guests have it (``domain_xml``)."""
_MEMORY_MIB = 128
_LONGEST_OUTPUT = 16 * 1024


class ProbeResult(NamedTuple):
    """Whether the guest became ready; what happened; whether that would be the same again."""

    ready: bool
    outcome: str
    final: bool


async def probe(
    image: Image, accel: AcceleratorName, progress: Progress = lambda _: None, *, cpu: str = ""
) -> ProbeResult:
    """Boot a guest of `image`; `cpu` is QEMU's name of its model.

    The result is not final if the guest made progress until DEADLINE, if its kernel panicked, or if
    QEMU ended without a message: on a less busy host it may differ.  Starts QEMU directly, because
    this tests the accelerator and not libvirt.  Raises CannotRunHere without QEMU.
    """
    name = accel.upper()
    begin = time.monotonic()
    watch, console = BootWatch(LIMIT, first_limit=FIRST_LIMIT), Console()
    console.listen(watch.line)
    async with _monitor() as (page, fd):
        process = await start_qemu(
            "-accel", accel, "-cpu", cpu or CPU_MODELS[accel], "-machine", "q35",
            "-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", COMMAND_LINE,
            "-device", "virtio-serial-pci", "-chardev", "null,id=link",
            "-device", "virtserialport,chardev=link,name=trivisor.link", "-serial", "stdio",
            "-chardev", f"socket,id=mon,fd={fd}", "-mon", "chardev=mon,mode=readline",
            pass_fds=(fd,),
        )  # fmt: skip
        reading = asyncio.create_task(_read(process, console, watch))
        try:
            await watch_boot(
                watch,
                pid=process.pid,
                page=page,
                ends=begin + DEADLINE,
                progress=lambda text: progress(f"a guest under {name} is {text}"),
            )
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await reading
            _, errors = await process.communicate()
    seconds = time.monotonic() - begin
    if watch.ready:
        return ProbeResult(True, f"a guest under {name} was ready in {seconds:.1f} s", True)
    if watch.ended:
        lines = errors.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "without a message"
        return ProbeResult(False, f"QEMU ended: {last}", bool(lines))
    state = "hung" if watch.hung else "failed"
    shown = "" if console.tail() else ", with an empty console"
    outcome = f"a guest under {name} {state} after {seconds:.0f} s: {watch.failure}{shown}"
    return ProbeResult(False, outcome, watch.hung)


async def start_qemu(*arguments: str, pass_fds: tuple[int, ...] = ()) -> asyncio.subprocess.Process:
    """Start QEMU, its output and errors through pipes.  Raises CannotRunHere without QEMU."""
    try:
        return await asyncio.create_subprocess_exec(
            _EMULATOR,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise CannotRunHere(
            f"{_EMULATOR} is missing", remedy=how_to_install(_EMULATOR), error_code="TV0103"
        ) from error


async def _read(process: asyncio.subprocess.Process, console: Console, watch: BootWatch) -> None:
    """Feed the guest's output to its console until QEMU ends."""
    assert process.stdout is not None
    while data := await process.stdout.read(4096):
        console.feed(data)
    watch.end("QEMU ended")


@contextlib.asynccontextmanager
async def _monitor() -> AsyncIterator[tuple[Callable[[], Awaitable[str | None]], int]]:
    """Give QEMU's end of a monitor connection, and what asks it for the page of code executed.

    It returns the answer to its previous call: a QEMU that does not answer holds up nobody.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        answers = bytearray()

        async def read() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(4096):
                    answers.extend(data)
                    del answers[:-_LONGEST_OUTPUT]

        async def page() -> str | None:
            found = instruction_page(answers.decode("ascii", errors="replace"))
            answers.clear()
            with contextlib.suppress(ConnectionError):
                writer.write(b"info registers\n")
            return found

        reading = asyncio.create_task(read())
        try:
            yield page, theirs.fileno()
        finally:
            reading.cancel()
            writer.close()
            await asyncio.wait([reading])
