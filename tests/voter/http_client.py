"""An HTTP client that sends exactly the bytes it is given, valid or not."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from types import TracebackType
from typing import Any, NamedTuple, Self

__all__ = ["HttpClient", "Response"]

PATIENCE = 30.0
"""Seconds until an answer must be there."""


class Response(NamedTuple):
    """A response; header names in lower case, the last of a name counts."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The last part of the problem's type; the response must be a well-formed problem."""
        assert self.headers["content-type"] == "application/problem+json"
        document = self.json
        assert document["status"] == self.status
        assert document["title"]
        assert document["detail"]
        prefix, _, code = document["type"].rpartition(":")
        assert prefix == "urn:trivisor"
        return str(code)

    @property
    def error_code(self) -> str:
        """The code of the problem, as TV0301."""
        return str(self.json["code"])


class HttpClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> HttpClient:
        """Connect to a local port."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    @classmethod
    async def open_unix(cls, path: object) -> HttpClient:
        """Connect to a unix socket."""
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 22))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass  # the server was first

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    def half_close(self) -> None:
        """Say that no more is sent."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Break the connection off, as a process that is killed with data unread."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def read(self, *, head: bool = False) -> Response:
        """Read one response (``head``: it answers HEAD and has no body)."""
        async with asyncio.timeout(PATIENCE):
            block = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = block[:-4].decode("latin-1").split("\r\n")
            version, status, _ = first.split(" ", 2)
            assert version == "HTTP/1.1"
            headers = {}
            for line in lines:
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            length = 0 if head else int(headers.get("content-length", "0"))
            return Response(int(status), headers, await self.reader.readexactly(length))

    async def ask(
        self, method: str, target: str, body: bytes = b"", *headers: tuple[str, str]
    ) -> Response:
        """Make one request and read its response."""
        lines = [f"{method} {target} HTTP/1.1", "Host: test"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return await self.read(head=method == "HEAD")

    async def ended(self) -> bytes:
        """Wait until the server has closed; return what came before."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()
