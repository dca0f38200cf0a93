"""The client library against a scripted voter: every write is executed once, or it raises."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import pytest

from guests.protocol import wire
from guests.protocol.wire import FLAG_ONCE, FLAG_READ_ONLY, Decoder, Frame, FrameKind, encode
from tests.errors import raises
from voter.client import Client
from voter.client import client as client_module
from voter.client import connection as dialogue
from voter.client.errors import (
    ConnectionFailed,
    NotExecuted,
    OutcomeUnknown,
    Overload,
    RequestError,
    SessionExpired,
    TimedOut,
)
from voter.core.events import Failure
from voter.native_protocol import (
    OpenedPayload,
    decode_numbers,
    decode_several,
    encode_failure,
    encode_response,
    encode_several,
)

REFUSALS = (Failure.NOT_EXECUTED, Failure.OVERLOAD)
DOUBTS = (Failure.OUTCOME_UNKNOWN, Failure.TIMEOUT)
WINDOW = 8


class FakeVoter:
    """Executes what is new, once; before that it does what is next in ``script``:

    a failure's code; ``cut`` the connection before, or ``cut after``, the execution; ``silent``;
    ``say nothing`` after it; ``forget`` all sessions; ``go on``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script: list[str] = []
        self.executed: list[bytes] = []
        self.kept: dict[tuple[bytes, int], bytes] = {}
        self.floors: dict[bytes, int] = {}
        self.connections: set[asyncio.Transport] = set()
        self.dialled = 0
        self.sent: Counter[bytes] = Counter()
        self.frames: Counter[int] = Counter()
        self.most_pending = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), str(self.path))

    def stop(self) -> None:
        """Die."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink()
        for transport in tuple(self.connections):
            transport.abort()

    def decide(self, session: bytes, frame: Frame, answer: Callable[[bytes, int], None]) -> str:
        """Answer one request; return ``cut`` if the connection is to end."""
        done, number, request = 0, 0, frame.payload
        if frame.flags & FLAG_ONCE:
            done, number = decode_numbers(request)
            request = request[16:]
        self.sent[request] += 1
        word = self.script.pop(0) if self.script else "go on"
        if word == "forget":
            self.floors.clear()
        known = self.kept.get((session, number)) if number else None
        if number:
            floor = self.floors.get(session)
            if floor is None or not max(floor, done) < number <= max(floor, done) + WINDOW:
                answer(encode_failure(Failure.SESSION_EXPIRED, "gone"), FrameKind.FAILURE)
                return ""
            self.most_pending = max(self.most_pending, number - done)
        if word in ("cut", "silent"):
            return word
        if word == Failure.KEY_REUSED or (word in REFUSALS and known is None) or word in DOUBTS:
            if word in DOUBTS:
                self.execute(session, number, done, request, frame.flags)
            answer(encode_failure(word, "told to"), FrameKind.FAILURE)
            return ""
        reply = self.execute(session, number, done, request, frame.flags)
        if word in ("cut after", "say nothing"):
            return "cut" if word == "cut after" else ""
        answer(encode_response(len(self.executed), 2, (), reply), FrameKind.RESPONSE)
        return ""

    def execute(self, session: bytes, number: int, done: int, request: bytes, flags: int) -> bytes:
        """Execute a write unless it was; return its reply."""
        if flags & FLAG_READ_ONLY:
            return request
        if number:
            self.floors[session] = max(self.floors[session], done)
            if (session, number) in self.kept:
                return self.kept[session, number]
        self.executed.append(request)
        self.kept[session, number] = request + b"!"
        return request + b"!"


def apart(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Give the requests in REQUESTS as if each had come in a frame of its own."""
    for frame in frames:
        if frame.kind == FrameKind.REQUESTS:
            for number, flags, request in decode_several(frame.payload):
                yield Frame(FrameKind.REQUEST, flags, 0, number, request)
        else:
            yield frame


