"""Load: one way to drive everything that is compared, so that the drivers' own cost is the same
for all.

A *target* is a function that starts one request and returns a future.  ``serial`` has one request
under way, ``pipelined`` a fixed number.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NamedTuple, Self, cast

from guests.protocol import wire
from guests.protocol.wire import Decoder, FrameKind, encode, encode_order
from voter.address import Address, connect

__all__ = [
    "Arrivals",
    "BareLink",
    "HttpPool",
    "LatencySummary",
    "Start",
    "Timed",
    "percentile",
    "pipelined",
    "serial",
    "summarize",
    "timed",
]

Start = Callable[[], "asyncio.Future[Any]"]


class LatencySummary(NamedTuple):
    """Latencies of a series, in seconds."""

    p50: float
    p99: float
    p999: float
    worst: float


def percentile(values: list[float], part: float) -> float:
    """Return the nearest-rank percentile (``part`` 0 to 1) of unsorted values; NaN without any."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summarize(values: list[float]) -> LatencySummary:
    """Return the percentiles that the tables show."""
    return LatencySummary(
        percentile(values, 0.5), percentile(values, 0.99), percentile(values, 0.999), max(values)
    )


async def serial(start: Start, number: int) -> LatencySummary:
    """Make ``number`` requests one after another."""
    values = []
    for _ in range(number):
        began = time.perf_counter()
        await start()
        values.append(time.perf_counter() - began)
    return summarize(values)


