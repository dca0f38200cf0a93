"""``trivisor bench link``: what a message to a guest costs over each kind of link.

A guest with all links at once answers each message with itself (``link_echo``).  A cell is one link
with one size and one number of messages in flight; every round measures all cells in random order.
The ring is measured in two ways: polled by both sides, and with a byte on a virtio-serial port as
its doorbell.  An ivshmem doorbell would need a server process and a driver that Debian lacks.

Three guests are measured, too: the time until two of them have answered, which is what a vote waits
for, with agents that poll for some time after a message before they block.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Literal, Protocol

import msgspec

from deploy.errors import HypervisorFailed
from deploy.machine.accel import decide
from deploy.machine.accel_probe import start_qemu
from deploy.machine.spec import AcceleratorName
from deploy.node.records import cache_directory
from faultinject.bench import link_echo, rig
from faultinject.bench.rounds import run_rounds
from faultinject.host_facts import Host, describe_host
from guests.image import COMMAND_LINE, Access, Image, Overlay, add_overlay, build_image

__all__ = ["LinkPlan", "LinkReport", "run_link"]

CELL = 0.5
"""Seconds that each cell is measured in a round."""
ANSWER_LIMIT = 30.0
"""Seconds for the guest's answer; then the run fails."""
BOOT_LIMIT = 90.0
READ_SIZE = 1 << 14
"""As the agent's."""
SIZES, WINDOWS = (100, 4096), (1, 64)
SPINS = (0, 200, 1000)
"""Microseconds for which the agents of three guests poll after a message."""
_CPUS = {"kvm": "host,svm=off,vmx=off", "tcg": "max"}
_PORTS = ("control", "echo", "quiet", "bell")
_ACCESS = """\
for module in /lib/modules/access/*.ko; do
    $bb insmod "$module"
done
$bb ip link set lo up
$bb ip address add 10.0.2.15/24 dev eth0
$bb ip link set eth0 up
exec /usr/bin/python3.11 -P -S -s /opt/trivisor/link_echo.py
"""
"""Sourced by the image's init before it starts the agent."""


class Variant(msgspec.Struct, frozen=True):
    """A link: its name in the guest, the size of a read there, microseconds of polling."""

    link: str
    read_size: int = READ_SIZE
    spin: int = 0


VARIANTS = {
    "virtio-serial": Variant("echo"),
    "virtio-serial, reads of 4 KiB": Variant("echo", 1 << 12),
    "virtio-serial, reads of 64 KiB": Variant("echo", 1 << 16),
    "virtio-serial, ioeventfd=off": Variant("quiet"),
    "virtio-serial, polls 200 us": Variant("echo", READ_SIZE, 200),
    "TCP, user network": Variant("tcp"),
    "ring, polled": Variant("ring"),
    "ring, bell": Variant("bell"),
}


class LinkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """``seconds``: for all rounds together, 10 to 3600.  ``accel``: auto measures all that work."""

    seconds: float
    seed: int
    accel: Literal["auto", "kvm", "tcg"]


class Cell(msgspec.Struct, frozen=True):
    """One cell: times in seconds, processor seconds per message of the driver and of all QEMUs."""

    messages: int
    p50: float
    p99: float
    host: float
    guest: float


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """``rounds``: by accelerator, a list of rounds, each with the cells by name."""

    plan: LinkPlan
    host: Host
    rounds: dict[str, list[dict[str, Cell]]]
    missing: dict[str, str]

    def medians(self, accel: str) -> dict[str, Cell]:
        """Return each cell's medians over rounds."""
        rounds = self.rounds[accel]
        return {
            name: Cell(
                sum(each[name].messages for each in rounds),
                *(
                    median(getattr(each[name], field) for each in rounds)
                    for field in ("p50", "p99", "host", "guest")
                ),
            )
            for name in rounds[0]
        }


class _Link(Protocol):
    def send(self, message: bytes, count: int) -> None: ...
    def receive(self, message: bytes) -> int: ...


