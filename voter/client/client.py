"""The client library: requests through the vote, over a native connection.

::

    async with await Client.connect("unix:/path/native.sock") as client:
        answer = await client.request("PUT", "/kv/colour", b"blue")
        answer.status, answer.body, answer.vote.seq

Where requests must be signed (``guests.function``), ``connect`` takes the ``key``.

Concurrent requests are pipelined on one connection.  Errors are those of ``voter.client.errors``.

If a request gets no reply (the voter crashed, restarts, refuses it, or does not know the outcome),
the client retries until its timeout.  A write has a number in a session, so that it is executed
once however often it is sent.  The first write opens the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from guests.function import sign
from guests.protocol import wire
from guests.protocol.message import MessageError, Reply, encode_request
from guests.protocol.wire import FLAG_ONCE, FLAG_READ_ONLY, FrameKind, encode
from voter.address import Address, Connector, connect, parse_address
from voter.client.connection import SILENCE, ClientConnection
from voter.client.errors import (
    ConnectionFailed,
    NotExecuted,
    OutcomeUnknown,
    RequestError,
    SessionExpired,
    TimedOut,
    TooLarge,
)
from voter.native_protocol import (
    READ_ONLY_METHODS,
    OpenedPayload,
    Vote,
    encode_numbers,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["READ_ONLY_METHODS", "Answer", "Client"]

LONGEST_TOKEN = 512
"""Characters."""

PAUSE = 0.01
LONGEST_PAUSE = 0.25
"""Seconds before a retry: doubled from the first to the longest pause."""


class Answer(NamedTuple):
    """A released reply and how it was voted."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    vote: Vote


