"""The rig: what a benchmark runs on, each part a process of its own, all ended with the run.

A voter runs in front of real guests, or of three ``exec:`` processes that stand in for guests.
This process runs nothing but the driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import aiohttp

from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from deploy.host.spawn import python_command
from deploy.machine.accel import decide
from deploy.machine.guest import Guest
from deploy.machine.node_machines import NodeMachines
from deploy.machine.spec import plan_node
from deploy.node.configuration import toml_value
from deploy.node.records import Durability, cache_directory
from deploy.supervisor.cpu_yield import CpuYield, yield_limit
from deploy.supervisor.repair_policy import ReplicaView
from faultinject.bench.peers import haproxy_command
from guests.image import COMMAND_LINE, Overlay, add_overlay, build_image
from guests.protocol.message import encode_request
from voter.errors import VoterError

__all__ = [
    "BODY", "ChildProcesses", "VoterProcess", "free_port", "guests", "plan_guests",
    "process_voter", "puts", "return_guest", "run_in_scratch", "start_haproxy", "start_peer",
    "start_voter", "yielding",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
BODY = b"x" * 64
"""The value that a benchmark's write stores."""
PROCESS_REPLICA = f"exec:{sys.executable} -m guests.agent --stdio --service kv"
VOTE_TIMEOUT = 30.0
"""Seconds for a small replica to become active; then the run fails with TimeoutError."""

NO_TIMEOUT = aiohttp.ClientTimeout(total=None)

Progress = Callable[[str], None]
Requested = Literal["auto", "kvm", "tcg"]
T = TypeVar("T")


def run_in_scratch(
    run: Callable[[Path], Coroutine[Any, Any, T]], kind: str, below: Path | None = None
) -> T:
    """Run a coroutine with a new directory, removed afterwards; return its result.

    ``below``: where the directory is made, instead of the one for temporary files.
    """
    sweep_abandoned(below=below)
    with ScratchDirectory(kind, below) as scratch:
        return asyncio.run(run(scratch.path))


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def puts(keys: int, headers: Iterable[tuple[str, str]] = ()) -> Iterator[bytes]:
    """Return an endless iterator over requests that store ``BODY`` under so many keys in turn."""
    return cycle([encode_request("PUT", f"/kv/key-{n:05d}", headers, BODY) for n in range(keys)])


class ChildProcesses:
    """Processes that end with the ``async with`` block, with all that they started."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
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

    async def start(
        self, *command: str, wait_ready: bool = False, log: Path | None = None
    ) -> asyncio.subprocess.Process:
        """Start a process, its standard error in ``log``.

        With ``wait_ready``, return once it has printed ``ready``.
        """
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


class VoterProcess:
    """A voter in a process of its own."""

    def __init__(self, directory: Path, http: int, pid: int) -> None:
        self.native = f"unix:{directory / 'native.sock'}"
        self.http = http
        self.pid = pid
        self._control = directory / "control.sock"

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Make one call on the control socket; return the JSON object answered."""
        async with (
            self._session() as session,
            session.request(method, f"http://voter{path}", json=body) as answer,
        ):
            answer.raise_for_status()
            found = await answer.json()
        if not isinstance(found, dict):
            raise VoterError(
                f"the voter answered {method} {path} with no object: {found!r}", error_code="TV0225"
            )
        return found

    async def wait_active(self, *names: str, deadline: float = VOTE_TIMEOUT) -> None:
        """Wait until these replicas vote; without names, all.  Raises TimeoutError."""
        await self._wait(
            lambda states: all(states[name] == "active" for name in names or states), deadline
        )

    async def wait_state(self, name: str, state: str, deadline: float = VOTE_TIMEOUT) -> None:
        """Wait until this replica is in this state.  Raises TimeoutError."""
        await self._wait(lambda states: states[name] == state, deadline)

    async def wait_inactive(self, name: str) -> None:
        """Wait until this replica no longer votes.  Raises TimeoutError."""
        await self._wait(lambda states: states[name] != "active", VOTE_TIMEOUT)

    async def _wait(self, condition: Callable[[dict[str, str]], bool], deadline: float) -> None:
        async with asyncio.timeout(deadline):
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    return await self._follow(condition)
                await asyncio.sleep(0.01)  # it does not listen yet, or has ended: poll

    async def _follow(self, condition: Callable[[dict[str, str]], bool]) -> None:
        """Return once the condition holds: it is checked at each event of the voter."""
        async with (
            self._session() as session,
            session.get("http://voter/events?since=0", timeout=NO_TIMEOUT) as events,
        ):
            while True:
                status = await self.call("GET", "/status")
                if condition({each["name"]: each["state"] for each in status["replicas"]}):
                    return
                if not await events.content.readany():
                    raise aiohttp.ClientError("the voter ended its events")

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._control)))