class _Stream:
    """A link that is a stream of bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = b""

    def send(self, message: bytes, count: int) -> None:
        """Send so many equal messages in one write."""
        self._sock.sendall((len(message).to_bytes(link_echo.HEAD, "big") + message) * count)

    def receive(self, message: bytes) -> int:
        """Wait for data; return how many messages it completed.  Raises HypervisorFailed."""
        frame = len(message).to_bytes(link_echo.HEAD, "big") + message
        data = self._sock.recv(1 << 18)
        if not data:
            raise HypervisorFailed("the guest closed its link")
        self._held += data
        count = len(self._held) // len(frame)
        if self._held[: count * len(frame)] != frame * count:
            raise HypervisorFailed("the guest answered with other bytes than it was sent")
        self._held = self._held[count * len(frame) :]
        return count


class _Ring:
    """The ring; without a bell, both sides poll."""

    def __init__(self, ring: mmap.mmap, bell: socket.socket | None) -> None:
        self._ring, self._bell = ring, bell
        self._words = memoryview(ring).cast("I")
        self._written, self._read = self._words[link_echo.TO_GUEST], self._words[link_echo.TO_HOST]

    def send(self, message: bytes, count: int) -> None:
        """Write so many messages, then raise the counter once."""
        for _ in range(count):
            link_echo.put(self._ring, link_echo.TO_GUEST, self._written, message)
            self._written = self._written + 1 & 0xFFFFFFFF
        self._words[link_echo.TO_GUEST] = self._written
        if self._bell is not None:
            self._bell.sendall(b"!")

    def receive(self, message: bytes) -> int:
        """Wait until the guest has raised its counter; return how many messages it wrote."""
        if self._bell is not None:
            self._bell.recv(4096)
        ends = time.monotonic() + ANSWER_LIMIT
        while (written := self._words[link_echo.TO_HOST]) == self._read:
            if self._bell is not None:
                return 0
            if time.monotonic() > ends:
                raise TimeoutError
        count = 0
        while self._read != written:
            if link_echo.get(self._ring, link_echo.TO_HOST, self._read) != message:
                raise HypervisorFailed("the guest answered with other bytes than it was sent")
            self._read = self._read + 1 & 0xFFFFFFFF
            count += 1
        return count


class _Guest:
    """A booted guest and the host's ends of its links."""

    def __init__(
        self, pid: int, sockets: Mapping[str, socket.socket], port: int, ring: mmap.mmap
    ) -> None:
        self.pid = pid
        self._sockets, self._port, self._ring = sockets, port, ring

    @contextlib.contextmanager
    def open(self, variant: Variant) -> Iterator[_Link]:
        """Have the guest serve a link, and yield it; the guest is idle afterwards."""
        self._tell(f"{variant.link} {variant.read_size} {variant.spin}\n")
        try:
            if variant.link == "tcp":
                with socket.create_connection(("127.0.0.1", self._port), ANSWER_LIMIT) as sock:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    yield _Stream(sock)
            elif variant.link in ("ring", "bell"):
                bell = self._sockets["bell"] if variant.link == "bell" else None
                yield _Ring(self._ring, bell)
            else:
                yield _Stream(self._sockets[variant.link])
        finally:
            self._tell("idle 0 0\n")

    @property
    def echo_socket(self) -> socket.socket:
        """The host end of the virtio-serial port that echoes."""
        return self._sockets["echo"]

    def _tell(self, line: str) -> None:
        self._sockets["control"].sendall(line.encode())
        self.wait_ok()

    def wait_ok(self) -> None:
        """Wait for the guest's ``ok``.  Raises HypervisorFailed."""
        try:
            answer = self._sockets["control"].recv(64)
        except TimeoutError as error:
            raise HypervisorFailed("the guest of the link bench does not answer") from error
        if answer != b"ok\n":
            raise HypervisorFailed(f"the guest of the link bench answered {answer!r}")


