"""etcd as a peer: three members on loopback, each write synced to disk by a majority before it is
answered, driven by the cheapest client that can be had (``grpc``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from faultinject.bench import grpc
from faultinject.bench.rig import ChildProcesses, free_port

__all__ = ["EtcdCluster", "Writers", "program", "start_cluster", "version"]

PUT = "/etcdserverpb.KV/Put"
STATUS = "/etcdserverpb.Maintenance/Status"
MEMBERS = 3
START = 30.0
"""Seconds that the members have to find each other."""


def program() -> str | None:
    """Return where etcd is installed, or None."""
    return shutil.which("etcd")


def version(path: str) -> str:
    """Return the version that an etcd program says it is."""
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return told.partition("\n")[0].rpartition(" ")[2] or "unknown"


class EtcdCluster(NamedTuple):
    """A running cluster: the members' client ports and processes, and the leader's port."""

    ports: list[int]
    pids: list[int]
    leader: int


def put_message(key: bytes, value: bytes) -> bytes:
    """Return etcd's PutRequest."""
    return grpc.encode_bytes(1, key) + grpc.encode_bytes(2, value)


def revision(answer: bytes) -> int:
    """Return the store's revision that an answer's header tells.  Raises ValueError."""
    header = dict(grpc.fields(answer)).get(1)
    told = dict(grpc.fields(header)).get(3) if isinstance(header, bytes) else None
    if not isinstance(told, int):
        raise ValueError(f"no revision in etcd's answer {answer!r}")
    return told


def is_leader(answer: bytes) -> bool:
    """Whether a StatusResponse comes from the leader itself."""
    told = dict(grpc.fields(answer))
    header = told.get(1)
    member = dict(grpc.fields(header)).get(2) if isinstance(header, bytes) else None
    return bool(member) and told.get(4) == member


async def start_cluster(children: ChildProcesses, directory: Path, path: str) -> EtcdCluster:
    """Start the members, with data below ``directory``; return once they have a leader.

    Raises TimeoutError, grpc.Error.
    """
    ports = [free_port() for _ in range(2 * MEMBERS)]
    clients, peers = ports[:MEMBERS], ports[MEMBERS:]
    urls = [f"http://127.0.0.1:{port}" for port in peers]
    every = ",".join(f"m{number}={url}" for number, url in enumerate(urls))
    pids = []
    for number, (client, peer) in enumerate(zip(clients, urls, strict=True)):
        process = await children.start(
            path,
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
            os.setpriority(os.PRIO_PROCESS, process.pid, -5)  # as the voter beside it
        pids.append(process.pid)
    async with asyncio.timeout(START):
        while True:
            for port in clients:
                if await _leads(port):
                    return EtcdCluster(clients, pids, port)
            await asyncio.sleep(0.1)  # other programs' start: nothing tells of it


async def _leads(port: int) -> bool:
    try:
        connection = await grpc.Connection.open("127.0.0.1", port, STATUS)
    except OSError:
        return False
    try:
        async with asyncio.timeout(2.0):
            return is_leader(await connection.call(b""))
    except (TimeoutError, grpc.Error):
        return False
    finally:
        connection.close()


class Writers:
    """Puts to one member over several connections; each call goes to the next one."""

    def __init__(self, connections: list[grpc.Connection], messages: list[bytes]) -> None:
        self._all = connections
        self._calls: cycle[Callable[[bytes], asyncio.Future[bytes]]] = cycle(
            [connection.call for connection in connections]
        )
        self._messages = cycle(messages)
        self.started = 0
        """Puts."""

    @classmethod
    async def open(cls, port: int, number: int, keys: list[bytes], value: bytes) -> Writers:
        """Open ``number`` connections.  Raises OSError."""
        connections = [await grpc.Connection.open("127.0.0.1", port, PUT) for _ in range(number)]
        return cls(connections, [put_message(key, value) for key in keys])

    def start(self) -> asyncio.Future[bytes]:
        """Put the value to the next key."""
        self.started += 1
        return next(self._calls)(next(self._messages))

    def close(self) -> None:
        """End all connections."""
        for connection in self._all:
            connection.close()
