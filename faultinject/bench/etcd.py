"""etcd as a peer: three members on loopback; a majority syncs each write before etcd answers it.

Writes go through grpcio, the maintained gRPC client for Python (the extra ``bench``), leader and
revision through etcd's own JSON gateway.  With 64 in flight the client costs 90 to 110 microseconds
of processor time a write, where Trivisor's native client costs 10 to 17.  On a host with few
processors this lowers etcd's rate, so the report states what each driver used.  grpcio was chosen
because it leaves etcd's own cost as it is: 150 to 170 microseconds a write.  Through the JSON
gateway etcd pays 290, since it converts each request and calls itself.  ``etcdctl check perf``
offers fixed rates only, with 50 clients or more.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
from collections.abc import Awaitable, Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from deploy.host.install import how_to_pip
from faultinject.bench.rig import ChildProcesses, free_port

__all__ = ["EtcdCluster", "EtcdWriters", "missing_requirement", "put_message", "start_cluster"]

PUT = "/etcdserverpb.KV/Put"
MEMBERS = 3
START_TIMEOUT = 30.0
"""Seconds that the members have to elect a leader; then the run fails with TimeoutError."""


def missing_requirement() -> str:
    """Return why etcd cannot be measured on this host, or an empty string."""
    if shutil.which("etcd") is None:
        return "etcd is not installed (apt-get install etcd-server)"
    if importlib.util.find_spec("grpc") is None:
        return f"grpcio is not installed ({how_to_pip('grpcio')})"
    return ""


class EtcdCluster(NamedTuple):
    """A running cluster: its version, its processes and the client port of its leader."""

    version: str
    pids: list[int]
    leader: int

    async def revision(self) -> int:
        """Return the store's revision: one more for each write."""
        return int((await _status(self.leader))["header"]["revision"])


async def start_cluster(children: ChildProcesses, directory: Path) -> EtcdCluster:
    """Start the members with their data below ``directory``; return once they have a leader.

    Raises TimeoutError.
    """
    ports = [free_port() for _ in range(2 * MEMBERS)]
    clients, peers = ports[:MEMBERS], ports[MEMBERS:]
    urls = [f"http://127.0.0.1:{port}" for port in peers]
    every = ",".join(f"m{number}={url}" for number, url in enumerate(urls))
    pids = []
    for number, (client, peer) in enumerate(zip(clients, urls, strict=True)):
        process = await children.start(
            "etcd",
            f"--name=m{number}",
            f"--data-dir={directory / f'm{number}'}",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={every}",
            "--initial-cluster-state=new",
            "--log-level=error",
        )
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, process.pid, -5)  # the voter's priority
        pids.append(process.pid)
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            for port in clients:
                if await _leads(port):
                    return EtcdCluster((await _status(port))["version"], pids, port)
            await asyncio.sleep(0.1)  # another program's election: poll


async def _status(port: int) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session,
        session.post(f"http://127.0.0.1:{port}/v3/maintenance/status", data=b"{}") as answer,
    ):
        answer.raise_for_status()
        status: dict[str, Any] = await answer.json()
        return status


async def _leads(port: int) -> bool:
    try:
        status = await _status(port)
    except (aiohttp.ClientError, TimeoutError):
        return False
    return "leader" in status and status["leader"] == status["header"]["member_id"]


def put_message(key: bytes, value: bytes) -> bytes:
    """Return etcd's PutRequest in protobuf; key and value of at most 127 bytes."""
    if max(len(key), len(value)) > 127:
        raise ValueError("a key or value of more than 127 bytes")
    return b"\x0a%c%b\x12%c%b" % (len(key), key, len(value), value)


class EtcdWriters:
    """Puts to one member over several connections in turn.  Make one with ``open``."""

    def __init__(self, channels: list[Any], messages: list[bytes]) -> None:
        self._channels = channels
        self._calls: cycle[Callable[[bytes], Awaitable[bytes]]] = cycle(
            [channel.unary_unary(PUT) for channel in channels]
        )
        self._messages = cycle(messages)
        self.started = 0
        """Puts started so far."""

    @classmethod
    def open(cls, port: int, connections: int, keys: list[bytes], value: bytes) -> EtcdWriters:
        """Return writers of ``value`` to ``keys`` in turn; grpcio connects at the first put."""
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # it would report each process start
        from grpc import aio  # noqa: PLC0415 - slow to load

        # Without this option all channels to one address share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        address = f"127.0.0.1:{port}"
        channels = [aio.insecure_channel(address, options=options) for _ in range(connections)]
        return cls(channels, [put_message(key, value) for key in keys])

    def start(self) -> asyncio.Future[bytes]:
        """Start the next put."""
        self.started += 1
        return asyncio.ensure_future(next(self._calls)(next(self._messages)))

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close()
