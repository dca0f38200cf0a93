"""``trivisor bench link``: what a message to a guest costs over each kind of link.

A guest that has all links sends every message back (``link_echo``).  A cell is one link under one
load with messages of one size.  Every round measures all cells in random order.

The ring is memory that host and guest share: an ivshmem device.  Either both sides poll it, or a
byte on a virtio-serial port is its doorbell.  (The doorbell of ivshmem itself needs a server
process, and a driver that Debian's kernel lacks.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count, product
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import NamedTuple

import msgspec

from deploy.errors import HypervisorFailed
from deploy.machine.accel import decide, read_facts
from deploy.machine.spec import AcceleratorName
from deploy.node.records import cache_directory
from faultinject.bench import rig
from faultinject.bench.link_guest import (
    ANSWER_LIMIT,
    EchoGuest,
    Link,
    boot,
    echo_image,
    missing_vsock,
)
from faultinject.bench.rounds import IN_FLIGHT, ratios, run_rounds
from faultinject.bench.usage import HostShare, cpu_seconds
from faultinject.host_facts import Host, describe_host
from faultinject.load import percentile
from guests.image import build_image

__all__ = [
    "Cell", "Echoes", "LinkPlan", "LinkReport", "Load", "Row", "drive", "run_link", "summarize",
]  # fmt: skip

GUESTS = 3


class Load(NamedTuple):
    """How messages are sent: seconds of a cell, how many in flight, seconds of pause, to how many.

    A message ends when a majority of the guests has sent it back.
    """

    seconds: float
    window: int = 1
    pause: float = 0.0
    guests: int = 1


LOADS = {
    "one at a time": Load(0.3),
    "one at a time, 8 ms pauses": Load(0.8, pause=0.008),
    "one at a time, the second answer of three guests": Load(0.3, guests=GUESTS),
    f"{IN_FLIGHT} in flight": Load(0.3, window=IN_FLIGHT),
}
LINKS = {
    "virtio-serial": "virtio",
    "no ioeventfd": "quiet",
    "TCP": "tcp",
    "vsock": "vsock",
    "ring, polled": "ring",
    "ring, bell": "bell",
}
"""The links, each with its name in ``link_echo``.

Guests of a node use the first one.  The second is the same, but the guest's processor thread serves
its requests, not QEMU's main thread.  TCP passes QEMU's restricted user network.
"""
USUAL, *_ = LINKS
SIZES = (100, 4096)
"""Bytes of a message: a usual request or reply with its frame, and a large one."""
QUICK = 0.1
"""Part of a cell's time in a quick run."""


class LinkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: the options of ``trivisor bench link``."""

    seconds: float  # for all rounds together
    quick: bool
    seed: int
    accel: rig.Requested  # auto: TCG, and KVM if it works


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell in one round: times in seconds, processor times in seconds a message.

    ``driver`` is this process, ``guest`` the QEMU of all guests that the message is sent to.
    """

    messages: int
    rate: float  # messages a second
    p50: float
    p99: float
    driver: float
    guest: float
    largest_read: int  # bytes that one read in the guest returned at most


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A cell over all rounds: medians, and the mean processor times of all messages.

    ``relative`` is its p50 over that of virtio-serial in the same round; ``low`` and ``high`` are
    the quartiles.
    """

    accel: str
    load: str
    size: int
    link: str
    cell: Cell
    relative: float
    low: float
    high: float


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """``rounds``: each with its cells by "accelerator; load; size; link"."""

    plan: LinkPlan
    host: Host
    qemu: str
    others: float  # share of the processors that other programs used
    missing: dict[str, str]  # what was not measured, and why
    rows: list[Row]
    rounds: list[dict[str, Cell]]


def _name(accel: str, load: str, size: int, link: str) -> str:
    return f"{accel}; {load}; {size} B; {link}"


def summarize(rounds: Sequence[Mapping[str, Cell]], accels: Sequence[str]) -> list[Row]:
    """Return all cells over rounds, by accelerator, load, size and link."""
    rows = []
    for accel, load, size, link in product(accels, LOADS, SIZES, LINKS):
        name, usual = _name(accel, load, size, link), _name(accel, load, size, USUAL)
        if name not in rounds[0]:
            continue  # this host does not have the link
        cells = [each[name] for each in rounds]
        p50s = ratios(rounds, lambda cell: cell.p50, name, usual)
        low, _, high = quantiles(p50s, n=4, method="inclusive") if len(p50s) > 1 else p50s * 3
        messages = sum(each.messages for each in cells)
        cell = Cell(
            messages=messages,
            rate=median(each.rate for each in cells),
            p50=median(each.p50 for each in cells),
            p99=median(each.p99 for each in cells),
            # The processor time of a cell is a few of the clock's ticks: only the sum is precise.
            driver=sum(each.driver * each.messages for each in cells) / messages,
            guest=sum(each.guest * each.messages for each in cells) / messages,
            largest_read=max(each.largest_read for each in cells),
        )
        rows.append(
            Row(accel=accel, load=load, size=size, link=link, cell=cell, relative=median(p50s),
                low=low, high=high)
        )  # fmt: skip
    return rows


class Echoes:
    """Makes numbered messages of one size, and checks what comes back."""

    def __init__(self, size: int) -> None:
        self._size, self._rest = size, b"x" * (size - 8)
        self._made = self.taken = 0
        self._held = b""

    def make(self, count: int) -> bytes:
        """Return the next messages."""
        numbers = range(self._made, self._made + count)
        self._made += count
        return b"".join([number.to_bytes(8) + self._rest for number in numbers])

    def take(self, data: bytes) -> None:
        """Count in ``taken`` the messages that these bytes complete.

        Raises HypervisorFailed if they are not those that were made.
        """
        self._held += data
        count = len(self._held) // self._size
        for at in range(count):
            message = self.taken.to_bytes(8) + self._rest
            if self._held[at * self._size : (at + 1) * self._size] != message:
                raise HypervisorFailed(
                    f"the guest sent message {self.taken} back altered", error_code="TV0802"
                )
            self.taken += 1
        self._held = self._held[count * self._size :]


def _measure(guests: Sequence[EchoGuest], link: str, size: int, load: Load, seconds: float) -> Cell:
    """Keep messages in flight for so long.  Raises HypervisorFailed, OSError."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(guest.open(link)) for guest in guests]
        pids = [guest.pid for guest in guests]
        began, driver, used = time.perf_counter(), time.process_time(), cpu_seconds(pids)
        times = drive(links, size, load, seconds)
        took = time.perf_counter() - began
        driver, used = time.process_time() - driver, cpu_seconds(pids) - used
        largest = max(guest.end(each) for guest, each in zip(guests, links, strict=True))
    number = len(times)
    return Cell(
        messages=number, rate=number / took, p50=percentile(times, 0.5),
        p99=percentile(times, 0.99), driver=driver / number, guest=used / number,
        largest_read=largest,
    )  # fmt: skip


