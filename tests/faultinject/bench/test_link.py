"""The link bench: its ring and messages without a guest, its rows, a quick run on a real guest."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from deploy.errors import HypervisorFailed
from deploy.machine.accel_probe import CPU_MODELS
from faultinject.bench import link, link_echo, link_guest
from faultinject.bench.link import (
    LINKS,
    LOADS,
    SIZES,
    Cell,
    Echoes,
    LinkPlan,
    LinkReport,
    Load,
    drive,
    run_link,
    summarize,
)
from faultinject.bench.link_echo import CAPACITY, END, TO_GUEST, TO_HOST, Ring
from faultinject.bench.link_guest import Link, Stream, missing_vsock
from faultinject.bench.tables import show
from tests.conftest import left_qemus
from tests.errors import raises
from tests.project.tree import ROOT


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, link_echo.RING_SIZE)


@pytest.fixture
def guest_end() -> Iterator[socket.socket]:
    """Yield a socket whose other end sends back what it receives, until END."""
    ours, theirs = socket.socketpair()
    read, write = partial(theirs.recv, 1 << 16), theirs.sendall
    thread = threading.Thread(target=lambda: link_echo.echo(read, write))
    thread.start()
    with ours, theirs:
        yield ours
        ours.sendall(END)
        thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("start", [0, CAPACITY - 3, (1 << 32) - 3])
def test_ring_carries_bytes_both_ways_where_it_wraps(memory: mmap.mmap, start: int) -> None:
    for counter in (TO_GUEST, TO_HOST):
        memoryview(memory).cast("I")[counter] = start
    host, guest = Ring(memory, TO_GUEST), Ring(memory, TO_HOST)
    assert host.read() == guest.read() == b""
    host.write(b"request")
    guest.write(b"reply")
    host.write(b", another")
    assert guest.read() == b"request, another"
    assert host.read() == b"reply"
    assert host.read() == guest.read() == b""
    most = os.urandom(CAPACITY)
    host.write(most)
    assert guest.read() == most


def test_new_ring_starts_behind_what_an_old_one_left(memory: mmap.mmap) -> None:
    Ring(memory, TO_GUEST).write(b"never read")
    guest = Ring(memory, TO_HOST)
    Ring(memory, TO_GUEST).write(b"new")
    assert guest.read() == b"new"


def test_bell_may_ring_more_often_than_there_is_something_to_read(memory: mmap.mmap) -> None:
    host, guest = Ring(memory, TO_GUEST), Ring(memory, TO_HOST)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"!")  # of a message that was read with the one before
        link_echo.write_and_ring(host, ours.sendall, b"message")
        bells: list[bytes] = []

        def wait(size: int) -> bytes:
            bells.append(theirs.recv(size))
            return bells[-1]

        assert link_echo.wait_bell(guest, wait) == b"message"
        thread = threading.Timer(0.05, link_echo.write_and_ring, (host, ours.sendall, b"next"))
        thread.start()
        assert link_echo.wait_bell(guest, wait) == b"next"
        thread.join()
    assert len(bells) in (1, 2)


def test_messages_are_recognized_in_any_pieces() -> None:
    echoes = Echoes(100)
    data = echoes.make(2) + echoes.make(1)
    assert len(data) == 300
    counts = []
    for piece in (data[:99], data[99:250], data[250:]):
        echoes.take(piece)
        counts.append(echoes.taken)
    assert counts == [0, 2, 3]


@pytest.mark.parametrize("at", [0, 7, 8, 99])
def test_altered_or_repeated_message_is_rejected(at: int) -> None:
    echoes = Echoes(100)
    first = echoes.make(1)
    altered = first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]
    with raises("TV0802", match="message 0"):
        echoes.take(altered)
    echoes = Echoes(100)
    first = echoes.make(1)
    echoes.take(first)
    with raises("TV0802", match="message 1"):
        echoes.take(first)


def test_stream_sends_more_than_the_sockets_hold(guest_end: socket.socket) -> None:
    stream, echoes, size = Stream(guest_end), Echoes(4096), 1000
    stream.send(echoes.make(size))
    while echoes.taken < size:
        echoes.take(stream.receive())


def test_stream_reports_a_guest_that_is_gone_or_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_guest, "ANSWER_LIMIT", 1.0)
    ours, theirs = socket.socketpair()
    with ours:
        stream = Stream(ours)
        with theirs, pytest.raises(HypervisorFailed, match="sent nothing for 1 s"):
            stream.receive()
        with pytest.raises(HypervisorFailed, match="closed"):
            stream.receive()


def test_echo_returns_the_largest_read() -> None:
    reads, written = iter([b"abc", b"defgh", b"i", END]), bytearray()
    assert link_echo.echo(lambda: next(reads), written.extend) == 5
    assert written == b"abcdefghi"


class FakeGuest:
    """Sends back what it is sent, once there are at least so many bytes."""

    def __init__(self, least: int = 1) -> None:
        self.least, self.held = least, bytearray()

    def receive(self) -> bytes:
        if len(self.held) < self.least:
            return b""
        data = bytes(self.held)
        self.held.clear()
        return data

    @property
    def link(self) -> Link:
        return Link(self.held.extend, self.receive, None)


def test_message_ends_with_the_answer_of_a_majority() -> None:
    slow = FakeGuest(least=300)  # it answers the third message only
    sent: list[bytes] = []

    def send(data: bytes) -> None:
        sent.append(data)
        slow.held.extend(data)
        if len(sent) == 3:
            slow.least = 1

    links = [FakeGuest().link, FakeGuest().link, Link(send, slow.receive, None)]
    times = drive(links, 100, Load(seconds=0.05, guests=3), 0.05)
    assert len(times) == len(sent) > 3
    assert not slow.held  # its answers are waited for at the end


def test_silent_guest_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ANSWER_LIMIT", 0.1)
    with pytest.raises(HypervisorFailed, match=r"nothing for 0\.1 s"):
        drive([FakeGuest(least=1000).link], 100, Load(seconds=0.01), 0.01)


def test_so_many_messages_are_in_flight() -> None:
    guest = FakeGuest()
    flights: list[int] = []

    def receive() -> bytes:
        flights.append(len(guest.held))
        return guest.receive()

    times = drive([Link(guest.held.extend, receive, None)], 100, Load(0.01, window=64), 0.01)
    assert set(flights) == {6400}
    assert len(times) % 64 == 0


def test_missing_vsock_is_named_with_its_remedy(scratch: Path) -> None:
    assert "modprobe vhost_vsock" in missing_vsock(scratch / "none")
    device = scratch / "vhost-vsock"
    device.touch()
    assert missing_vsock(device) == ""


@pytest.mark.parametrize("name", ["tcp", "virtio", "bell"])
def test_guest_opens_a_link_by_its_name(name: str, memory: mmap.mmap) -> None:
    # A socket is in place of a virtio-serial port, and of the bell's.
    pair, ring = socket.socketpair(), Ring(memory, TO_GUEST)
    with contextlib.ExitStack() as stack:
        ours, theirs = map(stack.enter_context, pair)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        if name == "tcp":
            ours = stack.enter_context(socket.create_connection(listener.getsockname()))
        ports = {"virtio": theirs.fileno(), "bell": theirs.fileno()}
        opened = link_echo.open_link(name, ports, {"tcp": listener}, memory)
        read, write = stack.enter_context(opened)
        thread = threading.Thread(target=lambda: link_echo.echo(read, write))
        thread.start()
        if name == "bell":
            link_echo.write_and_ring(ring, ours.sendall, b"message")
            assert ours.recv(100) == b"!"
            assert ring.read() == b"message"
            link_echo.write_and_ring(ring, ours.sendall, END)
        else:
            ours.sendall(b"message")
            assert ours.recv(100) == b"message"
            ours.sendall(END)
        thread.join(60)
    assert not thread.is_alive()


def cell(p50: float, **fields: int) -> Cell:
    values: dict[str, float] = {"rate": 1.0, "p99": 2 * p50, "driver": 0.1, "guest": 0.2}
    return Cell(messages=10, p50=p50, largest_read=fields.get("largest_read", 1), **values)


def test_rows_compare_a_link_with_virtio_serial_in_the_same_round() -> None:
    # Each round is slower than the one before, for all links: their ratio stays.
    here = [name for name in LINKS if name != "vsock"]
    rounds = []
    for slow in (1, 2, 10):
        found = {}
        for load in LOADS:
            for size in SIZES:
                for name in here:
                    p50 = slow * (3.0 if name == "TCP" else 2.0)
                    found[f"tcg; {load}; {size} B; {name}"] = cell(p50, largest_read=slow)
        rounds.append(found)
    rows = summarize(rounds, ["tcg"])
    assert len(rows) == len(LOADS) * len(SIZES) * len(here)
    tcp = next(row for row in rows if row.link == "TCP")
    assert (tcp.relative, tcp.low, tcp.high) == (1.5, 1.5, 1.5)
    assert (tcp.cell.p50, tcp.cell.messages, tcp.cell.largest_read) == (6.0, 30, 10)
    (first, *_) = summarize(rounds[:1], ["tcg"])
    assert (first.link, first.relative, first.low, first.high) == ("virtio-serial", 1, 1, 1)


def test_kept_rows_are_those_of_the_kept_rounds() -> None:
    kept = msgspec.json.decode((ROOT / "docs/results/link.json").read_bytes(), type=LinkReport)
    assert summarize(kept.rounds, ["tcg"]) == kept.rows
    assert kept.missing.keys() == {"KVM", "vsock"}


@pytest.mark.vm
def test_quick_run_measures_every_link_and_names_what_is_missing(scratch: Path) -> None:
    out = scratch / "link.json"
    words = ["bench", "link", "--quick", "--accel", "tcg", "--json", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "trivisor", *words],
        check=False, capture_output=True, env=os.environ | {"TMPDIR": str(scratch)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=LinkReport)
    assert msgspec.json.decode(out.read_bytes(), type=LinkReport) == report
    (measured,) = report.rounds
    expected = set(LINKS) - report.missing.keys()
    assert len(measured) == len(report.rows) == len(LOADS) * len(SIZES) * len(expected)
    assert {row.link for row in report.rows} == expected
    assert all(found.messages > 0 and 0 < found.p50 <= found.p99 for found in measured.values())
    assert report.missing["KVM"] == "--accel tcg"
    assert report.missing.get("vsock", "") == missing_vsock()
    # What guests/agent/main.py says of a virtio port.
    reads = {row.cell.largest_read for row in report.rows if row.link == "virtio-serial"}
    assert max(reads) == 4096
    show(report)
    assert not left_qemus(str(scratch))


@pytest.mark.vm
def test_guest_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CPU_MODELS, "tcg", "nonsense")
    with raises("TV0101", match="nonsense"):
        run_link(LinkPlan(seconds=10, quick=True, seed=1, accel="tcg"), lambda _: None)
