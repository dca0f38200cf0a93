"""The peers of the comparison: one process replica behind HTTP, a plain aiohttp proxy, HAProxy.

Run as ``python -m faultinject.bench.peers replica PORT`` or ``... proxy PORT BACKEND_PORT``; both
print ``ready``.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import cast

import aiohttp
from aiohttp import web

from guests.service import Context, Service, answer, load

__all__ = ["HAPROXY_CONFIG", "haproxy_command", "main"]

HAPROXY_CONFIG = """\
global
    maxconn 4096
defaults
    mode http
    option http-keep-alive
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind 127.0.0.1:{port}
    default_backend replica
backend replica
    server one 127.0.0.1:{backend}
"""


class _Replica(asyncio.Protocol):
    """The service behind bare HTTP: the least that HAProxy and the plain proxy need of a
    backend.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = b""
        self._seq = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        while (head := buffer.find(b"\r\n\r\n")) >= 0:
            lower = buffer[:head].lower()
            at = lower.find(b"content-length:")
            length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            end = head + 4 + length
            if len(buffer) < end:
                break
            self._seq += 1
            context = Context(self._seq, time.time_ns(), bytes(8), "bench")
            reply = answer(self._service, buffer[:end], context)
            if b"content-length" not in reply and not reply.startswith(b"HTTP/1.1 204"):
                first, _, rest = reply.partition(b"\r\n")
                reply = first + b"\r\ncontent-length: 0\r\n" + rest
            cast(asyncio.Transport, self._transport).write(reply)
            buffer = buffer[end:]
        self._buffer = buffer


async def _serve_replica(port: int) -> None:
    service = load("kv")()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Replica(service), "127.0.0.1", port, backlog=1024)
    print("ready", flush=True)  # noqa: T201
    await server.serve_forever()


async def _serve_proxy(port: int, backend: int) -> None:
    """A one-hop proxy as one writes it with aiohttp: no order, no vote, one replica."""
    base = f"http://127.0.0.1:{backend}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            body = await request.read()
            async with session.request(
                request.method, base + request.raw_path, data=body, headers=request.headers
            ) as upstream:
                headers = {"etag": upstream.headers.get("etag", "")}
                return web.Response(
                    body=await upstream.read(), status=upstream.status, headers=headers
                )

        server = web.Server(handle, access_log=None)
        await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=1024)
        print("ready", flush=True)  # noqa: T201
        await asyncio.Event().wait()


def haproxy_command(directory: Path, port: int, backend: int) -> list[str] | None:
    """Write HAProxy's configuration; return its command, or None where it is not installed."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        return None
    path = directory / "haproxy.cfg"
    path.write_text(HAPROXY_CONFIG.format(port=port, backend=backend))
    return [program, "-db", "-f", str(path)]


def main(arguments: list[str]) -> None:
    """Run one peer until killed."""
    role, *ports = arguments
    numbers = [int(port) for port in ports]
    if role == "replica":
        asyncio.run(_serve_replica(numbers[0]))
    else:
        asyncio.run(_serve_proxy(*numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
