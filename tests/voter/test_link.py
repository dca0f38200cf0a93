"""A link against agents that are slow, restarted, broken or hostile: fakes on real unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from guests.agent.incarnation import Incarnation
from guests.protocol import wire
from guests.protocol.wire import FETCH_AHEAD, STATE_PIECE, Decoder, Frame, FrameKind, encode
from guests.service import state_digest
from guests.services.kv import KeyValue
from tests.waiting import until
from voter import link as link_module
from voter.address import Address, connect, parse_address
from voter.core import events as ev
from voter.core.entries import Record
from voter.core.limits import Limits
from voter.link import FOREIGN_LIMIT, STALE_LIMIT, ReplicaLink, encode_orders
from voter.transfer import BURST

WELCOME = wire.Welcome(wire.PROTOCOL, 4, True, 7, b"histhist", 2, 1, "kv", "b1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits than in life; what is tested is that they are kept, and in which order."""
    monkeypatch.setattr(link_module, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(link_module, "LAST_RETRY", 0.05)
    monkeypatch.setattr(link_module, "GREETING_RETRY", 0.05)
    monkeypatch.setattr(link_module, "GREETING_FIRST", 0.4)
    monkeypatch.setattr(link_module, "GREETING_LIMIT", 0.4)


class Agent:
    """A fake agent: listens, and hands each connection to the test."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self.connections: list[Connection] = []

    async def start(self) -> Agent:
        self.server = await asyncio.start_unix_server(self._accept, self.path)
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        self.connections.append(connection)
        self.accepted.put_nowait(connection)
        await connection.over.wait()
        writer.transport.abort()

    async def stop(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.close()
        for connection in self.connections:
            with contextlib.suppress(ConnectionError):
                await connection.writer.wait_closed()

    async def connection(self) -> Connection:
        async with asyncio.timeout(30):
            return await self.accepted.get()


class Connection:
    """One connection of the voter, as the agent sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = Decoder()
        self.frames: list[Frame] = []
        self.epoch = 0
        self.over = asyncio.Event()

    async def frame(self, kind: int | None = None) -> Frame:
        async with asyncio.timeout(30):
            while True:
                while self.frames:
                    frame = self.frames.pop(0)
                    if kind in (None, frame.kind):
                        return frame
                data = await self.reader.read(1 << 18)
                if not data:
                    raise EOFError("the voter has closed the link")
                self.frames += self.decoder.feed(data)

    async def hello(self) -> Frame:
        frame = await self.frame(FrameKind.HELLO)
        self.epoch = frame.epoch
        return frame

    async def greet(self, welcome: wire.Welcome = WELCOME) -> Connection:
        await self.hello()
        self.say(FrameKind.WELCOME, 0, wire.encode_welcome(welcome))
        return self

    def say(self, kind: int, seq: int = 0, payload: bytes = b"", flags: int = 0) -> None:
        self.writer.write(encode(kind, self.epoch, seq, payload, flags))

    async def closed(self) -> None:
        """Wait until the voter has closed the connection."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self.frame()

    def close(self) -> None:
        self.over.set()


def flush_soon(link: ReplicaLink) -> None:
    asyncio.get_running_loop().call_soon(link.flush)


class Rig:
    """A link, the events it made, and its agent."""

    def __init__(self, address: str, agent: Agent | None) -> None:
        self._agent = agent
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.problem: str | None = None
        self.epochs = itertools.count(1000)
        self.link = ReplicaLink(
            3,
            parse_address(address),
            connector=connect,
            deliver=self._deliver,
            check=lambda index, welcome: self.problem,
            random64=lambda: next(self.epochs),
            flush_soon=flush_soon,
            limits=Limits(state_bytes=1_000_000, hang=0.4),
        )

    @property
    def agent(self) -> Agent:
        assert self._agent is not None
        return self._agent

    def slow_down(self) -> None:
        """Let transfers go at 1 MiB a second."""
        self.link._limits = Limits(state_bytes=1_000_000, transfer_rate=1 << 20)

    def _deliver(self, event: ev.Event) -> None:
        """As the engine does: a protocol violation ends the link."""
        self.events.put_nowait(event)
        if isinstance(event, ev.ProtocolViolation):
            self.link.close(event.reason)

    async def event(self) -> Any:
        async with asyncio.timeout(30):
            return await self.events.get()

    async def up(self) -> Connection:
        connection = await (await self.agent.connection()).greet()
        assert isinstance(await self.event(), ev.Greeted)
        return connection


@pytest.fixture
async def rig(scratch: Path) -> AsyncIterator[Rig]:
    path = str(scratch / "link")
    agent = await Agent(path).start()
    rig = Rig(f"unix:{path}", agent)
    task = asyncio.create_task(rig.link.run())
    yield rig
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await agent.stop()


# -------------------------------------------------------------- handshake


async def test_a_handshake(rig: Rig) -> None:
    connection = await rig.agent.connection()
    hello = await connection.hello()
    assert hello.payload == wire.PROTOCOL.to_bytes(2) + bytes([3])
    assert rig.link.up is False
    connection.say(FrameKind.WELCOME, 0, wire.encode_welcome(WELCOME))
    assert await rig.event() == ev.Greeted(3, 1000, 4, True, 7, b"histhist", 2)
    assert (rig.link.up, rig.link.problem, rig.link.welcome) == (True, "", WELCOME)
    connection.close()


async def test_unanswered_hello_is_repeated(rig: Rig) -> None:
    connection = await rig.agent.connection()
    epochs = [(await connection.hello()).epoch for _ in range(4)]
    assert epochs == [1000] * 4
    assert connection.decoder.skipped >= wire.MAX_PAYLOAD, "zeros came between"
    connection.say(FrameKind.WELCOME, 0, wire.encode_welcome(WELCOME))
    assert isinstance(await rig.event(), ev.Greeted)
    connection.close()


@pytest.mark.parametrize(("hang", "longest"), [(0.4, 8), (0.2, 8), (0.8, 16)])
async def test_connection_without_an_answer_is_closed_early_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: float, longest: int
) -> None:
    """QEMU can leave a port throttled: nothing comes out of it before a connection more."""
    monkeypatch.setattr(link_module, "GREETING_FIRST", 0.1)
    agent = await Agent(str(tmp_path / "a")).start()
    rig = Rig(f"unix:{agent.path}", agent)
    rig.link._limits = Limits(hang=hang)
    task = asyncio.create_task(rig.link.run())

    async def hellos() -> int:
        connection = await agent.connection()
        await connection.closed()
        return rig.link._hellos

    try:
        assert [await hellos() for _ in range(5)] == [2, 4, 8, longest, longest]
        await (await agent.connection()).greet()
        assert isinstance(await rig.event(), ev.Greeted)
        rig.link.reset_backoff()
        agent.connections[-1].close()
        assert await hellos() == 2, "one that voted is tried quickly again"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await agent.stop()


async def test_a_slow_agent_may_answer_each_hello(rig: Rig) -> None:
    connection = await rig.agent.connection()
    for _ in range(3):
        await connection.hello()
    connection.say(FrameKind.WELCOME, 0, wire.encode_welcome(WELCOME))
    assert isinstance(await rig.event(), ev.Greeted)
    for _ in range(rig.link._hellos):  # a busy host may have sent one more than were read
        connection.say(FrameKind.WELCOME, 0, wire.encode_welcome(WELCOME))
    connection.say(FrameKind.PONG)
    assert await rig.event() == ev.Heard(3, 1000)
    connection.say(FrameKind.WELCOME, 0, wire.encode_welcome(WELCOME))
    violation = await rig.event()
    assert isinstance(violation, ev.ProtocolViolation)
    assert "HELLO that was not sent" in violation.reason


@pytest.mark.parametrize("cut", [10, 34, 50, 5000])
async def test_a_frame_cut_before_we_came_is_pushed_out_of_the_agent(rig: Rig, cut: int) -> None:
    """A real incarnation whose decoder holds the beginning of a large frame of an earlier voter."""
    incarnation = Incarnation(KeyValue, 1, "")
    assert not list(
        incarnation.receive(encode(FrameKind.ORDER, 5, 1, bytes(wire.MAX_PAYLOAD))[:cut])
    )
    connection = await rig.agent.connection()

    async def serve() -> None:
        while True:
            for answer in incarnation.receive(await connection.reader.read(1 << 18)):
                connection.writer.write(answer)

    task = asyncio.create_task(serve())
    assert isinstance(await rig.event(), ev.Greeted)
    task.cancel()
    connection.close()


@pytest.mark.parametrize(
    "stale",
    [
        encode(FrameKind.REPLY, 5, 1, b"of an earlier epoch") * 1000,
        encode(FrameKind.WELCOME, 5, 0, wire.encode_welcome(WELCOME)),
        encode(FrameKind.REPLY, 5, 1, bytes(wire.MAX_PAYLOAD))[:100],
        encode(FrameKind.REPLY, 5, 1, bytes(100_000))[50_000:],
        os.urandom(10_000),
        encode(FrameKind.HERE, 0, 2),
        encode(FrameKind.HERE, 0, 2)[:-1],
    ],
    ids=["frames", "welcome", "cut large", "tail", "garbage", "here", "cut here"],
)
async def test_bytes_of_an_earlier_connection_are_dropped(rig: Rig, stale: bytes) -> None:
    connection = await rig.agent.connection()
    connection.writer.write(stale)
    await connection.greet()
    assert isinstance(await rig.event(), ev.Greeted)
    connection.say(FrameKind.REPLY, 8, bytes(wire.MAX_PAYLOAD))
    answered = await rig.event()
    assert isinstance(answered, ev.Answered)
    assert len(answered.reply) == wire.MAX_PAYLOAD
    connection.close()


async def test_rejected_agent_is_disconnected_with_the_reason(rig: Rig) -> None:
    rig.problem = "it runs another service"
    connection = await (await rig.agent.connection()).greet()
    await connection.closed()
    assert rig.link.problem == "it runs another service"
    rig.problem = None
    connection.close()
    await rig.up()


async def test_a_welcome_of_the_wrong_form_is_dropped(rig: Rig) -> None:
    connection = await rig.agent.connection()
    await connection.hello()
    connection.say(FrameKind.WELCOME, 0, wire.PROTOCOL.to_bytes(2) + b"short")
    await connection.closed()
    assert "WELCOME" in rig.link.problem
    connection.close()
    await rig.up()


async def test_connection_without_an_agent_is_closed(rig: Rig) -> None:
    connection = await rig.agent.connection()
    await connection.closed()
    assert rig.link.problem.startswith("no agent answers on unix:")
    connection.close()
    await rig.up()
    assert rig.events.empty(), "the engine hears nothing of connections that came to nothing"


async def test_a_flood_before_the_welcome_ends_the_connection(rig: Rig) -> None:
    connection = await rig.agent.connection()
    frame = encode(FrameKind.REPLY, 5, 1, bytes(1000))
    with contextlib.suppress(ConnectionError):
        for _ in range(STALE_LIMIT * 2 // len(frame)):
            connection.writer.write(frame)
            await connection.writer.drain()
    await connection.closed()
    assert "never answers" in rig.link.problem
    connection.close()


# --------------------------------------------------------- coming and going


async def test_a_new_incarnation_is_greeted_on_a_new_connection(rig: Rig) -> None:
    connection = await rig.up()
    connection.writer.write(encode(FrameKind.HERE, 0, 5))
    assert await rig.event() == ev.Lost(3, 1000, "the service was restarted")
    await connection.closed()
    connection.close()
    await rig.up()
    assert rig.link.epoch == 1001


async def test_lost_connection_is_reported_once_and_reopened(rig: Rig) -> None:
    connection = await rig.up()
    connection.close()
    assert isinstance(await rig.event(), ev.Lost)
    await rig.up()
    assert rig.events.empty()


async def test_a_dropped_link_is_lost_at_once_and_sends_nothing_more(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.ping()
    rig.link.close("the engine has expelled it")
    assert (await rig.event()).reason == "the engine has expelled it"
    assert (rig.link.up, rig.link.epoch) == (False, 0)
    rig.link.ping()
    await connection.closed()
    assert not connection.frames
    connection.close()


async def test_events_after_a_drop_are_of_no_connection(rig: Rig) -> None:
    """Frames that lie in the same piece as the one that ended the link are not taken."""
    connection = await rig.up()
    connection.writer.write(
        encode(FrameKind.OPEN, connection.epoch, 0) + encode(FrameKind.PONG, connection.epoch, 0)
    )
    assert isinstance(await rig.event(), ev.ProtocolViolation)
    assert isinstance(await rig.event(), ev.Lost)
    await asyncio.sleep(0.02)
    assert rig.events.empty()
    connection.close()


async def attempts(link: ReplicaLink, count: int, deed: Callable[[int], None]) -> list[float]:
    """Run a link whose connector always fails; return the pauses between its attempts."""
    times: list[float] = []
    enough = asyncio.Event()

    async def refuse(
        address: Address, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.BaseTransport:
        times.append(asyncio.get_running_loop().time())
        deed(len(times))
        if len(times) == count:
            enough.set()
        await asyncio.sleep(0)
        raise ConnectionRefusedError("nobody is there")

    link._connector = refuse
    task = asyncio.create_task(link.run())
    await enough.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return [after - before for before, after in itertools.pairwise(times)]


def make_link() -> ReplicaLink:
    return Rig("unix:/nowhere", None).link


async def test_attempts_come_at_longer_and_longer_pauses() -> None:
    link = make_link()
    pauses = await attempts(link, 6, lambda count: None)
    assert pauses[0] >= 0.009
    assert all(
        pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.05, 0.05), strict=True)
    )


async def test_reconnect_now_makes_the_next_attempt_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "LAST_RETRY", 100.0)
    link = make_link()
    link._retry = 50.0
    pauses = await attempts(link, 4, lambda count: link.reconnect_now())
    assert max(pauses) < 5


# ------------------------------------------------------------- what comes in


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        (FrameKind.REPLY, ev.Answered(3, 1000, 8, b"payload")),
        (FrameKind.DIGEST, ev.Digested(3, 1000, 8, b"payload")),
        (FrameKind.RESTORED, ev.Restored(3, 1000, 8, b"payload")),
        (FrameKind.REFUSED, ev.RefusedOrder(3, 1000, 8, "payload")),
        (FrameKind.PONG, ev.Heard(3, 1000)),
    ],
)
async def test_frames_become_events(rig: Rig, kind: int, event: ev.Event) -> None:
    connection = await rig.up()
    connection.say(kind, 8, b"payload")
    assert await rig.event() == event
    connection.close()


async def test_a_reason_of_a_replica_is_cut_and_made_readable(rig: Rig) -> None:
    connection = await rig.up()
    connection.say(FrameKind.REFUSED, 8, b"\xff" * 5000)
    assert len((await rig.event()).reason) == 200
    connection.close()


@pytest.mark.parametrize(
    "data",
    [
        lambda epoch: b"garbage",
        lambda epoch: encode(FrameKind.REPLY, epoch, 1, b"abc")[:-1] + b"X",
        lambda epoch: encode(FrameKind.ORDER, epoch, 1, bytes(40)),
        lambda epoch: encode(FrameKind.HELLO, epoch, 0),
        lambda epoch: encode(FrameKind.STATE, epoch, 9, b"unasked"),
        lambda epoch: encode(99, epoch, 0),
        lambda epoch: encode(FrameKind.REPLY, epoch + 1, 1) * (FOREIGN_LIMIT + 1),
    ],
    ids=["garbage", "checksum", "order", "hello", "state", "unknown", "epochs"],
)
async def test_dishonest_frame_violates_the_protocol(
    rig: Rig, data: Callable[[int], bytes]
) -> None:
    connection = await rig.up()
    connection.writer.write(data(connection.epoch))
    assert isinstance(await rig.event(), ev.ProtocolViolation)
    connection.close()


async def test_a_few_frames_of_another_epoch_are_dropped(rig: Rig) -> None:
    connection = await rig.up()
    connection.writer.write(encode(FrameKind.REPLY, 5, 1) * FOREIGN_LIMIT)
    connection.say(FrameKind.PONG)
    assert isinstance(await rig.event(), ev.Heard)
    connection.close()


# ------------------------------------------------------------ what goes out


async def test_frames_of_one_turn_are_written_together(rig: Rig) -> None:
    connection = await rig.up()
    flushed = 0
    write = rig.link._transport.write  # type: ignore[union-attr]

    def count(data: bytes) -> None:
        nonlocal flushed
        flushed += 1
        write(data)

    rig.link._transport.write = count  # type: ignore[union-attr, method-assign]
    for seq in range(5):
        record = Record(seq, b"request", b"me", 1, bytes(8), bytes(8), read_only=True)
        rig.link.send_orders(encode_orders([record]))
    rig.link.mark(6, None)
    rig.link.mark(7, 2)
    rig.link.ping()
    for seq in range(5):
        frame = await connection.frame()
        assert (frame.kind, frame.seq, frame.flags) == (FrameKind.ORDER, seq, wire.FLAG_READ_ONLY)
        assert wire.decode_order(frame.payload).request == b"request"
    assert (await connection.frame()).payload == bytes([wire.NO_KEEPER])
    assert (await connection.frame()).payload == bytes([2])
    assert (await connection.frame()).kind == FrameKind.PING
    assert flushed == 1
    connection.close()


def _record(seq: int) -> Record:
    return Record(seq, b"request", b"me", 1, bytes(8), bytes(8), read_only=True)


async def test_held_orders_wait_for_a_push(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.push()  # nothing is held
    rig.link.send_orders(encode_orders([_record(1)]), hold=True)
    rig.link.send_orders(encode_orders([_record(2), _record(3)]), hold=True)
    rig.link.flush()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):  # it is their not coming that is tested
            await connection.reader.read(1)
    rig.link.push()
    assert [(await connection.frame()).seq for _ in range(2)] == [1, 2]
    connection.close()


async def test_held_orders_go_before_any_other_frame(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.send_orders(encode_orders([_record(1)]), hold=True)
    rig.link.mark(2, None)
    rig.link.send_orders(encode_orders([_record(3)]), hold=True)
    rig.link.send_orders(encode_orders([_record(4)]))
    assert [(await connection.frame()).seq for _ in range(4)] == [1, 2, 3, 4]
    connection.close()


async def test_held_orders_of_a_lost_connection_are_dropped(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.send_orders(encode_orders([_record(1)]), hold=True)
    connection.close()
    assert isinstance(await rig.event(), ev.Lost)
    again = await rig.up()
    rig.link.push()
    rig.link.ping()
    assert (await again.frame()).kind == FrameKind.PING
    again.close()


async def test_a_state_is_sent_no_faster_than_it_is_taken(rig: Rig) -> None:
    connection = await rig.up()
    state = os.urandom(1 << 22)
    rig.link.restore(ev.Restore(3, 50, b"historyh", bytes(32), state))
    await asyncio.sleep(0.05)  # nobody reads: what is sent automatically has gone
    transport = rig.link._transport
    assert transport is not None
    assert transport.get_write_buffer_size() < 1 << 20
    frame = await connection.frame()
    assert wire.decode_checkpoint(frame.payload) == (b"historyh", len(state), bytes(32))
    got, last = b"", 0
    while not last:
        frame = await connection.frame(FrameKind.STATE)
        got, last = got + frame.payload, frame.flags & wire.FLAG_LAST
    assert got == state
    connection.close()


async def test_a_restore_ends_with_its_connection(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.restore(ev.Restore(3, 50, b"historyh", b"", bytes(1 << 22)))
    await connection.frame(FrameKind.RESTORE)
    task = rig.link._restoring
    connection.close()
    assert isinstance(await rig.event(), ev.Lost)
    assert task is not None
    await until(task.done)
    other = await rig.up()
    rig.link.ping()
    assert (await other.frame()).kind == FrameKind.PING
    other.close()


async def test_the_empty_state_is_one_frame(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.restore(ev.Restore(3, 0, bytes(8), b"", b""))
    rig.link.ping()
    assert (await connection.frame(FrameKind.RESTORE)).seq == 0
    connection.close()


# ------------------------------------------------------------------ fetching


async def answer_fetches(connection: Connection, state: bytes, piece: int) -> None:
    offset = asked = 0
    while offset < len(state):
        frame = await connection.frame(FrameKind.FETCH)
        assert int.from_bytes(frame.payload) == asked
        asked += STATE_PIECE
        part = state[offset : offset + piece]
        offset += len(part)
        flags = wire.FLAG_LAST if offset == len(state) else 0
        connection.say(FrameKind.STATE, frame.seq, part, flags)


async def test_a_state_is_fetched_piece_by_piece(rig: Rig) -> None:
    connection = await rig.up()
    state = os.urandom(1000)
    rig.link.fetch(9)
    await answer_fetches(connection, state, 400)
    assert await rig.event() == ev.Piece(3, 1000, 9, 400)
    assert await rig.event() == ev.Piece(3, 1000, 9, 800)
    assert await rig.event() == ev.Fetched(3, 1000, 9, state, state_digest(iter((state,))))
    connection.close()


async def test_a_piece_that_was_not_asked_for_is_no_honest_agents(rig: Rig) -> None:
    """A piece of an unwanted state, and a piece that comes before its turn."""
    connection = await rig.up()
    rig.slow_down()
    rig.link.fetch(9)
    await connection.frame(FrameKind.FETCH)
    connection.say(FrameKind.STATE, 9, bytes(STATE_PIECE))
    connection.say(FrameKind.STATE, 9, bytes(STATE_PIECE))
    assert isinstance(await rig.event(), ev.Piece)
    assert isinstance(await rig.event(), ev.ProtocolViolation)
    connection.close()


@pytest.mark.parametrize("direction", ["restore", "fetch"])
async def test_a_transfer_has_its_rate_and_the_rest_goes_in_between(
    rig: Rig, direction: str
) -> None:
    connection = await rig.up()
    rig.slow_down()
    loop, state = asyncio.get_running_loop(), bytes(6 * STATE_PIECE)
    began = loop.time()
    if direction == "restore":
        rig.link.restore(ev.Restore(3, 50, b"historyh", b"", state))
        await connection.frame(FrameKind.STATE)
        rig.link.ping()
        kinds: list[int] = []
        while kinds.count(FrameKind.STATE) < 5:
            kinds.append((await connection.frame()).kind)
        assert kinds[0] == FrameKind.PING
    else:
        rig.link.fetch(9)
        await answer_fetches(connection, state, STATE_PIECE)
        for _ in range(5):
            assert isinstance(await rig.event(), ev.Piece)
        assert isinstance(await rig.event(), ev.Fetched)
    # The sixth comes after the pauses of five, at 1 MiB a second.
    assert loop.time() - began > 5 * STATE_PIECE / (1 << 20) - BURST - 0.01
    connection.close()


async def test_a_fetch_that_pauses_ends_with_its_connection(rig: Rig) -> None:
    connection = await rig.up()
    rig.slow_down()
    rig.link.fetch(9)
    await connection.frame(FrameKind.FETCH)
    connection.say(FrameKind.STATE, 9, bytes(STATE_PIECE))
    assert isinstance(await rig.event(), ev.Piece)
    arriving = rig.link._fetching
    assert arriving is not None
    connection.close()
    assert isinstance(await rig.event(), ev.Lost)
    assert arriving.timer is not None
    assert arriving.timer.cancelled()
    other = await rig.up()
    rig.link.ping()
    assert (await other.frame()).kind == FrameKind.PING
    other.close()


async def say_refused(connection: Connection) -> None:
    connection.say(FrameKind.REFUSED, 9, b"not kept")


async def say_too_much(connection: Connection) -> None:
    await answer_fetches(connection, bytes(1_000_001), 500_000)


async def say_nothing(connection: Connection) -> None:
    connection.say(FrameKind.STATE, 9, b"")


@pytest.mark.parametrize("answer", [say_refused, say_too_much, say_nothing])
async def test_a_fetch_may_fail(rig: Rig, answer: Callable[[Connection], Awaitable[None]]) -> None:
    connection = await rig.up()
    rig.link.fetch(9)
    await answer(connection)
    event = await rig.event()
    while isinstance(event, ev.Piece):
        event = await rig.event()
    assert isinstance(event, ev.FetchFailed)
    assert rig.link._fetching is None, "nothing of it is held"
    for _ in range(FETCH_AHEAD):  # answers to what was asked for ahead may still come, no more
        connection.say(FrameKind.STATE, 9, b"more")
    assert isinstance(await rig.event(), ev.ProtocolViolation)
    connection.close()


async def test_each_piece_asked_for_ahead_may_be_refused_once(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.fetch(9)
    for _ in range(FETCH_AHEAD + 1):
        connection.say(FrameKind.REFUSED, 9, b"not kept")
    assert isinstance(await rig.event(), ev.FetchFailed)
    assert isinstance(await rig.event(), ev.RefusedOrder), "one more than was asked for"
    connection.close()


async def test_a_refused_request_is_not_a_refused_fetch(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.fetch(9)
    connection.say(FrameKind.REFUSED, 8, b"history")
    assert isinstance(await rig.event(), ev.RefusedOrder)
    connection.close()


# --------------------------------------------------------------------- exec


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_process_and_its_children_end_with_their_link(scratch: Path) -> None:
    """Also a child that is stuck in an endless loop and reads no end of file."""
    pids = scratch / "pids"
    script = (
        "import os, sys\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    while True: pass\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child}} ')\n"
        "sys.stdin.read()\n"
    )
    rig = Rig(
        f'exec:{sys.executable} -c "exec({script.encode().hex()!r} and '
        f'bytes.fromhex({script.encode().hex()!r}).decode())"',
        None,
    )
    task = asyncio.create_task(rig.link.run())
    await until(lambda: pids.exists() and pids.read_text().count(" ") == 2, seconds=10)
    found = [int(word) for word in pids.read_text().split()]
    assert all(alive(pid) for pid in found)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not any(alive(pid) for pid in found))
    await until(lambda: not Path(f"/proc/{found[0]}").exists())  # ... and reaped, in a thread


async def test_failed_connect_is_the_links_problem() -> None:
    link = make_link()
    task = asyncio.create_task(link.run())
    await until(lambda: "cannot connect" in link.problem)
    assert link.problem.startswith("cannot connect to unix:/nowhere: ")
    assert "No such file" in link.problem
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert link.problem == "the voter stops"


async def test_a_command_that_is_not_there_is_a_problem_of_the_link() -> None:
    rig = Rig("exec:/nowhere/at-all", None)
    task = asyncio.create_task(rig.link.run())
    await until(lambda: "cannot connect" in rig.link.problem)
    assert "/nowhere/at-all" in rig.link.problem
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_exec_agent_is_started_again_after_its_link_closed() -> None:
    link_module.GREETING_LIMIT = 20.0  # a Python starts slowly on a busy machine
    command = f"exec:{sys.executable} -m guests.agent --stdio"
    rig = Rig(command, None)
    task = asyncio.create_task(rig.link.run())
    async with asyncio.timeout(30):
        assert isinstance(await rig.events.get(), ev.Greeted)
        rig.link.close("restored")
        assert isinstance(await rig.events.get(), ev.Lost)
        greeted = await rig.events.get()
    assert isinstance(greeted, ev.Greeted)
    assert greeted.fresh
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# ------------------------------------------------------------ retired replicas


async def test_link_of_a_retired_replica_is_closed_and_stays_closed(rig: Rig) -> None:
    connection = await rig.up()
    rig.link.enable(False)
    assert await rig.event() == ev.Lost(3, connection.epoch, "retired")
    await connection.closed()
    rig.link.reconnect_now()
    for _ in range(50):
        await asyncio.sleep(0)
    assert rig.agent.accepted.empty()
    assert (rig.link.up, rig.link.problem) == (False, "retired")


async def test_link_connects_again_once_its_replica_is_used_again(rig: Rig) -> None:
    await rig.up()
    rig.link.enable(False)
    await rig.event()
    rig.link.enable(True)
    await rig.up()
    assert rig.link.up
