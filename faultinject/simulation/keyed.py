"""A client of the HTTP front end that repeats itself: the same Idempotency-Key each time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from voter.client import READ_ONLY_METHODS, Answer
from voter.errors import NotExecuted, RequestError, SessionExpired, TimedOut
from voter.native_protocol import Vote

__all__ = ["HTTP", "KeyedClient"]

HTTP = "http.sock"
PAUSE = 0.05
"""Seconds until a request is sent again."""
ATTEMPT = 6.0
"""Seconds that one attempt may take."""
_REFUSED = frozenset({b"urn:trivisor:not-executed", b"urn:trivisor:overload"})
_DOUBTFUL = frozenset({b"urn:trivisor:outcome-unknown", b"urn:trivisor:timeout"})
_TYPE = re.compile(rb'"type":"([^"]*)"')
_SEQ = re.compile(r"seq=(\d+)")


class KeyedClient:
    """Makes each request on a connection of its own, until there is a reply."""

    async def close(self) -> None:
        """Nothing is open."""

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        timeout: float,
    ) -> Answer:
        """Make a request; its key is its operation's number.  Raises the errors of the voter."""
        lines = [f"{method} {target} HTTP/1.1", "host: simulated", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers]
        if method not in READ_ONLY_METHODS:
            lines.append(f"idempotency-key: {dict(headers)['x-op']}")
        lines.append(f"content-length: {len(body)}")
        data = "\r\n".join([*lines, "", ""]).encode() + body
        doubtful = False
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        async with asyncio.timeout(ATTEMPT):
                            answer = await _exchange(data)
                        if answer is not None:
                            return answer
                    except (OSError, EOFError, _Doubtful):
                        doubtful = True
                    await asyncio.sleep(PAUSE)
        except TimeoutError as error:
            if doubtful:
                raise TimedOut("no reply in time") from error
            raise NotExecuted("refused each time") from error


class _Doubtful(Exception):
    """It may have been executed."""


async def _exchange(data: bytes) -> Answer | None:
    """Make one attempt; None: it was refused.  Raises OSError, EOFError, RequestError."""
    reader, writer = await asyncio.open_unix_connection(HTTP)
    try:
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in head[1:] if line]
        headers = [(name.lower(), value) for name, value in pairs]
        status, size = int(head[0].split()[1]), int(dict(headers).get("content-length", "0"))
        body = await reader.readexactly(size)
    finally:
        writer.close()
    if dict(headers).get("content-type") == "application/problem+json":
        found = _TYPE.search(body.replace(b": ", b":"))
        kind = found[1] if found else b""
        if kind in _REFUSED:
            return None
        if kind in _DOUBTFUL:
            raise _Doubtful
        if status == 410:
            raise SessionExpired(body.decode())
        raise RequestError(body.decode())
    seq = _SEQ.search(dict(headers)["trivisor-vote"])
    return Answer(status, headers, body, Vote(int(seq[1]) if seq else 0, 0, 0))
