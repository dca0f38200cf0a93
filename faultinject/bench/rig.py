"""The rig: what a benchmark runs on, in processes of their own, all ended when it closes.

Four real guests (three behind a voter, the fourth bare), a second voter in front of three
``exec:`` replicas, and the HTTP peers.  The driver is the only thing in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Literal

import aiohttp

from deploy.machine.accel import decide
from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import plan_node
from deploy.node.records import Durability
from faultinject.bench.peers import haproxy_command
from guests.image import COMMAND_LINE, Overlay, add_overlay, build_image
from voter.errors import VoterError

__all__ = [
    "AGENT", "ChildProcesses", "VoterProcess", "free_port", "guests", "haproxy", "peer",
    "plan_guests",
    "voter",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
Progress = Callable[[str], None]
Requested = Literal["auto", "kvm", "tcg"]
AGENT = f"{sys.executable} -m guests.agent --stdio --service kv"
"""Command of a process replica: the stand-in, never a claim about guests."""


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class VoterProcess:
    """A voter in a process of its own."""

    def __init__(self, directory: Path, http: int, pid: int) -> None:
        self.native = f"unix:{directory / 'native.sock'}"
        self.control = directory / "control.sock"
        self.http = http
        self.pid = pid

    async def call(self, method: str, path: str) -> object:
        """Make one call on the control socket; return the JSON answered."""
        connector = aiohttp.UnixConnector(str(self.control))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://voter{path}") as answer,
        ):
            answer.raise_for_status()
            return await answer.json()

    async def replica_states(self) -> dict[str, str]:
        """Return the state of each replica, by name."""
        status = await self.call("GET", "/status")
        if not isinstance(status, dict):
            raise VoterError(f"the voter's status is not an object: {status!r}")
        return {replica["name"]: replica["state"] for replica in status["replicas"]}

    async def wait_active(self, names: set[str], deadline: float) -> None:
        """Wait until these replicas vote.  Raises TimeoutError."""
        await self._wait(lambda states: all(states[name] == "active" for name in names), deadline)

    async def wait_left(self, name: str, deadline: float) -> None:
        """Wait until this replica does not vote any more.  Raises TimeoutError."""
        await self._wait(lambda states: states[name] != "active", deadline)

    async def _wait(self, condition: Callable[[dict[str, str]], bool], deadline: float) -> None:
        """Wait until the voter answers, and its replicas' states are as asked for."""
        async with asyncio.timeout(deadline):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    if condition(await self.replica_states()):
                        return
                await asyncio.sleep(0.01)  # the voter is another process: ask again


class ChildProcesses:
    """Processes that end with the rig."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(
        self, *command: str, wait_ready: bool = False, log: Path | None = None
    ) -> asyncio.subprocess.Process:
        """Start a process; with ``wait_ready``, wait for its word; its errors go to ``log``."""
        errors = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE if wait_ready else asyncio.subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        finally:
            os.close(errors)
        self._processes.append(process)
        if wait_ready and process.stdout is not None:
            async with asyncio.timeout(20):
                line = await process.stdout.readline()
            if line.strip() != b"ready":
                raise RuntimeError(f"{' '.join(command)} did not start")
        return process

    async def stop(self) -> None:
        """End all of them, with whatever they started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def voter(
    children: ChildProcesses,
    directory: Path,
    links: list[str],
    *,
    durability: Durability = "none",
    limits: Mapping[str, float] | None = None,
) -> VoterProcess:
    """Start a voter (2/3) in front of ``links``; return once all replicas vote.

    Its journal, if it has one, lies below ``directory``.
    """
    directory.mkdir(parents=True)
    http = free_port()
    lines = ['vote = "2/3"', f'durability = "{durability}"', "[listen]"]
    lines += [f'http = "127.0.0.1:{http}"', f'native_unix = "{directory}/native.sock"']
    lines += [f'control = "{directory}/control.sock"']
    if durability != "none":
        lines += ["[journal]", 'directory = "journal"']
    if limits:
        lines += ["[limits]", *(f"{name} = {value!r}" for name, value in limits.items())]
    for number, link in enumerate(links, 1):
        lines += ["[[replica]]", f'name = "g{number}"', f"link = '{link}'"]
    path = directory / "voter.toml"
    path.write_text("\n".join(lines) + "\n")
    process = await children.start(
        sys.executable, "-m", "voter", "--config", str(path), log=directory / "voter.log"
    )
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, process.pid, -5)
    running = VoterProcess(directory, http, process.pid)
    await running.wait_active({f"g{number + 1}" for number in range(len(links))}, 30)
    return running


async def peer(children: ChildProcesses, role: str, *ports: int) -> None:
    """Start ``replica PORT`` or ``proxy PORT BACKEND``; return once it listens."""
    words = [str(port) for port in ports]
    module = "faultinject.bench.peers"
    await children.start(sys.executable, "-m", module, role, *words, wait_ready=True)


async def haproxy(children: ChildProcesses, directory: Path, port: int, backend: int) -> bool:
    """Start HAProxy if it is installed; return whether it listens."""
    command = haproxy_command(directory, port, backend)
    if command is None:
        return False
    await children.start(*command)
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)  # another program's start: nothing tells of it
            else:
                writer.close()
                return True


async def plan_guests(
    directory: Path,
    cache: Path,
    number: int,
    accel: Requested,
    progress: Progress,
    *,
    service: str | Path = "kv",
    memory_mib: int = 128,
) -> NodeMachines:
    """Return a node of real guests, not up yet; ``service``: a shipped one, or a file."""
    image = build_image(cache, progress=progress)
    overlay = (
        Overlay(service_file=service) if isinstance(service, Path) else Overlay(service=service)
    )
    image = add_overlay(image, directory / "image", overlay)
    chosen = await decide(image, cache, accel, progress)
    progress(f"accelerator {chosen.name}: {chosen.reason}")
    spec = plan_node(
        directory=str(directory / "n"),
        uuids=tuple(str(uuid.uuid4()) for _ in range(number + 1)),
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        cmdline=COMMAND_LINE,
        accel=chosen.name,
        memory_mib=memory_mib,
    )
    return NodeMachines(spec)


@contextlib.asynccontextmanager
async def guests(
    directory: Path, planned: Awaitable[NodeMachines], progress: Progress
) -> AsyncIterator[NodeMachines]:
    """Boot a node of ``plan_guests``, all in ``directory``; end it and remove that afterwards."""
    try:
        node = await planned
        try:
            await node.up(progress)
            yield node
        finally:
            await node.down()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