class _Connection(asyncio.Protocol):
    def __init__(self, voter: FakeVoter) -> None:
        self.voter = voter
        self.decoder = Decoder()
        self.session = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.voter.connections.add(self.transport)
        self.voter.dialled += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.voter.connections.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        frames = self.decoder.feed(data)
        requests = (FrameKind.REQUEST, FrameKind.REQUESTS)
        self.voter.frames.update(frame.kind for frame in frames if frame.kind in requests)
        for frame in apart(frames):
            if self.transport.is_closing():
                return
            if frame.kind == FrameKind.OPEN:
                opened = OpenedPayload(
                    protocol=wire.PROTOCOL, vote="2/3", replicas=["a", "b", "c"],
                    max_request=1000, max_in_flight=10, session_window=WINDOW,
                )  # fmt: skip
                self.answer(0, msgspec.json.encode(opened), FrameKind.OPENED)
            elif frame.kind == FrameKind.SESSION:
                name = frame.payload
                if not name:
                    name = len(self.voter.floors).to_bytes(8) + random.randbytes(8)
                    self.voter.floors[name] = 0
                else:
                    self.session = name
                self.answer(frame.seq, name, FrameKind.SESSION)
            else:
                word = self.voter.decide(self.session, frame, partial(self.answer, frame.seq))
                if word == "cut":
                    self.transport.abort()

    def answer(self, seq: int, payload: bytes, kind: int) -> None:
        self.transport.write(encode(kind, 0, seq, payload))


@asynccontextmanager
async def fake(scratch: Path, *script: str) -> AsyncIterator[tuple[FakeVoter, Client]]:
    """A voter and its client."""
    voter = FakeVoter(scratch / "v.sock")
    await voter.start()
    try:
        async with await Client.connect(f"unix:{voter.path}") as client:
            voter.script = list(script)
            yield voter, client
    finally:
        voter.stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LONGEST_PAUSE", 0.02)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "word",
    ["cut", "cut after", *REFUSALS, *DOUBTS],
)  # fmt: skip
async def test_a_write_is_sent_again_and_executed_once(
    scratch: Path, word: str, times: int
) -> None:
    async with fake(scratch, *[word] * times) as (voter, client):
        vote, reply = await client.ask(b"a")
        assert (vote.agreed, reply) == (2, b"a!")
        assert voter.executed == [b"a"]
        assert voter.sent[b"a"] == times + 1
        assert (await client.ask(b"b"))[1] == b"b!"
        assert voter.executed == [b"a", b"b"]
        assert len(voter.floors) == 1, "one session for all"


@pytest.mark.parametrize("word", ["cut", Failure.NOT_EXECUTED, Failure.OUTCOME_UNKNOWN])
async def test_a_read_is_repeated_and_needs_no_session(scratch: Path, word: str) -> None:
    async with fake(scratch, word, word) as (voter, client):
        assert (await client.ask(b"r", read_only=True))[1] == b"r"
        assert voter.sent[b"r"] == 3
        assert voter.floors == {}


@pytest.mark.parametrize(
    ("word", "error"),
    [
        (Failure.NOT_EXECUTED, NotExecuted),
        (Failure.OVERLOAD, Overload),
        (Failure.OUTCOME_UNKNOWN, OutcomeUnknown),
        ("cut", TimedOut),
        ("silent", TimedOut),
        ("say nothing", TimedOut),
    ],
)
async def test_timeout_error_reports_what_is_known(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, word: str, error: type[RequestError]
) -> None:
    answered = error is not TimedOut
    if answered:  # then it ends between two attempts: in one, nothing would be known of that
        monkeypatch.setattr(client_module, "PAUSE", 60.0)
    async with fake(scratch) as (voter, client):
        voter.script = [word] * 100
        with pytest.raises(error) as raised:
            await client.ask(word.encode(), timeout=1.0)
        assert type(raised.value) is error
        if error is Overload:
            assert raised.value.error_code == "TV0302"
        if error is RequestError:
            assert raised.value.error_code == "TV0300"
        if error is TimedOut:
            assert "may have been executed" in str(raised.value)
        voter.script.clear()
        assert (await client.ask(b"next"))[1] == b"next!", "its number is abandoned"