async def start_voter(
    children: ChildProcesses,
    directory: Path,
    links: list[str],
    *,
    durability: Durability = "none",
    limits: Mapping[str, float] | None = None,
    spares: int = 0,
) -> VoterProcess:
    """Start a voter (2/3) in front of ``links``; return once all replicas vote.

    Its journal, if it has one, is below ``directory``.  The replicas of the last ``spares`` links
    are retired.
    """
    directory.mkdir(parents=True)
    http = free_port()
    lines = ['vote = "2/3"', f'durability = "{durability}"', "[listen]"]
    lines += [f'http = "127.0.0.1:{http}"']
    lines += [f"native_unix = {toml_value(str(directory / 'native.sock'))}"]
    lines += [f"control = {toml_value(str(directory / 'control.sock'))}"]
    if durability != "none":
        lines += ["[journal]", 'directory = "journal"']
    if limits:
        lines += ["[limits]", *(f"{name} = {value!r}" for name, value in limits.items())]
    names = [f"g{number}" for number in range(1, len(links) + 1)]
    voters = len(names) - spares
    for name, link in zip(names, links, strict=True):
        role = "voter" if name in names[:voters] else "retired"
        lines += ["[[replica]]", f'name = "{name}"', f"link = {toml_value(link)}"]
        lines += [f'role = "{role}"']
    path = directory / "voter.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    process = await children.start(
        *python_command("voter", "--config", path), log=directory / "voter.log"
    )
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, process.pid, -5)
    voter = VoterProcess(directory, http, process.pid)
    await voter.wait_active(*names[:voters])
    return voter


async def process_voter(
    children: ChildProcesses, directory: Path, durability: Durability
) -> VoterProcess:
    """Start a voter in front of three processes that stand in for guests."""
    return await start_voter(children, directory, [PROCESS_REPLICA] * 3, durability=durability)


async def start_peer(children: ChildProcesses, role: str, *ports: int) -> None:
    """Start ``replica PORT`` or ``proxy PORT BACKEND``; return once it listens."""
    words = [str(port) for port in ports]
    module = "faultinject.bench.peers"
    await children.start(*python_command(module, role, *words), wait_ready=True)


async def start_haproxy(children: ChildProcesses, directory: Path, port: int, backend: int) -> bool:
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
                await asyncio.sleep(0.02)  # another program's start: poll
            else:
                writer.close()
                return True


async def plan_guests(
    directory: Path,
    number: int,
    accel: Requested,
    progress: Progress,
    *,
    service: str | Path = "kv",
    memory_mib: int = 128,
) -> NodeMachines:
    """Return a node of real guests, not started; ``service``: a shipped one, or a file."""
    cache = cache_directory() / "images"
    overlay = (
        Overlay(service_file=service) if isinstance(service, Path) else Overlay(service=service)
    )
    image = add_overlay(build_image(cache, progress=progress), directory / "image", overlay)
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
    planned: Awaitable[NodeMachines], progress: Progress
) -> AsyncIterator[NodeMachines]:
    """Start a node of ``plan_guests``; stop it afterwards."""
    node = await planned
    try:
        await node.up(progress)
        yield node
    finally:
        await node.down()


@contextlib.asynccontextmanager
async def yielding(voter: VoterProcess, guest: Guest) -> AsyncIterator[None]:
    """Lower the priority of a returning guest as the supervisor does."""

    changed = asyncio.Event()
    unsubscribe = guest.subscribe(lambda _: changed.set())

    async def poll() -> None:
        policy = CpuYield()
        while True:
            changed.clear()
            status = await voter.call("GET", "/status")
            state = {each["name"]: each["state"] for each in status["replicas"]}[guest.name]
            view = ReplicaView(vm=guest.state.value, replica=state, reason="", since=0.0)
            yields = policy.update(
                view, time.monotonic(), served=status["active"] >= 2,
                throttled=status["throttled"], limit=yield_limit(status["checkpoint"]["size"]),
            )  # fmt: skip
            await guest.yield_processor(yields)
            with contextlib.suppress(TimeoutError):
                # The voter sends no event when it throttles writes.
                await asyncio.wait_for(changed.wait(), 0.1)

    polling = asyncio.create_task(poll(), name=f"{guest.name} yields")
    try:
        yield
    finally:
        unsubscribe()
        polling.cancel()
        await asyncio.wait([polling])
        await guest.yield_processor(False)
    if not polling.cancelled():
        polling.result()  # raise its error


async def return_guest(node: NodeMachines, voter: VoterProcess, name: str) -> None:
    """Revert a guest to its clean snapshot and admit it; return once it votes.

    The voter expels it first, as the supervisor has it do: it may not know yet that a guest which
    was only paused is lost, and would count it as voting until then.
    """
    replicas = (await voter.call("GET", "/status"))["replicas"]
    if not any(
        each["name"] == name and each["state"] in ("absent", "expelled") for each in replicas
    ):
        await voter.call("POST", f"/replicas/{name}/expel", {"reason": "is restored"})
    async with yielding(voter, node.guests[name]):
        await node.guests[name].restore()
        await voter.call("POST", f"/replicas/{name}/admit")
        await voter.wait_active(name)