def drive(links: Sequence[Link], size: int, load: Load, seconds: float) -> list[float]:
    """Keep messages in flight for so long; return the seconds that each one took.

    Raises HypervisorFailed if a guest is silent, or sends back something else.
    """
    echoes = [Echoes(size) for _ in links]
    majority = len(links) // 2 + 1
    times: list[float] = []
    sent: deque[float] = deque()
    clock = time.perf_counter

    def send(count: int) -> None:
        sent.extend([clock()] * count)
        for link, each in zip(links, echoes, strict=True):
            link.send(each.make(count))

    ends = clock() + seconds
    send(load.window)
    number = load.window
    while min(each.taken for each in echoes) < number:
        for at in _ready(links):
            echoes[at].take(links[at].receive())
        done = sorted(each.taken for each in echoes)[-majority] - len(times)
        if done:
            now = clock()
            times += [now - sent.popleft() for _ in range(done)]
            if now < ends:
                if load.pause:
                    time.sleep(load.pause)  # it is part of the load
                send(done)
                number += done
        elif clock() > ends + ANSWER_LIMIT:
            raise HypervisorFailed(
                f"the guest wrote nothing for {ANSWER_LIMIT:g} s", error_code="TV0802"
            )
    return times


def _ready(links: Sequence[Link]) -> Sequence[int]:
    """Wait until one of several links can be read; return all to poll, or the only one."""
    sockets = [link.waits for link in links if link.waits is not None]
    if not sockets or len(links) == 1:
        return range(len(links))
    readable, *_ = select.select(sockets, [], [], ANSWER_LIMIT)
    if not readable:
        raise HypervisorFailed(
            f"no guest sent anything for {ANSWER_LIMIT:g} s", error_code="TV0802"
        )
    return [at for at, link in enumerate(links) if link.waits in readable]


def run_link(plan: LinkPlan, progress: Callable[[str], None]) -> LinkReport:
    """Measure all links.  Raises DeployError, ImageError, OSError."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "link")


async def _run(plan: LinkPlan, directory: Path, progress: Callable[[str], None]) -> LinkReport:
    load_before = os.getloadavg()[0]
    cache = cache_directory() / "images"
    image = echo_image(build_image(cache, progress=progress), directory / "image")
    chosen = await decide(image, cache, plan.accel, progress)
    accels: list[AcceleratorName] = [chosen.name]
    if plan.accel == "auto" and chosen.name == "kvm":
        accels = ["tcg", "kvm"]
    missing = {
        name.upper(): chosen.reason if plan.accel == "auto" else f"--accel {plan.accel}"
        for name in ("tcg", "kvm") if name not in accels
    }  # fmt: skip
    if without_vsock := missing_vsock():
        missing["vsock"] = without_vsock
    rounds: list[dict[str, Cell]] = []
    async with contextlib.AsyncExitStack() as stack:
        cells: dict[str, Callable[[], Cell]] = {}
        cids = count(8 * os.getpid())  # unused by others: a process has at most six guests
        for accel in accels:
            progress(f"booting {GUESTS} guests under {accel.upper()}")
            guests = []
            for number in range(GUESTS):
                cid = None if without_vsock else next(cids)
                booted = boot(image, accel, directory / f"{accel}{number}", cid)
                guests.append(await stack.enter_async_context(booted))
            for (name, load), size, link in product(LOADS.items(), SIZES, LINKS):
                if link in missing:
                    continue
                cells[_name(accel, name, size, link)] = partial(
                    _measure, guests[: load.guests], LINKS[link], size, load,
                    load.seconds * (QUICK if plan.quick else 1),
                )  # fmt: skip
        share = HostShare()
        progress(f"{len(cells)} cells a round, in random order of seed {plan.seed}")

        async def measure(name: str) -> Cell:
            await asyncio.sleep(0)  # Ctrl-C takes effect here: a cell itself does not yield
            return cells[name]()

        await run_rounds(
            list(cells), measure, rounds, random=Random(plan.seed),
            seconds=0.0 if plan.quick else plan.seconds, least=1 if plan.quick else 2,
        )  # fmt: skip
        others = share.others()
    return LinkReport(
        plan=plan,
        host=describe_host(accel=", ".join(accels), load_before=load_before),
        qemu=(await read_facts()).qemu,
        others=others,
        missing=missing,
        rows=summarize(rounds, accels),
        rounds=rounds,
    )
