"""The proxy on real unix sockets: it relays, bounds what it holds, ends both sides, and lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from faultinject.faults.lies import Delay
from faultinject.faults.proxy import ProxiedLink, Proxy
from guests.protocol.wire import Decoder, FrameKind, encode

ROOT = Path(__file__).resolve().parents[3]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Bench:
    """A proxy with one link, and a substitute for the guest's side."""

    def __init__(self, directory: Path) -> None:
        self.voter_side = str(directory / "g1.lie")
        self.guest_side = str(directory / "g1.link")
        self.control = str(directory / "proxy.sock")
        self.proxy = Proxy([ProxiedLink("g1", self.voter_side, self.guest_side)], self.control)
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self.open: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append(writer)
        await self.accepted.put((reader, writer))

    async def connect(self) -> tuple[Streams, Streams]:
        """Return the voter's and the guest's streams of a new connection."""
        voter = await asyncio.open_unix_connection(self.voter_side)
        self.open.append(voter[1])
        return voter, await self.accepted.get()

    def command(self, **command: str) -> dict[str, Any]:
        answer = self.proxy.answer(json.dumps(command).encode())
        assert answer["ok"], answer
        return dict(answer["links"]["g1"])


@pytest_asyncio.fixture
async def bench(scratch: Path) -> AsyncIterator[Bench]:
    """Yield a running proxy; close everything afterwards."""
    it = Bench(scratch)
    guest = await asyncio.start_unix_server(it.accept, it.guest_side)
    started, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(it.proxy.run(started, stop))
    await started.wait()
    yield it
    stop.set()
    await task
    guest.close()
    for writer in it.open:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_bytes_are_relayed_unchanged_in_both_directions(bench: Bench) -> None:
    (voter_in, voter_out), (guest_in, guest_out) = await bench.connect()
    data = bytes(range(256)) * 20_000

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(send(voter_out))
        group.create_task(send(guest_out))
        there = group.create_task(guest_in.readexactly(len(data)))
        back = group.create_task(voter_in.readexactly(len(data)))
    assert there.result() == back.result() == data


async def test_bytes_sent_before_the_guest_is_connected_are_relayed(bench: Bench) -> None:
    for number in range(20):
        voter = await asyncio.open_unix_connection(bench.voter_side)
        bench.open.append(voter[1])
        voter[1].write(b"%2d" % number)
        guest_in, _ = await bench.accepted.get()
        assert await asyncio.wait_for(guest_in.readexactly(2), 30) == b"%2d" % number


async def test_buffer_is_bounded_when_the_reader_does_not_read(bench: Bench) -> None:
    (_, voter_out), _ = await bench.connect()
    loop, sock = asyncio.get_running_loop(), socket.socket(socket.AF_UNIX)
    voter_out.close()
    with sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, bench.voter_side)
        _, guest_out = await bench.accepted.get()
        guest_out.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while sent < 64 << 20:
                    await loop.sock_sendall(sock, bytes(1 << 16))
                    sent += 1 << 16
        assert sent < 8 << 20


@pytest.mark.parametrize("end", ["voter", "guest"])
async def test_end_of_one_side_ends_the_other(bench: Bench, end: str) -> None:
    voter, guest = await bench.connect()
    here, there = (voter, guest) if end == "voter" else (guest, voter)
    here[1].write(b"the last bytes may be lost, the end may not")
    here[1].close()
    with contextlib.suppress(ConnectionError):
        await there[0].read(-1)
    assert there[0].at_eof() or there[0].exception() is not None
    # The guest's side accepts the next connection.
    (voter_in, _), (_, guest_out) = await bench.connect()
    guest_out.write(b"again")
    assert await voter_in.readexactly(5) == b"again"


async def test_voter_sees_the_end_at_once_without_a_guest(bench: Bench) -> None:
    Path(bench.guest_side).unlink()
    reader, writer = await asyncio.open_unix_connection(bench.voter_side)
    bench.open.append(writer)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_proxy_lies_from_one_command_to_the_next(bench: Bench) -> None:
    (voter_in, voter_out), (guest_in, guest_out) = await bench.connect()
    decoder, payload = Decoder(), b"HTTP/1.1 200 OK\r\n\r\nblue"

    async def hear(seq: int) -> bytes:
        guest_out.write(encode(FrameKind.REPLY, 9, seq, payload))
        while True:
            for frame in decoder.feed(await voter_in.read(65536)):
                assert frame.seq == seq
                return frame.payload

    assert await hear(1) == payload
    assert bench.command(do="lie", link="g1", kind="corrupt-reply", seed="00")["count"] == 0
    assert await hear(2) != payload
    status = bench.command(do="status")
    assert (status["kind"], status["count"], status["connected"]) == ("corrupt-reply", 1, True)
    bench.command(do="relay", link="g1")
    assert await hear(3) == payload
    assert decoder.skipped == decoder.damaged == 0
    # The voter's own bytes never change.
    bench.command(do="lie", link="g1", kind="garbage", seed="00")
    voter_out.write(encode(FrameKind.PING, 9, 0))
    assert Decoder().feed(await guest_in.read(65536))[0].kind == FrameKind.PING


