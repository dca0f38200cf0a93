"""The peers of the comparison, each a process of its own:

    python -m faultinject.bench.peers replica PORT         the service behind bare HTTP
    python -m faultinject.bench.peers proxy PORT BACKEND   a plain aiohttp proxy
    python -m faultinject.bench.peers idle PORT NUMBER     a client that holds idle connections

Each prints ``ready`` as soon as it works.  The idle client then waits for the end of its input,
makes one request on its first and its last connection, and prints their status lines.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import cast

import aiohttp
from aiohttp import web

from guests.answer import answer
from guests.service import Context, Service, load

__all__ = ["haproxy_command", "main"]

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
IDLE_REQUEST = b"GET /kv/idle HTTP/1.1\r\nhost: bench\r\n\r\n"


class _Replica(asyncio.Protocol):
    """The service behind the least HTTP that HAProxy and the plain proxy need of a backend."""

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
    """Serve a proxy as one writes it with aiohttp: no order, no vote, one replica."""
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


async def _hold_idle(port: int, number: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(number)]
    print("ready", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    for reader, writer in (streams[0], streams[-1]):
        writer.write(IDLE_REQUEST)
        print((await reader.readline()).decode(), flush=True)  # noqa: T201


def haproxy_command(directory: Path, port: int, backend: int) -> list[str] | None:
    """Write HAProxy's configuration; return its command, or None if it is not installed."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        return None
    path = directory / "haproxy.cfg"
    path.write_text(HAPROXY_CONFIG.format(port=port, backend=backend))
    return [program, "-db", "-f", str(path)]


def main(arguments: list[str]) -> None:
    """Run one peer until it is killed or, an idle client, until its input ends."""
    role, first, *rest = arguments
    port, others = int(first), [int(each) for each in rest]
    if role == "replica":
        asyncio.run(_serve_replica(port))
    elif role == "proxy":
        asyncio.run(_serve_proxy(port, *others))
    else:
        asyncio.run(_hold_idle(port, *others))


if __name__ == "__main__":
    main(sys.argv[1:])