async def test_a_refusal_after_a_doubtful_attempt_leaves_the_doubt(scratch: Path) -> None:
    async with fake(scratch, "cut after", *[Failure.NOT_EXECUTED] * 100) as (voter, client):
        voter.kept = cast(dict[tuple[bytes, int], bytes], _Forgetful())
        with raises("TV0304", match="may have been executed"):
            await client.ask(b"a", timeout=1.0)


class _Forgetful(dict[tuple[bytes, int], bytes]):
    def get(self, key: object, default: object = None) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("timeout", [float("nan"), -1.0, float("-inf")])
async def test_impossible_timeout_is_an_error_at_once(scratch: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="give seconds"):
        await Client.connect(f"unix:{scratch / 'none'}", timeout=timeout)
    async with fake(scratch) as (_, client):
        with pytest.raises(ValueError, match="give seconds"):
            await client.request("GET", "/", timeout=timeout)


async def test_no_voter_for_a_while(scratch: Path) -> None:
    async with fake(scratch) as (voter, client):
        assert (await client.ask(b"a"))[1] == b"a!"
        voter.stop()
        with raises("TV0309"):
            await client.ask(b"r", read_only=True, timeout=1.0)
        calls = [asyncio.create_task(client.ask(b"%d" % n)) for n in range(20)]
        await asyncio.sleep(0.1)  # they try in vain
        assert not any(call.done() for call in calls)
        await voter.start()
        assert [(await call)[1] for call in calls] == [b"%d!" % n for n in range(20)]
        assert Counter(voter.executed).most_common(1)[0][1] == 1
        assert voter.dialled == 2, "one connection for all"


async def test_expired_session_is_an_error_only_in_doubt(scratch: Path) -> None:
    async with fake(scratch) as (voter, client):
        assert (await client.ask(b"a"))[1] == b"a!"
        voter.script = ["forget"]
        assert (await client.ask(b"b"))[1] == b"b!", "sent for the first time: a new session"
        voter.script = ["cut", "forget"]
        with raises("TV0305"):
            await client.ask(b"c")
        voter.script = [Failure.OVERLOAD, "forget"]
        assert (await client.ask(b"d"))[1] == b"d!", "refused at first: no doubt either"
        assert voter.executed == [b"a", b"b", b"d"]


async def test_requests_under_way_stay_inside_the_window(scratch: Path) -> None:
    async with fake(scratch, *["silent"] * 3) as (voter, client):
        slow = [asyncio.create_task(client.ask(b"slow", timeout=0.3)) for _ in range(3)]
        replies = await asyncio.gather(*(client.ask(b"%d" % n) for n in range(50)))
        assert [reply for _, reply in replies] == [b"%d!" % n for n in range(50)]
        for call in slow:
            with raises("TV0304"):
                await call
        assert len(voter.executed) == 50
        assert voter.most_pending == WINDOW


async def test_silent_connection_is_closed_and_the_request_retried(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "SILENCE", 1.0)
    async with fake(scratch, "say nothing", "silent") as (voter, client):
        assert (await client.ask(b"a"))[1] == b"a!"
        assert voter.executed == [b"a"]
        assert voter.dialled == 3


async def test_errors_that_no_retry_helps_against(scratch: Path) -> None:
    async with fake(scratch) as (voter, client):
        with raises("TV0307"):
            await client.ask(bytes(1001))
        voter.script = [Failure.KEY_REUSED]
        with raises("TV0306"):
            await client.ask(b"b")


async def test_client_sends_the_requests_of_a_turn_in_one_frame_and_takes_their_answers(
    scratch: Path,
) -> None:
    async with fake(scratch, "silent", "silent", "silent") as (voter, client):
        calls = [client.start(request, read_only=True) for request in (b"a", b"b", b"c")]
        await client.ask(b"r", read_only=True)
        items = [
            (number, FrameKind.RESPONSE, encode_response(number, 2, (), b"%d" % number))
            for number in (3, 1)
        ]
        items.append((2, FrameKind.FAILURE, encode_failure(Failure.NOT_EXECUTED, "told to")))
        for transport in voter.connections:
            transport.write(encode(FrameKind.RESPONSES, 0, 3, encode_several(items)))
        assert [(await calls[n])[1] for n in (0, 2)] == [b"1", b"3"]
        with pytest.raises(NotExecuted):
            await calls[1]
        await client.ask(b"alone", read_only=True)
        assert voter.frames == Counter({FrameKind.REQUESTS: 1, FrameKind.REQUEST: 1})


