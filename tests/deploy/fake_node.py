"""A stand-in for a node of VMs: each guest is a local agent process behind a unix socket.

As with QEMU's virtio-serial port, the agent lives on when the host end of its link closes, one
host is served at a time, and a guest that is put back is a fresh incarnation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from deploy.errors import DeployError
from deploy.node.interfaces import Progress
from deploy.node.records import Layout, NodeRecord

__all__ = ["FakeGuest", "FakeNode"]

ROOT = Path(__file__).resolve().parents[2]


def _start_agent(fd: int) -> subprocess.Popen[bytes]:
    """Start an agent in a process group of its own (it has a child) with ``fd`` as its link."""
    words = [sys.executable, "-m", "guests.agent", "--stdio", "--service", "kv"]
    return subprocess.Popen(
        words, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
    )


class _Host(asyncio.Protocol):
    """The host end of a fake guest's link."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.guest.host is not None or self.guest.agent is None:
            self.transport.abort()
        else:
            self.guest.host = self

    def data_received(self, data: bytes) -> None:
        if self.guest.agent is not None:
            self.guest.agent.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.guest.host is self:
            self.guest.host = None


class _Agent(asyncio.Protocol):
    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest

    def data_received(self, data: bytes) -> None:
        host = self.guest.host
        if host is not None and host.transport is not None:
            host.transport.write(data)


class FakeGuest:
    """One agent process."""

    def __init__(self, name: str, link: Path) -> None:
        self.name = name
        self.link_socket = link
        self.state = "absent"
        self.host: _Host | None = None
        self.agent: asyncio.Transport | None = None
        self.put_backs = 0
        self.refuse = False
        """Make `put_back` fail."""
        self.yields = False
        self.yielded: list[bool] = []
        """Each change of whether it leaves the processors to others."""
        self.changed: Callable[[str], None] = lambda name: None
        self._process: subprocess.Popen[bytes] | None = None
        self._server: asyncio.Server | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _set(self, state: str) -> None:
        self.state = state
        self.changed(self.name)

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start_agent(theirs.fileno())
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: _Agent(self), sock=ours)
        self.agent = transport
        if self._server is None:
            self._server = await loop.create_unix_server(lambda: _Host(self), str(self.link_socket))
        self._set("ready")

    def _end_process(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self.agent is not None:
            self.agent.abort()
            self.agent = None

    async def put_back(self) -> None:
        if self.refuse:
            raise DeployError(f"{self.name} cannot be put back")
        self.put_backs += 1
        self._set("restoring")
        self._end_process()
        await self.start()

    async def kill(self) -> None:
        self._end_process()
        if self.host is not None and self.host.transport is not None:
            self.host.transport.abort()
        self._set("dead")

    async def pause(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        self._set("paused")

    async def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        self._set("ready")

    async def yield_processor(self, yields: bool) -> None:
        if yields != self.yields:
            self.yields = yields
            self.yielded.append(yields)

    async def reset(self) -> None:
        raise DeployError("a process has no reset button")

    async def nmi(self) -> None:
        raise DeployError("a process has no processor of its own")

    async def registers(self) -> str:
        raise DeployError("a process has no processor of its own")

    def debug_stub(self) -> contextlib.AbstractAsyncContextManager[Path]:
        raise DeployError("a process has no debug stub")

    def ram(self) -> Path:
        raise FileNotFoundError("a process has no RAM file")

    def tail(self, count: int) -> list[str]:
        return [f"{self.name} is a process"][-count:]

    async def stop(self) -> None:
        self._end_process()
        if self._server is not None:
            self._server.close()
            if self.host is not None and self.host.transport is not None:
                self.host.transport.abort()
            await self._server.wait_closed()
        self._set("absent")


class FakeNode:
    """Guests that are processes."""

    accel = "none"

    def __init__(self, layout: Layout, record: NodeRecord) -> None:
        count = record.settings.guests
        names = [f"g{number}" for number in range(1, count + 1)]
        self.machines = {name: FakeGuest(name, layout.directory / f"{name}.link") for name in names}
        self.let_gone = False

    @property
    def guests(self) -> Mapping[str, FakeGuest]:
        return self.machines

    async def up(self, progress: Progress, *, take_over: bool) -> None:
        for guest in self.machines.values():
            if guest.pid is None and not take_over:
                await guest.start()
            progress(f"{guest.name} is ready")

    async def down(self) -> None:
        for guest in self.machines.values():
            await guest.stop()

    async def let_go(self) -> None:
        self.let_gone = True

    def listen(self, changed: Callable[[str], None]) -> None:
        for guest in self.machines.values():
            guest.changed = changed
