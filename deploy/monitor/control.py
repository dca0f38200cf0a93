"""Calls of the control sockets of voter and supervisor, with as little delay as possible.

HTTP/1.0, so that a stream is neither chunked nor kept open for another request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from deploy.errors import DeployError

__all__ = ["ControlError", "call", "lines"]

CALL_TIMEOUT = 10.0
"""Seconds for an answer; a start of a voter takes less."""
LONGEST_LINE = 4 << 20
"""Bytes of a line: a request of 1 MiB in base64 fits."""


class ControlError(DeployError):
    """A control socket does not answer, or refuses a call."""

    error_code = "TV0783"


async def _open(
    path: Path, method: str, target: str, body: bytes
) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request and read the head of its response; return its status."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=LONGEST_LINE)
    try:
        head = f"{method} {target} HTTP/1.0\r\nHost: node\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
        return int(status), reader, writer
    except BaseException:
        writer.close()
        raise


async def call(
    path: Path, method: str, target: str, body: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the answer.  Raises ControlError."""
    data = b"" if body is None else json.dumps(body, allow_nan=False).encode()
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            status, reader, writer = await _open(path, method, target, data)
            try:
                text = await reader.read()
            finally:
                writer.close()
            answer = json.loads(text) if text.strip() else {}
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
        raise ControlError(
            f"{path.name} does not answer {method} {target}: {str(error) or type(error).__name__}",
            remedy="`trivisor status` shows whether the node runs",
        ) from error
    if status >= 400:
        raise ControlError(
            f"{path.name} refused {method} {target}: {answer.get('detail') or answer.get('error')}",
            remedy=str(answer.get("remedy", "")),
        )
    return dict(answer)


async def lines(path: Path, target: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the documents of a stream, first an empty one once it has begun, until it ends.

    Raises ControlError.
    """
    writer = None
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            status, reader, writer = await _open(path, "GET", target, b"")
        if status >= 400:
            raise ControlError(f"{path.name} refused GET {target}: status {status}")
        yield {}
        while line := await reader.readline():
            if line.strip():
                yield json.loads(line)
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
        raise ControlError(
            f"{path.name}: the stream {target} ended: {str(error) or type(error).__name__}",
            remedy="`trivisor status` shows whether the node runs",
        ) from error
    finally:
        if writer is not None:
            writer.close()
