"""The clients of a soak: increments, unique values, compare-and-set, deletes, reads.

Each client has its own connection and session and makes one request after another at a constant
rate.  It uses ``Client.ask``, which retries.  Every reply goes to the oracle, and the totals of
counters to an independent check.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from faultinject.history.counters import CounterCheck
from faultinject.history.oracle import OrderOracle
from guests.protocol.message import Reply, encode_request
from voter.client import READ_ONLY_METHODS, Client
from voter.client.errors import NotExecuted, RequestError

__all__ = ["TIMEOUT", "SHARED", "Load", "Window"]

TIMEOUT = 30.0
"""Seconds after which a request times out: an error, and a broken promise."""
SHARED = "shared"
"""Key of the counter that all clients increment."""
KEYS = 24
"""Number of keys that all clients write to."""
FILLER = 64 << 10
"""Bytes of each value that fills the state up to its planned size."""
MAX_MESSAGES = 20
"""Most errors that are described.  All are counted."""


class Window:
    """The replies from ``began`` to ``ended`` (monotonic seconds).

    ``longest``: the longest wait for one of them.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.ended = began
        self.longest = 0.0
        self.replies = 0

    def add(self, latency: float) -> None:
        """Count a reply that took this many seconds."""
        self.longest = max(self.longest, latency)
        self.replies += 1

    @property
    def rate(self) -> float:
        """Replies per second."""
        return self.replies / max(self.ended - self.began, 1e-9)


class _Call(NamedTuple):
    kind: str  # own, shared, read-shared, or any other name for tables
    method: str
    target: str
    body: bytes = b""
    etag: str = ""