async def test_lie_outlives_the_connection(bench: Bench) -> None:
    bench.command(do="lie", link="g1", kind="garbage", seed="01")
    (voter_in, _), (_, guest_out) = await bench.connect()
    guest_out.write(b"x")
    assert len(await voter_in.read(100)) > 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json\n",
        b"[]\n",
        b'{"do": "explode"}\n',
        b'{"do": "relay", "link": "g9"}\n',
        b'{"do": "lie", "link": "g1", "kind": "nonsense", "seed": ""}\n',
        b'{"do": "lie", "link": "g1", "kind": "garbage", "seed": "zz"}\n',
    ],
)
async def test_invalid_command_is_answered_and_changes_nothing(bench: Bench, line: bytes) -> None:
    answer = bench.proxy.answer(line)
    assert not answer["ok"]
    assert answer["error"]
    assert bench.command(do="status")["kind"] is None


async def test_control_socket_answers_each_line(bench: Bench) -> None:
    reader, writer = await asyncio.open_unix_connection(bench.control)
    bench.open.append(writer)
    writer.write(b'{"do": "status"}\n{"do": "nonsense"}\n')
    assert json.loads(await reader.readline())["ok"]
    assert not json.loads(await reader.readline())["ok"]


def test_process_prints_ready_and_ends_on_sigterm(scratch: Path) -> None:
    command = [sys.executable, "-m", "faultinject.faults.proxy", "--control", str(scratch / "c")]
    command += ["--link", "g1", str(scratch / "v"), str(scratch / "g")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert (scratch / "v").stat().st_mode & 0o777 == 0o600
        process.terminate()
        assert process.wait(10) == 0


def test_process_prints_why_it_cannot_start(scratch: Path) -> None:
    command = [sys.executable, "-m", "faultinject.faults.proxy", "--control", str(scratch / "no/c")]
    command += ["--link", "g1", str(scratch / "v"), str(scratch / "g")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "No such file" in done.stderr


async def test_delay_affects_the_guests_bytes_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delay, "SHORTEST", 60.0)
    monkeypatch.setattr(Delay, "LONGEST", 60.0)
    (_, voter_out), (guest_in, _) = await bench.connect()
    assert bench.command(do="lie", link="g1", kind="delay", seed="01")["count"] == 0
    voter_out.write(b"asked")
    async with asyncio.timeout(30):
        assert await guest_in.readexactly(5) == b"asked"


async def test_delayed_pieces_arrive_complete_in_order_and_late(bench: Bench) -> None:
    (voter_in, _), (_, guest_out) = await bench.connect()
    bench.command(do="lie", link="g1", kind="delay", seed="01")
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), b""
    for number in range(5):
        guest_out.write(b"%d" % number)
        await guest_out.drain()
        sent += b"%d" % number
        await asyncio.sleep(0.01)  # so that each is a separate piece
    assert await voter_in.readexactly(5) == sent
    assert loop.time() - began >= Delay.SHORTEST
    assert bench.command(do="status")["count"] >= 2


async def test_delayed_pieces_arrive_at_once_when_the_delay_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delay, "SHORTEST", 60.0)
    monkeypatch.setattr(Delay, "LONGEST", 60.0)
    (voter_in, _), (_, guest_out) = await bench.connect()
    bench.command(do="lie", link="g1", kind="delay", seed="02")
    guest_out.write(b"late")
    await asyncio.sleep(0.02)
    bench.command(do="relay", link="g1")
    guest_out.write(b" and not")
    async with asyncio.timeout(30):
        assert await voter_in.readexactly(12) == b"late and not"


async def test_delay_bounds_what_it_holds_and_loses_nothing(bench: Bench) -> None:
    (voter_in, _), (_, guest_out) = await bench.connect()
    bench.command(do="lie", link="g1", kind="delay", seed="03")
    data = bytes(range(256)) * 8_000
    guest_out.write(data)
    got = await asyncio.wait_for(voter_in.readexactly(len(data)), 20)
    assert got == data


async def test_delayed_pieces_are_dropped_when_the_link_ends(bench: Bench) -> None:
    (voter_in, _), (_, guest_out) = await bench.connect()
    bench.command(do="lie", link="g1", kind="delay", seed="04")
    guest_out.write(b"late")
    await asyncio.sleep(0.02)
    guest_out.transport.abort()
    assert await voter_in.read() == b""
    bench.command(do="relay", link="g1")
