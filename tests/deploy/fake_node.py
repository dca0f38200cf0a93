"""A substitute for a node of VMs: each guest is a local agent process behind a unix socket.

As with QEMU's virtio-serial port, the agent continues when the host closes its link, one host is
served at a time, and a restored guest is a fresh incarnation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

from deploy.errors import DeployError, WrongState
from deploy.host.spawn import python_command, python_environment
from deploy.machine.console import Console
from deploy.machine.room import NotEnoughMemory
from deploy.machine.spec import GuestArrival, GuestEvent, GuestState, Progress, StartMethod
from deploy.node.records import Layout, NodeRecord
from guests.image import Image

__all__ = ["FakeGuest", "FakeNode"]

NOT_A_VM = "a process is not a VM"


def _start_agent(link: int, service: str) -> subprocess.Popen[bytes]:
    """Start an agent in its own process group: it has a child, which is signalled with it."""
    return subprocess.Popen(
        python_command("guests.agent", "--stdio", "--service", service), env=python_environment(),
        stdin=link, stdout=link, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip


class _Host(asyncio.Protocol):
    """The host's end of a fake guest's link."""

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


class FakeConsole(Console):
    """A console that counts those who follow it."""

    followers = 0

    def listen(self, callback: Callable[[str], None]) -> Callable[[], None]:
        self.followers += 1
        return super().listen(callback)


class FakeGuest:
    """One agent process (implements GuestPort)."""

    def __init__(self, name: str, link: Path, service: str = "kv") -> None:
        self.name = name
        self.service = service
        self.link_socket = link
        self.state = GuestState.ABSENT
        self.host: _Host | None = None
        self.agent: asyncio.Transport | None = None
        self.restores = 0
        self.fail_restore = False
        self.yields = False
        self.yielded: list[bool] = []
        """Each change of `yields`."""
        self.console = FakeConsole()
        self.callbacks: list[Callable[[GuestEvent], object]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._server: asyncio.Server | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _set(self, state: GuestState) -> None:
        before, self.state = self.state, state
        event = GuestEvent(guest=self.name, before=before, after=state, why="test", pid=self.pid)
        for callback in self.callbacks:
            callback(event)

    async def start(self) -> None:
        self._end_process()  # of a start that was cancelled
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start_agent(theirs.fileno(), self.service)
        loop = asyncio.get_running_loop()
        self.agent, _ = await loop.create_connection(lambda: _Agent(self), sock=ours)
        if self._server is None:
            # In two steps: a cancellation between them must not lose the listening socket.
            self._server = await loop.create_unix_server(
                lambda: _Host(self), str(self.link_socket), start_serving=False
            )
            await self._server.start_serving()
        self._set(GuestState.READY)

    def _end_process(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self.agent is not None:
            self.agent.abort()
            self.agent = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _disconnect(self) -> None:
        if self.host is not None and self.host.transport is not None:
            self.host.transport.abort()

    async def restore(self) -> None:
        if self.fail_restore:
            raise DeployError(f"{self.name} cannot be restored")
        self.restores += 1
        self._set(GuestState.RESTORING)
        self._end_process()
        await self.start()

    async def kill(self) -> None:
        self._end_process()
        self._disconnect()
        self._set(GuestState.DEAD)

    async def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self._set(GuestState.PAUSED)

    async def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self._set(GuestState.READY)

    async def yield_processor(self, yields: bool) -> None:
        if yields != self.yields:
            self.yields = yields
            self.yielded.append(yields)

    async def reset(self) -> None:
        raise WrongState(NOT_A_VM)

    async def nmi(self) -> None:
        raise WrongState(NOT_A_VM)

    async def registers(self) -> str:
        raise WrongState(NOT_A_VM)

    def debug_stub(self) -> contextlib.AbstractAsyncContextManager[Path]:
        raise WrongState(NOT_A_VM)

    def ram_file(self) -> Path:
        raise FileNotFoundError(NOT_A_VM)

    def tail(self, count: int = 20) -> list[str]:
        return [f"{self.name} is a process"][-count:]

    async def stop(self) -> None:
        self._end_process()
        if self._server is not None:
            self._server.close()
            self._disconnect()
            await self._server.wait_closed()
            self._server = None
        self._set(GuestState.ABSENT)


class FakeNode:
    """Guests that are processes (implements NodePort)."""

    def __init__(self, layout: Layout, record: NodeRecord) -> None:
        names = [f"g{number}" for number in range(1, len(record.uuids))]
        self.spares = names[record.settings.guests :]
        self.starts: list[tuple[str, StartMethod, int, Image | None]] = []
        self.fail_start = self.fail_end = False
        self.hold_start = asyncio.Event()
        self.hold_start.set()
        service = record.settings.service
        self.guests = {
            name: FakeGuest(name, layout.directory / f"{name}.link", service) for name in names
        }
        self.released = False
        self.problem = ""

    async def up(
        self, progress: Progress, *, take_over: bool, empty: Collection[str] | None = None
    ) -> None:
        spares = set(self.spares if empty is None else empty)
        for guest in self.guests.values():
            if guest.name in spares:
                continue
            if guest.pid is None and not take_over:
                await guest.start()
            progress(f"{guest.name} is ready")

    def initrd(self, name: str) -> str:
        return self.guests[name].service

    async def start(
        self,
        name: str,
        *,
        by: StartMethod = "clone",
        share: int = 100,
        image: Image | None = None,
        progress: Progress = lambda _: None,
    ) -> GuestArrival:
        guest = self.guests[name]
        self.starts.append((name, by, share, image))
        if guest.state not in (GuestState.ABSENT, GuestState.DEAD):
            raise WrongState(f"{name} is {guest.state}")
        if self.fail_start:
            raise NotEnoughMemory(f"{name} cannot be started", remedy="use --in-place")
        await self.hold_start.wait()
        if image is not None:
            guest.service = str(image.initrd)
        await guest.start()
        return GuestArrival(how="cloned" if by == "clone" else "booted", seconds=0.1)

    async def end(self, name: str) -> None:
        if self.fail_end:
            raise DeployError(f"{name} cannot be ended")
        await self.guests[name].stop()

    async def down(self) -> None:
        for guest in self.guests.values():
            await guest.stop()

    async def release(self) -> None:
        self.released = True

    def subscribe(self, callback: Callable[[GuestEvent], object]) -> None:
        for guest in self.guests.values():
            guest.callbacks.append(callback)