async def pipelined(start: Start, number: int, in_flight: int) -> float:
    """Keep ``in_flight`` requests under way until ``number`` are done; return requests a second."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    started = ended = 0

    def next_one() -> None:
        nonlocal started
        started += 1
        start().add_done_callback(one_ended)

    def one_ended(future: asyncio.Future[Any]) -> None:
        nonlocal ended
        ended += 1
        error = future.exception()
        if error is not None and not done.done():
            done.set_exception(error)
        elif started < number:
            next_one()
        elif ended == number and not done.done():
            done.set_result(None)

    began = time.perf_counter()
    for _ in range(min(in_flight, number)):
        next_one()
    await done
    return number / (time.perf_counter() - began)


class Timed(NamedTuple):
    """Requests a second, and their latencies."""

    rate: float
    latency: LatencySummary


async def timed(start: Start, number: int, in_flight: int) -> Timed:
    """As ``pipelined``, with the latency of each request."""
    values: list[float] = []
    note = values.append
    clock = time.perf_counter

    def begin() -> asyncio.Future[Any]:
        began = clock()
        future = start()
        future.add_done_callback(lambda _: note(clock() - began))
        return future

    rate = await pipelined(begin, number, in_flight)
    return Timed(rate, summarize(values))


class Arrivals:
    """Starts requests at fixed times, ``rate`` a second, whether or not earlier ones are answered,
    inside ``async with``; leaving it waits for those that are under way.

    A latency counts from the time its request was due, so that a stall is seen in full.
    """

    def __init__(self, start: Start, rate: float) -> None:
        self._start, self._rate = start, rate
        self.latencies: list[tuple[float, float]] = []
        """(when due, on the clock of ``time.perf_counter``; seconds) of each that was answered."""
        self.failures: Counter[str] = Counter()
        """What went wrong, by the name of the error."""
        self._waiting = 0
        self._idle = asyncio.Event()
        self._until = inf
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def failed(self) -> int:
        """How many went wrong."""
        return self.failures.total()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._until = time.perf_counter()
        self._stop.set()
        if self._task is not None:
            await self._task
        while self._waiting:
            self._idle.clear()
            await self._idle.wait()

    async def _run(self) -> None:
        began = time.perf_counter()
        number = 0
        while (due := began + number / self._rate) < self._until:
            wait = due - time.perf_counter()
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._stop.wait()
                if self._stop.is_set():
                    continue
            elif number % 16 == 0:
                await asyncio.sleep(0)
            number += 1
            self._waiting += 1
            self._start().add_done_callback(partial(self._ended, due))

    def _ended(self, due: float, future: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or error is not None:
            self.failures[type(error).__name__] += 1
        else:
            self.latencies.append((due, time.perf_counter() - due))
        if not self._waiting:
            self._idle.set()


class BareLink(asyncio.Protocol):
    """Speaks to one agent without a voter: the base line (a).  Make one with ``open``."""

    EPOCH = 0xBA5E

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._decoder = Decoder()
        self._welcome: asyncio.Future[wire.Welcome] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._out: list[bytes] = []
        self._seq = 0
        self._history = bytes(8)
        self.transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, address: Address, request: bytes, *, patience: float = 10.0) -> BareLink:
        """Connect and greet, again and again until the agent answers.  Raises TimeoutError."""
        async with asyncio.timeout(patience):
            while True:
                link = cls(request)
                await connect(address, lambda link=link: link)  # type: ignore[misc]
                hello = wire.PROTOCOL.to_bytes(2) + b"\0"
                cast(asyncio.Transport, link.transport).write(
                    encode(FrameKind.HELLO, cls.EPOCH, 0, hello)
                )
                try:
                    async with asyncio.timeout(1.0):
                        welcome = await asyncio.shield(link._welcome)
                except TimeoutError:
                    link.close()
                    continue
                link._seq, link._history = welcome.last_seq, welcome.history
                return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the agent."""
        for frame in self._decoder.feed(data):
            if frame.epoch != self.EPOCH:
                continue
            if frame.kind == FrameKind.WELCOME and not self._welcome.done():
                self._welcome.set_result(wire.decode_welcome(frame.payload))
            elif frame.kind == FrameKind.REPLY:
                self._waiting.pop(frame.seq).set_result(frame.payload)

    def start(self) -> asyncio.Future[bytes]:
        """Order one request; the future gives its reply."""
        self._seq = seq = self._seq + 1
        history = seq.to_bytes(8)
        payload = encode_order(0, self._history, history, b"bench", self._request)
        self._history = history
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(encode(FrameKind.ORDER, self.EPOCH, seq, payload))
        future = self._waiting[seq] = asyncio.get_running_loop().create_future()
        return future

    def _flush(self) -> None:
        if self.transport is not None:
            self.transport.write(b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        """End the connection."""
        if self.transport is not None:
            self.transport.abort()


class _HttpConnection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection, one request at a time; replies must state their
    length.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = b""
        self._future: asyncio.Future[bytes] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(ConnectionError("the server closed the connection"))

    def start(self) -> asyncio.Future[bytes]:
        self._future = asyncio.get_running_loop().create_future()
        if self.transport is not None:
            self.transport.write(self._request)
        return self._future

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        lower = buffer[:head].lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(buffer) < head + 4 + length or self._future is None:
            return
        self._buffer = buffer[head + 4 + length :]
        future, self._future = self._future, None
        if buffer[9:10] == b"2":
            future.set_result(buffer[: head + 4 + length])
        else:
            future.set_exception(RuntimeError(f"HTTP reply {buffer[:60]!r}"))


class HttpPool:
    """Keep-alive connections to one HTTP server; as many requests under way as there are
    connections.
    """

    def __init__(self, connections: list[_HttpConnection]) -> None:
        self._all = connections
        self._free = list(connections)

    @classmethod
    async def open(cls, host: str, port: int, size: int, request: bytes) -> HttpPool:
        """Open ``size`` connections.  Raises OSError."""
        loop = asyncio.get_running_loop()
        connections = []
        for _ in range(size):
            _, connection = await loop.create_connection(
                lambda: _HttpConnection(request), host, port
            )
            connections.append(connection)
        return cls(connections)

    def start(self) -> asyncio.Future[bytes]:
        """Make one request on a free connection."""
        connection = self._free.pop()
        future = connection.start()
        future.add_done_callback(lambda _: self._free.append(connection))
        return future

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            if connection.transport is not None:
                connection.transport.abort()