class Load:
    """All clients of one run, and their results."""

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
        """``rate``: requests per second of all clients; ``state``: bytes of filler."""
        self.oracle = oracle or OrderOracle()
        self.counters = CounterCheck()
        self.errors: Counter[str] = Counter()
        self.messages: list[str] = []
        """The first few errors."""
        self.kinds: Counter[str] = Counter()
        self.latencies = array("d")
        self.replayed = 0
        """Replies from the deduplication table, to a client that had not received them."""
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
        """Number of requests that have ended."""
        return len(self.latencies) + sum(self.errors.values())

    def settled(self, since: float) -> bool:
        """Return whether each client got a reply to a request that it began after ``since``.

        No request from before (monotonic seconds) then waits for its vote any more.
        """
        return self._stopping.is_set() or all(self._answered[name] >= since for name in self._names)

    def watch(self) -> Window:
        """Open a window, and close the one that was open."""
        for window in self._windows:
            window.ended = time.monotonic()
        window = Window(time.monotonic())
        self._windows = [window]
        return window

    def expect_canary(self) -> None:
        """Record that a fault is about to write a canary through the vote.

        Its key is not known before.  For the oracle any new key that no client reads is equivalent.
        """
        request = encode_request("PUT", "/kv/canary", [], b"")
        self.oracle.lose(self.oracle.begin(request, read_only=False))

    async def connect(self) -> Client:
        """Return a new client for ``make``.  Raises ConnectionFailed."""
        return await Client.connect(self._address)

    async def make(
        self, client: Client, name: str, kind: str, method: str, target: str, body: bytes = b""
    ) -> Reply | None:
        """Make one more request, checked as all others; return None if no reply came."""
        return await self._make(client, name, _Call(kind, method, target, body))

    # --------------------------------------------------------------- running

    async def start(self) -> None:
        """Fill the state, then start all clients.  Raises RequestError."""
        async with await Client.connect(self._address) as client:
            for number in range(self._state // FILLER):
                value = Random(number).randbytes(FILLER)
                await self._make(
                    client, "filler", _Call("fill", "PUT", f"/kv/fill-{number}", value)
                )
        for number, name in enumerate(self._names):
            self._tasks.append(asyncio.create_task(self._run(name, number), name=f"client {name}"))

    def check(self) -> None:
        """Raise the error of a client task that failed, which is a bug of the soak."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """End the clients after the requests in progress."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        """End the clients now."""
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
                due = max(due + period, time.monotonic())  # a pause is not made up for
                await asyncio.sleep(due - time.monotonic())

    async def _make(self, client: Client, name: str, call: _Call) -> Reply | None:
        """Make one call and record its outcome; return None if no reply came."""
        headers = [("if-match", call.etag)] if call.etag else []
        request = encode_request(call.method, call.target, headers, call.body)
        read_only = call.method in READ_ONLY_METHODS
        ticket = self.oracle.begin(request, read_only=read_only)
        began = time.monotonic()
        try:
            vote, raw = await client.ask(request, read_only=read_only, timeout=TIMEOUT)
        except RequestError as error:
            refused = isinstance(error, NotExecuted)
            (self.oracle.refuse if refused else self.oracle.lose)(ticket)
            self._record_error(name, call, error, refused=refused)
            return None
        latency = time.monotonic() - began
        self.latencies.append(latency)
        self._answered[name] = began
        self.kinds[call.kind] += 1
        self.replayed += not vote.agreed
        for window in self._windows:
            window.add(latency)
        self.oracle.end(ticket, vote.seq, raw)
        reply = Reply.decode(raw)
        self._check_counter(name, call, reply)
        return reply

    def _record_error(self, name: str, call: _Call, error: RequestError, *, refused: bool) -> None:
        self.errors[str(error.code)] += 1
        if len(self.messages) < MAX_MESSAGES:
            self.messages.append(f"{name}: {call.method} {call.target}: {error.code}: {error}")
        if not refused and call.kind == "own":
            self.counters.own_lost(name)
        elif not refused and call.kind == "shared":
            self.counters.shared_lost += 1

    def _check_counter(self, name: str, call: _Call, reply: Reply) -> None:
        if reply.status != 200:
            return
        if call.kind == "own":
            self.counters.own(name, int(reply.body))
        elif call.kind == "shared":
            self.counters.added(name, int(reply.body))
        elif call.kind == "read-shared":
            self.counters.read(name, int(reply.body))

    # ------------------------------------------------------------- at the end

    async def finish(self) -> None:
        """Read back every key, and check the final values of the counters."""
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
        self.counters.finish(shared, own)

    def _all_keys(self) -> Iterator[_Call]:
        names = [SHARED, *(f"own-{name}" for name in self._names)]
        names += [f"{name}-{number}" for name in self._names for number in range(4)]
        names += [f"any-{number}" for number in range(KEYS)]
        names += [f"fill-{number}" for number in range(self._state // FILLER)]
        for name in names:
            yield _Call("read-back", "GET", f"/kv/{name}")

    async def pass_markers(self, requests: int, in_flight: int) -> int:
        """Make this many writes while no other client does; return how many markers came meanwhile.

        A marker takes a place in the order, so the gaps between the writes' places are markers.
        """
        places: list[int] = []
        numbers = iter(range(requests))

        async def work(client: Client) -> None:
            for number in numbers:
                value = b"%d" % number
                request = encode_request("PUT", f"/kv/last-{number % 8}", [], value)
                ticket = self.oracle.begin(request, read_only=False)
                try:
                    vote, raw = await client.ask(request, timeout=TIMEOUT)
                except RequestError as error:
                    self.oracle.lose(ticket)
                    call = _Call("last", "PUT", "/kv/last")
                    self._record_error("last", call, error, refused=False)
                    continue
                self.oracle.end(ticket, vote.seq, raw)
                places.append(vote.seq)

        async with await Client.connect(self._address) as client:
            await asyncio.gather(*(work(client) for _ in range(in_flight)))
        return max(places) - min(places) + 1 - len(places) if places else 0


class _Calls:
    """The calls of one client, drawn from its seed and the entity tags that it received."""

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
        """Keep the entity tag of a key for the next compare-and-set."""
        for name, value in reply.headers if reply is not None else ():
            if name == "etag":
                self._etags[call.target] = value

    def _value(self) -> bytes:
        """Return a value that no other call writes."""
        text = b"%s %d " % (self._name.encode(), self._number)
        return text + self._random.randbytes(self._random.randrange(32, 300))
