"""Clients that never stop: increments, unique values, compare-and-set, deletes, reads.

Each has a connection and a session of its own and makes one request after the other, at a steady
pace, by ``Client.ask``: what it cannot get it asks for again.  Every reply goes to the oracle.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from faultinject.history.oracle import OrderOracle
from faultinject.soak.evidence import Evidence
from guests.protocol.message import Reply, encode_request
from voter.client import READ_ONLY_METHODS, Client
from voter.client.errors import NotExecuted, RequestError

__all__ = ["PATIENCE", "SHARED", "Load", "Window"]

PATIENCE = 30.0
"""Seconds after which a client gives a request up: an error, and a broken promise."""
SHARED = "shared"
"""Key of the counter that all clients add to."""
KEYS = 24
"""Keys that all clients write to."""
FILLER = 64 << 10
"""Bytes of one of the values that make the state as large as it is to be."""
TOLD = 20


class Window:
    """What clients felt from ``began`` on, until it is closed; seconds of the steady clock.

    ``longest``: the longest wait for a reply, of those that came after ``began``.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.ended = began
        self.longest = 0.0
        self.replies = 0

    def note(self, latency: float) -> None:
        """A reply came, after so many seconds."""
        self.longest = max(self.longest, latency)
        self.replies += 1

    @property
    def rate(self) -> float:
        """Replies a second."""
        return self.replies / max(self.ended - self.began, 1e-9)


class _Call(NamedTuple):
    kind: str  # own, shared, read-shared, or another word for tables
    method: str
    target: str
    body: bytes = b""
    etag: str = ""