def _cpu(pid: int) -> float:
    """Return the processor seconds of a process: the clock that clock_getcpuclockid(3) returns."""
    return time.clock_gettime(~pid << 3 | 2)


def _percentile(times: Sequence[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * part))]


def _measure(guest: _Guest, variant: Variant, window: int, size: int, seconds: float) -> Cell:
    """Keep ``window`` messages in flight for so long."""
    message, times = b"x" * size, []
    sent: deque[float] = deque()
    with guest.open(variant) as link:
        begin, host, cpu = time.monotonic(), time.process_time(), _cpu(guest.pid)
        link.send(message, window)
        sent.extend([begin] * window)
        while sent:
            count = link.receive(message)
            now = time.monotonic()
            times += [now - sent.popleft() for _ in range(count)]
            if count and now - begin < seconds:
                sent.extend([now] * count)
                link.send(message, count)
        host, cpu = time.process_time() - host, _cpu(guest.pid) - cpu
    number = len(times)
    return Cell(
        number, _percentile(times, 0.5), _percentile(times, 0.99), host / number, cpu / number
    )


def _measure_voted(guests: Sequence[_Guest], spin: int, seconds: float) -> Cell:
    """Send one message at a time to all guests; a message's time ends with the second answer."""
    message, times = b"x" * SIZES[0], []
    variant = Variant("echo", READ_SIZE, spin)
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        links = [stack.enter_context(guest.open(variant)) for guest in guests]
        answered = [0] * len(links)
        for number, guest in enumerate(guests):
            selector.register(guest.echo_socket, selectors.EVENT_READ, number)
        begin, host = time.monotonic(), time.process_time()
        cpu = sum(_cpu(guest.pid) for guest in guests)
        while (now := time.monotonic()) - begin < seconds:
            for link in links:
                link.send(message, 1)
            while sum(each > len(times) for each in answered) < 2:
                _receive(selector, links, answered, message)
            times.append(time.monotonic() - now)
        while min(answered) < len(times):
            _receive(selector, links, answered, message)
        host = time.process_time() - host
        cpu = sum(_cpu(guest.pid) for guest in guests) - cpu
    number = len(times)
    return Cell(
        number, _percentile(times, 0.5), _percentile(times, 0.99), host / number, cpu / number
    )


def _receive(
    selector: selectors.BaseSelector, links: Sequence[_Link], answered: list[int], message: bytes
) -> None:
    ready = selector.select(ANSWER_LIMIT)
    if not ready:
        raise HypervisorFailed("no guest of the link bench answers")
    for key, _ in ready:
        answered[key.data] += links[key.data].receive(message)


@contextlib.asynccontextmanager
async def _boot(
    image: Image, accel: AcceleratorName, directory: Path, name: str
) -> AsyncIterator[_Guest]:
    """Boot a guest with all links; end it afterwards.  Raises HypervisorFailed."""
    path, port = directory / f"{name}.ring", rig.free_port()
    path.write_bytes(bytes(link_echo.RING_SIZE))
    with contextlib.ExitStack() as stack:
        words: list[str] = []
        pairs = {each: socket.socketpair() for each in _PORTS}
        for each, (ours, theirs) in pairs.items():
            stack.enter_context(ours)
            stack.enter_context(theirs)
            bus = "quiet" if each == "quiet" else "normal"
            words += ["-chardev", f"socket,id={each},fd={theirs.fileno()}",
                      "-device", f"virtserialport,bus={bus}.0,chardev={each},name={each}"]  # fmt: skip
        process = await start_qemu(
            "-accel", accel, "-cpu", _CPUS[accel], "-machine", "q35", "-m", "128", "-nodefaults",
            "-no-user-config", "-display", "none", "-kernel", str(image.kernel),
            "-initrd", str(image.initrd), "-append", COMMAND_LINE, "-serial", "null",
            "-device", "virtio-serial-pci,id=normal",
            "-device", "virtio-serial-pci,id=quiet,ioeventfd=off", *words,
            "-netdev", f"user,id=net,restrict=on,ipv6=off,"
                       f"hostfwd=tcp:127.0.0.1:{port}-:{link_echo.TCP_PORT}",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-object", f"memory-backend-file,id=ring,share=on,mem-path={path},"
                       f"size={link_echo.RING_SIZE}",
            "-device", "ivshmem-plain,memdev=ring",
            pass_fds=tuple(theirs.fileno() for _, theirs in pairs.values()),
        )  # fmt: skip
        try:
            with path.open("r+b") as file:
                ring = mmap.mmap(file.fileno(), link_echo.RING_SIZE)
            guest = _Guest(process.pid, {each: ours for each, (ours, _) in pairs.items()}, port, ring)
            pairs["control"][0].settimeout(BOOT_LIMIT)
            await asyncio.to_thread(guest.wait_ok)
            for ours, _ in pairs.values():
                ours.settimeout(ANSWER_LIMIT)
            yield guest
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