async def test_malformed_answers_end_the_connection(scratch: Path) -> None:
    async with fake(scratch, "silent", "silent") as (voter, client):
        calls = [client.start(request, read_only=True) for request in (b"a", b"b")]
        await client.ask(b"r", read_only=True)
        for transport in voter.connections:
            transport.write(encode(FrameKind.RESPONSES, 0, 1, b"\0\2" + bytes(26)))
        for call in calls:
            with pytest.raises(ConnectionFailed):
                await call


async def test_overloaded_connection_leaves_the_outcome_unknown(
    scratch: Path,
) -> None:
    async with fake(scratch, "silent") as (voter, client):
        call = asyncio.ensure_future(client.start(b"a"))
        await client.ask(b"r", read_only=True)
        for transport in voter.connections:
            transport.write(
                encode(FrameKind.FAILURE, 0, 0, encode_failure(Failure.OVERLOAD, "full"))
            )
        with raises("TV0309", match="full"):
            await call


async def test_client_without_retry_raises_each_failure(scratch: Path) -> None:
    voter = FakeVoter(scratch / "v.sock")
    await voter.start()
    async with await Client.connect(f"unix:{voter.path}", retry=False) as client:
        for word, error in (
            (Failure.NOT_EXECUTED, NotExecuted),
            (Failure.OUTCOME_UNKNOWN, OutcomeUnknown),
        ):
            voter.script = [word]
            with pytest.raises(error):
                await client.ask(b"a")
        voter.script = ["silent"]
        with pytest.raises(TimeoutError):
            await client.ask(b"a", timeout=0.05)
        assert voter.floors == {}
        voter.script = ["cut"]
        for _ in range(2):
            with pytest.raises(ConnectionFailed):
                await client.ask(b"a")
        with pytest.raises(ConnectionFailed):
            client.start(b"a")
    voter.stop()


async def test_closed_client_does_not_retry(scratch: Path) -> None:
    async with fake(scratch, "silent") as (voter, client):
        call = asyncio.create_task(client.ask(b"a"))
        await asyncio.sleep(0.02)  # it waits
        await client.close()
        with raises("TV0308", match="closed"):
            await call
        with pytest.raises(ConnectionFailed, match="closed"):
            await client.ask(b"b")
        assert voter.dialled == 1


async def test_addresses_that_are_none(scratch: Path) -> None:
    with pytest.raises(ValueError, match="unix:PATH"):
        await Client.connect("exec:true")
    with raises("TV0308", match="no voter at"):
        await Client.connect(f"unix:{scratch}/none.sock")


@pytest.mark.parametrize("seed", range(5))
async def test_any_faults_in_any_order(scratch: Path, seed: int) -> None:
    """A reply means executed once; in doubt, at most once."""
    chance = random.Random(seed)
    words = ["go on", "cut", "cut after", *REFUSALS, *DOUBTS, "forget"]
    weights = [10, 2, 2, 2, 2, 1, 1, 0.3]
    async with fake(scratch) as (voter, client):
        voter.script = chance.choices(words, weights, k=400)
        found: dict[bytes, str] = {}

        async def work(worker: int) -> None:
            for n in range(20):
                request = b"%d-%d" % (worker, n)
                try:
                    _, reply = await client.ask(request, timeout=20)
                    assert reply == request + b"!"
                    found[request] = "done"
                except SessionExpired:
                    found[request] = "doubt"

        await asyncio.gather(*(work(worker) for worker in range(12)))
        times = Counter(voter.executed)
        assert len(found) == 240
        assert all(times[request] == 1 for request, what in found.items() if what == "done")
        assert max(times.values()) == 1
        assert sum(what == "done" for what in found.values()) > 150