class Load:
    """All clients of one run, and what they found."""

    def __init__(
        self,
        address: str,
        *,
        seed: int,
        clients: int,
        rate: float,
        state: int,
        oracle: OrderOracle | None = None,
    ) -> None:
        """``rate``: requests a second of all together; ``state``: bytes of filler."""
        self.oracle = oracle or OrderOracle()
        self.evidence = Evidence()
        self.errors: Counter[str] = Counter()
        self.told: list[str] = []
        """The first errors in words."""
        self.kinds: Counter[str] = Counter()
        self.latencies = array("d")
        self.again = 0
        """Replies that were released before, and told again to a client that had not got them."""
        self.dissents = 0
        """Replies released although a replica had said otherwise by then."""
        self._address = address
        self._seed = seed
        self._rate = rate
        self._state = state
        self._names = [f"c{number}" for number in range(1, clients + 1)]
        self._windows: list[Window] = []
        self._answered = dict.fromkeys(self._names, float("-inf"))
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def requests(self) -> int:
        """Requests that have ended."""
        return len(self.latencies) + sum(self.errors.values())

    def settled(self, since: float) -> bool:
        """Whether each client got a reply to a request that it began after ``since`` (steady
        seconds): then nothing from before waits for its vote any more.
        """
        return self._stopping.is_set() or all(self._answered[name] >= since for name in self._names)

    def watch(self) -> Window:
        """Open a window; the one that was open is closed."""
        for window in self._windows:
            window.ended = time.monotonic()
        window = Window(time.monotonic())
        self._windows = [window]
        return window

    def expect_canary(self) -> None:
        """A fault is about to write a key of its own through the vote.

        Its name is not known before: for the oracle any new key that nobody reads is as good.
        """
        request = encode_request("PUT", "/kv/canary", [], b"")
        self.oracle.lose(self.oracle.begin(request, read_only=False))

    async def connect(self) -> Client:
        """Return a client of its own for ``make``.  Raises ConnectionFailed."""
        return await Client.connect(self._address)

    async def make(
        self, client: Client, name: str, kind: str, method: str, target: str, body: bytes = b""
    ) -> Reply | None:
        """Make one more request, checked as all others; None if no reply came."""
        return await self._make(client, name, _Call(kind, method, target, body))

    # --------------------------------------------------------------- running

    async def start(self) -> None:
        """Fill the state, then have all clients begin.  Raises RequestError."""
        async with await Client.connect(self._address) as client:
            for number in range(self._state // FILLER):
                value = Random(number).randbytes(FILLER)
                await self._make(
                    client, "filler", _Call("fill", "PUT", f"/kv/fill-{number}", value)
                )
        for number, name in enumerate(self._names):
            self._tasks.append(asyncio.create_task(self._run(name, number), name=f"client {name}"))

    def check(self) -> None:
        """Raise what a client failed with, if one did (a bug of ours)."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """End after what is under way."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        """End now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, name: str, number: int) -> None:
        period = len(self._names) / self._rate
        due = time.monotonic() + period * number / len(self._names)
        calls = _Calls(name, Random(f"{self._seed} {name}"))
        async with await Client.connect(self._address) as client:
            while not self._stopping.is_set():
                call = calls.next()
                reply = await self._make(client, name, call)
                calls.learn(call, reply)
                due = max(due + period, time.monotonic())  # what a pause cost is not made up for
                await asyncio.sleep(due - time.monotonic())

    async def _make(self, client: Client, name: str, call: _Call) -> Reply | None:
        """Make one call, take note of what came; None if nothing came."""
        headers = [("if-match", call.etag)] if call.etag else []
        request = encode_request(call.method, call.target, headers, call.body)
        read_only = call.method in READ_ONLY_METHODS
        ticket = self.oracle.begin(request, read_only=read_only)
        began = time.monotonic()
        try:
            vote, raw = await client.ask(request, read_only=read_only, timeout=PATIENCE)
        except RequestError as error:
            sure = isinstance(error, NotExecuted)
            (self.oracle.refuse if sure else self.oracle.lose)(ticket)
            self._note_error(name, call, error, sure=sure)
            return None
        latency = time.monotonic() - began
        self.latencies.append(latency)
        self._answered[name] = began
        self.kinds[call.kind] += 1
        self.again += not vote.agreed
        self.dissents += bool(vote.dissent)
        for window in self._windows:
            window.note(latency)
        self.oracle.end(ticket, vote.seq, raw)
        reply = Reply.decode(raw)
        self._weigh(name, call, reply)
        return reply

    def _note_error(self, name: str, call: _Call, error: RequestError, *, sure: bool) -> None:
        self.errors[str(error.code)] += 1
        if len(self.told) < TOLD:
            self.told.append(f"{name}: {call.method} {call.target}: {error.code}: {error}")
        if not sure and call.kind == "own":
            self.evidence.own_lost(name)
        elif not sure and call.kind == "shared":
            self.evidence.shared_lost += 1

    def _weigh(self, name: str, call: _Call, reply: Reply) -> None:
        if reply.status != 200:
            return
        if call.kind == "own":
            self.evidence.own(name, int(reply.body))
        elif call.kind == "shared":
            self.evidence.added(name, int(reply.body))
        elif call.kind == "read-shared":
            self.evidence.read(name, int(reply.body))

    # ------------------------------------------------------------- at the end

    async def finish(self) -> None:
        """Read back every key, and see the counters' ends."""
        own: dict[str, int] = {}
        shared = 0
        async with await Client.connect(self._address) as client:
            for call in self._all_keys():
                reply = await self._make(client, "reader", call)
                found = reply is not None and reply.status == 200
                if reply is not None and found and call.target == f"/kv/{SHARED}":
                    shared = int(reply.body)
                elif reply is not None and found and call.target.startswith("/kv/own-"):
                    own[call.target.removeprefix("/kv/own-")] = int(reply.body)
        self.evidence.finish(shared, own)

    def _all_keys(self) -> Iterator[_Call]:
        names = [SHARED, *(f"own-{name}" for name in self._names)]
        names += [f"{name}-{number}" for name in self._names for number in range(4)]
        names += [f"any-{number}" for number in range(KEYS)]
        names += [f"fill-{number}" for number in range(self._state // FILLER)]
        for name in names:
            yield _Call("read-back", "GET", f"/kv/{name}")

    async def pass_markers(self, requests: int, in_flight: int) -> int:
        """Make so many writes, with nobody else asking; return how many places of the order went to
        markers among them.
        """
        places: list[int] = []
        numbers = iter(range(requests))

        async def work(client: Client) -> None:
            for number in numbers:
                value = b"%d" % number
                request = encode_request("PUT", f"/kv/last-{number % 8}", [], value)
                ticket = self.oracle.begin(request, read_only=False)
                try:
                    vote, raw = await client.ask(request, timeout=PATIENCE)
                except RequestError as error:
                    self.oracle.lose(ticket)
                    self._note_error("last", _Call("last", "PUT", "/kv/last"), error, sure=False)
                    continue
                self.oracle.end(ticket, vote.seq, raw)
                places.append(vote.seq)

        async with await Client.connect(self._address) as client:
            await asyncio.gather(*(work(client) for _ in range(in_flight)))
        return max(places) - min(places) + 1 - len(places) if places else 0


class _Calls:
    """What one client asks for, drawn from its seed and from what it was told."""

    def __init__(self, name: str, random: Random) -> None:
        self._name = name
        self._random = random
        self._number = 0
        self._etags: dict[str, str] = {}

    def next(self) -> _Call:
        """Return the next call."""
        self._number += 1
        random, draw = self._random, self._random.random()
        mine = f"/kv/{self._name}-{random.randrange(4)}"
        anybody = f"/kv/any-{random.randrange(KEYS)}"
        if draw < 0.20:
            return _Call("own", "POST", f"/kv/own-{self._name}?increment=1")
        if draw < 0.35:
            return _Call("shared", "POST", f"/kv/{SHARED}?increment=1")
        if draw < 0.50:
            return _Call("put", "PUT", random.choice((mine, anybody)), self._value())
        if draw < 0.65:
            etag = self._etags.get(anybody, '"1"')
            return _Call("compare-and-set", "PUT", anybody, self._value(), etag)
        if draw < 0.68:
            return _Call("delete", "DELETE", anybody)
        if draw < 0.70:
            return _Call("list", "GET", "/kv/?prefix=any-&limit=10")
        if draw < 0.80:
            return _Call("read-shared", "GET", f"/kv/{SHARED}")
        return _Call("read", "GET", random.choice((mine, anybody)))

    def learn(self, call: _Call, reply: Reply | None) -> None:
        """Keep the tag of what a key holds now, for the next compare-and-set."""
        for name, value in reply.headers if reply is not None else ():
            if name == "etag":
                self._etags[call.target] = value

    def _value(self) -> bytes:
        """A value that nobody else ever writes."""
        text = b"%s %d " % (self._name.encode(), self._number)
        return text + self._random.randbytes(self._random.randrange(32, 300))