class _Session:
    """Numbers of one session: the client needs no reply to any request up to ``done``."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.done = 0
        self._last = 0
        self._open: set[int] = set()
        self._room = asyncio.Event()

    async def take(self, window: int) -> int:
        """Return the next number, once it is inside the window."""
        while self._last >= self.done + window:
            self._room.clear()
            await self._room.wait()
        self._last += 1
        self._open.add(self._last)
        return self._last

    def release(self, number: int) -> None:
        """Record that no reply to this number is needed any more."""
        self._open.discard(number)
        while self.done < self._last and self.done + 1 not in self._open:
            self.done += 1
            self._room.set()


class _Attempts:
    """The attempts of one request, and its number in a session once it has one.

    ``doubtful``: it may have been executed although there is no reply.
    """

    def __init__(self, request: bytes, *, read_only: bool) -> None:
        self.request = request
        self.read_only = read_only
        self.session: _Session | None = None
        self.number = 0
        self.doubtful = False
        self.problem: RequestError | None = None

    def release(self) -> None:
        """Release the number."""
        if self.session is not None:
            self.session.release(self.number)
            self.session = None

    def timeout_error(self) -> RequestError:
        """Return the error that describes best what is known at the timeout."""
        if self.problem is None or (self.doubtful and not isinstance(self.problem, OutcomeUnknown)):
            words = "; it may have been executed" if self.doubtful else ""
            last = f" (the last attempt: {self.problem})" if self.problem else ""
            return TimedOut(f"no reply in time{words}{last}")
        return self.problem

    def identify(self, error: RequestError) -> RequestError:
        """Let an error name the request; return it."""
        if self.session is not None:
            error.request_id = f"{self.session.name.hex()}:{self.number}"
        return error


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout >= 0:  # also true of NaN, which breaks the loop's timers
        raise ValueError(f"timeout {timeout!r}: give seconds, 0 or more; None: wait without end")


class Client:
    """A native client of a voter.  Make one with ``connect``."""

    def __init__(
        self,
        address: Address,
        connector: Connector,
        *,
        retry: bool,
        key: bytes = b"",
        token: str = "",
    ) -> None:
        self._key = key
        self._open = encode(FrameKind.OPEN, 0, 0, wire.PROTOCOL.to_bytes(2) + token.encode("ascii"))
        self._address = address
        self._connector = connector
        self._retry = retry
        self._closed = False
        self._session: _Session | None = None
        self._opening = asyncio.Lock()  # of a connection, or a session
        self._protocol: ClientConnection
        self.server: OpenedPayload
        """The voter's greeting: vote policy, replica names, limits."""

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        timeout: float = 5.0,
        retry: bool = True,
        connector: Connector = connect,
        key: bytes = b"",
        tls: ssl.SSLContext | None = None,
        token: str = "",
    ) -> Client:
        """Connect to ``unix:PATH`` or ``tcp:HOST:PORT``.

        ``tls`` (``voter.tls.client_context``) encrypts a connection by TCP.  ``token`` is for a
        voter that asks for one.  Raises ConnectionFailed, Unauthorized, ValueError.

        Without ``retry`` each request is sent once, outside any session, and its failure is raised.
        ``timeout`` is in seconds.  With ``key``, ``request`` signs what it sends.
        """
        _check_timeout(timeout)
        if not address.startswith(("unix:", "tcp:")):
            raise ValueError(f"address {address!r}: write unix:PATH or tcp:HOST:PORT")
        if not (token.isascii() and token.isprintable() and len(token) <= LONGEST_TOKEN):
            raise ValueError(f"a token has printable ASCII only, {LONGEST_TOKEN} at most")
        if tls is not None:
            connector = partial(connect, tls=tls)
        client = cls(parse_address(address), connector, retry=retry, key=key, token=token)
        await client._connect(timeout)
        return client

    async def _connect(self, timeout: float) -> None:
        """Open a new connection.  Raises ConnectionFailed."""
        protocol, text = ClientConnection(), self._address.text
        try:
            async with asyncio.timeout(timeout):
                await self._connector(self._address, lambda: protocol)
                protocol.send(self._open)
                self.server = await protocol.opened
        except BaseException as error:
            protocol.fail(ConnectionFailed("never opened", error_code="TV0308"))
            if not isinstance(error, OSError):  # TimeoutError is one
                raise
            raise ConnectionFailed(
                f"no voter at {text}: {str(error) or 'timed out'}", error_code="TV0308"
            ) from error
        self._protocol = protocol
        if self._closed:
            await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._protocol.fail(ConnectionFailed("the client was closed", error_code="TV0308"))

    def start(
        self, request: bytes, *, read_only: bool = False
    ) -> asyncio.Future[tuple[Vote, bytes]]:
        """Send canonical request bytes once, without retry; the future gives vote and reply.

        Many requests may be under way.  Raises ConnectionFailed, TooLarge at once.
        """
        self._check_size(request)
        return self._protocol.ask(FrameKind.REQUEST, request, FLAG_READ_ONLY if read_only else 0)

    def _check_size(self, request: bytes) -> None:
        if len(request) > self.server.max_request:
            raise TooLarge(f"{len(request)} bytes, the limit is {self.server.max_request}")

    async def ask(
        self, request: bytes, *, read_only: bool = False, timeout: float | None = 30.0
    ) -> tuple[Vote, bytes]:
        """Send canonical request bytes until there is a reply; return the vote and the reply.

        Raises RequestError; if it may have been executed: OutcomeUnknown, TimedOut, SessionExpired.
        ValueError for an impossible timeout.
        """
        _check_timeout(timeout)
        self._check_size(request)
        if not self._retry:
            async with asyncio.timeout(timeout):
                await self._protocol.room.wait()
                return await self.start(request, read_only=read_only)
        attempts = _Attempts(request, read_only=read_only)
        try:
            async with asyncio.timeout(timeout):
                return await self._persist(attempts)
        except TimeoutError as error:
            raise attempts.identify(attempts.timeout_error()) from error
        except RequestError as error:
            attempts.identify(error)
            raise
        finally:
            attempts.release()

    async def _persist(self, attempts: _Attempts) -> tuple[Vote, bytes]:
        """Send a request until there is a reply or an error that a retry cannot change."""
        pause = PAUSE
        while True:
            try:
                return await self._try(attempts)
            except (ConnectionFailed, NotExecuted, OutcomeUnknown, TimedOut) as error:
                attempts.problem = error
                if self._closed:
                    raise
            except SessionExpired:
                if self._session is attempts.session:
                    self._session = None
                if attempts.doubtful:
                    raise
                attempts.release()  # this attempt was the first to arrive: not executed
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _try(self, attempts: _Attempts) -> tuple[Vote, bytes]:
        """Send a request once; a write always in the session of its first attempt."""
        protocol = self._protocol
        if protocol.problem is not None:
            protocol = await self._connected()
        await protocol.room.wait()
        if attempts.read_only:
            reply = protocol.ask(FrameKind.REQUEST, attempts.request, FLAG_READ_ONLY)
            return cast(tuple[Vote, bytes], await protocol.answer(reply))
        session = attempts.session
        if session is None:
            session = self._session or await self._open_session(protocol)
            attempts.number = await session.take(self.server.session_window)
            attempts.session = session
        if protocol.session != session.name:
            protocol.session = session.name
            protocol.send(encode(FrameKind.SESSION, 0, 0, session.name))
        numbers = encode_numbers(session.done, attempts.number)
        future = protocol.ask(FrameKind.REQUEST, numbers + attempts.request, FLAG_ONCE)
        doubtful, attempts.doubtful = attempts.doubtful, True
        try:
            return cast(tuple[Vote, bytes], await protocol.answer(future))
        except (NotExecuted, SessionExpired):
            attempts.doubtful = doubtful
            raise

    async def _connected(self) -> ClientConnection:
        """Return a working connection, a new one if necessary; retry until cancelled."""
        pause = PAUSE
        async with self._opening:
            while self._protocol.problem is not None and not self._closed:
                try:
                    await self._connect(SILENCE)
                except ConnectionFailed:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            return self._protocol

    async def _open_session(self, protocol: ClientConnection) -> _Session:
        """Return the session; open one if there is none."""
        async with self._opening:
            if self._session is None:
                opened = await protocol.answer(protocol.ask(FrameKind.SESSION, b""))
                self._session = _Session(opened.payload)
            return self._session

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        timeout: float | None = 30.0,
    ) -> Answer:
        """Make one HTTP-style request through the vote.

        ``timeout`` is in seconds.  After it, the last error is raised, or TimedOut if the request
        may have been executed (without ``retry``: TimeoutError).  Raises RequestError.
        """
        method = method.upper()
        if self._key:
            headers = [*headers, sign(self._key, method, target, body)]
        data = encode_request(method, target, headers, body)
        read_only = method in READ_ONLY_METHODS
        vote, raw = await self.ask(data, read_only=read_only, timeout=timeout)
        try:
            reply = Reply.decode(raw)
        except MessageError as error:
            raise RequestError(
                f"the voted reply is not HTTP: {error}", error_code="TV0311"
            ) from error
        body = b"" if method == "HEAD" else reply.body  # services answer HEAD as they do GET
        return Answer(reply.status, list(reply.headers), body, vote)

    def dissenters(self, vote: Vote) -> list[str]:
        """Return the names of the replicas whose reply differed from the released one."""
        return [n for i, n in enumerate(self.server.replicas) if vote.dissent >> i & 1]