def run_link(plan: LinkPlan, progress: Callable[[str], None]) -> LinkReport:
    """Measure all links.  Raises CannotRunHere, HypervisorFailed, ImageError, OSError."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "l")


async def _run(plan: LinkPlan, directory: Path, progress: Callable[[str], None]) -> LinkReport:
    load, missing = os.getloadavg()[0], {}
    cache = cache_directory() / "images"
    echo = Path(link_echo.__file__).read_bytes()
    overlay = Overlay(
        service="static",
        access=Access(host=b"", client=""),  # for the network card's driver; no SSH server starts
        files={"etc/trivisor/access": _ACCESS.encode(), "opt/trivisor/link_echo.py": echo},
    )
    image = add_overlay(build_image(cache, progress=progress), directory / "image", overlay)
    chosen = await decide(image, cache, plan.accel, progress)
    accels: list[AcceleratorName] = [chosen.name]
    if plan.accel == "auto" and chosen.name == "kvm":
        accels = ["tcg", "kvm"]
    elif plan.accel == "auto":
        missing["KVM"] = f"not here: {chosen.reason}"
    vsock = Path("/dev/vhost-vsock").exists()
    missing["vsock"] = (
        "not measured: the guest image has no vsock driver" if vsock
        else "not here: no /dev/vhost-vsock"
    )  # fmt: skip
    random, rounds = Random(plan.seed), {}
    for accel in accels:
        progress(f"{accel}: booting three guests; seed {plan.seed}")
        rounds[accel] = await _rounds(image, accel, directory, random, plan.seconds / len(accels))
    host = describe_host(accel=", ".join(accels), load_before=load)
    return LinkReport(plan=plan, host=host, rounds=rounds, missing=missing)


async def _rounds(
    image: Image, accel: AcceleratorName, directory: Path, random: Random, seconds: float
) -> list[dict[str, Cell]]:
    done: list[dict[str, Cell]] = []
    async with contextlib.AsyncExitStack() as stack:
        guests = [
            await stack.enter_async_context(_boot(image, accel, directory, f"{accel}{number}"))
            for number in range(3)
        ]
        cells: dict[str, Callable[[], Cell]] = {
            f"{name}; {window} in flight; {size} B": (
                lambda v=variant, w=window, s=size: _measure(guests[0], v, w, s, CELL)
            )
            for name, variant in VARIANTS.items()
            for window in WINDOWS
            for size in SIZES
        }
        cells |= {
            f"voted, 3 guests, polls {spin} us; 1 in flight; {SIZES[0]} B": (
                lambda s=spin: _measure_voted(guests, s, CELL)
            )
            for spin in SPINS
        }

        async def measure(name: str) -> Cell:
            return await asyncio.to_thread(cells[name])

        await run_rounds(list(cells), measure, done, random=random, seconds=seconds, least=2)
    return done
