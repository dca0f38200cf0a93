"""A client of the HTTP front end that retries a request with the same Idempotency-Key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from voter.client import READ_ONLY_METHODS, Answer
from voter.client.errors import NotExecuted, RequestError, SessionExpired, TimedOut
from voter.native_protocol import Vote

__all__ = ["HTTP", "KeyedClient"]

HTTP = "http.sock"
PAUSE = 0.05
"""Seconds before a request is retried."""
ATTEMPT = 6.0
"""Seconds after which one attempt times out."""
_REFUSED = frozenset({b"urn:trivisor:not-executed", b"urn:trivisor:overload"})
_UNKNOWN = frozenset({b"urn:trivisor:outcome-unknown", b"urn:trivisor:timeout"})
_TYPE = re.compile(rb'"type":"([^"]*)"')
_SEQ = re.compile(r"seq=(\d+)")


class KeyedClient:
    """A client that makes each attempt on a new connection, until there is a reply."""

    async def close(self) -> None:
        """Do nothing: no connection is open."""

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        timeout: float,
    ) -> Answer:
        """Make a request, with its operation's number as the key.  Raises RequestError."""
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
                    except (OSError, EOFError, _OutcomeUnknown):
                        doubtful = True
                    await asyncio.sleep(PAUSE)
        except TimeoutError as error:
            if doubtful:
                raise TimedOut("no reply in time") from error
            raise NotExecuted("refused each time") from error


class _OutcomeUnknown(Exception):
    """The request may have been executed."""


async def _exchange(data: bytes) -> Answer | None:
    """Make one attempt; return None if it was refused.  Raises OSError, EOFError, RequestError."""
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
        if kind in _UNKNOWN:
            raise _OutcomeUnknown
        if status == 410:
            raise SessionExpired(body.decode())
        raise RequestError(body.decode())
    seq = _SEQ.search(dict(headers)["trivisor-vote"])
    return Answer(status, headers, body, Vote(int(seq[1]) if seq else 0, 0, 0))
