"""Voters for missions: each is a process, forked from the zygote, that ends with its mission."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp

from deploy.node.configuration import toml_value
from faultinject.campaign.mission.zygote import Zygote
from voter.sockets import listen_unix

__all__ = ["MissionVoter", "VoterGone", "Voters"]

PRIORITY = -5
"""Nice value: ahead of the guests, as in deploy.  Without the permission it stays at 0."""
ANSWER = 2.0
"""Seconds for the voter to answer on its control socket."""


class VoterGone(Exception):
    """The voter does not answer."""


class Voters:
    """Starts the voters of one node.  ``directory``: for their sockets, logs and journals."""

    def __init__(self, directory: Path, zygote: Zygote, sockets: dict[str, socket.socket]) -> None:
        self._directory = directory
        self._zygote = zygote
        self._sockets = sockets

    @classmethod
    async def open(cls, directory: Path) -> Voters:
        """Start the zygote.  Raises OSError, TimeoutError, AddressError."""
        sockets = {
            "native-unix": listen_unix(str(directory / "native.sock")),
            "control": listen_unix(str(directory / "control.sock")),
        }
        try:
            zygote = await Zygote.start(sockets, directory / "zygote.log")
        except BaseException:
            for sock in sockets.values():
                sock.close()
            raise
        return cls(directory, zygote, sockets)

    @property
    def native(self) -> str:
        """Return the address where clients are served."""
        return f"unix:{self._directory / 'native.sock'}"

    async def start(
        self,
        vote: str,
        links: Mapping[str, str],
        limits: Mapping[str, float],
        *,
        journal: bool,
        function: str = "",
    ) -> MissionVoter:
        """Fork a voter with this policy over these replicas.

        With ``journal`` it can be restarted after its death.  ``function``: F's address.  Raises
        OSError, TimeoutError.
        """
        shutil.rmtree(self._directory / "journal", ignore_errors=True)
        config = self._directory / "voter.toml"
        text = _config(vote, links, limits, journal=journal, function=function)
        config.write_text(text, encoding="utf-8")
        voter = MissionVoter(
            self._directory / "control.sock",
            lambda: self._zygote.fork(config, self._directory / "voter.log"),
        )
        # A log that is kept would grow with the campaign, and only the current mission's matters.
        (self._directory / "voter.log").unlink(missing_ok=True)
        try:
            await voter.begin()
        except BaseException:
            await voter.end()
            raise
        return voter

    async def close(self) -> None:
        """End the zygote and all voters."""
        await self._zygote.end()
        for sock in self._sockets.values():
            sock.close()


def _config(
    vote: str,
    links: Mapping[str, str],
    limits: Mapping[str, float],
    *,
    journal: bool,
    function: str = "",
) -> str:
    """Return the voter's configuration, as TOML."""
    lines = [f"vote = {toml_value(vote)}", f'durability = "{"os" if journal else "none"}"']
    if function:
        lines.append(f"function = {toml_value(function)}")
    if journal:
        lines += ["[journal]", 'directory = "journal"', f"segment = {8 << 20}"]
    lines += ["[limits]", *(f"{name} = {value!r}" for name, value in limits.items())]
    for name, link in links.items():
        lines += ["[[replica]]", f"name = {toml_value(name)}", f"link = {toml_value(link)}"]
    return "\n".join(lines) + "\n"


class MissionVoter:
    """The voter of one mission."""

    def __init__(self, control: Path, fork: Callable[[], Any]) -> None:
        self._fork = fork
        self._pidfd = -1
        self._http = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(control)),
            timeout=aiohttp.ClientTimeout(total=ANSWER),
        )
        self.pid = 0
        self._restarter: asyncio.Task[None] | None = None
        self.restarts = 0

    async def begin(self) -> None:
        """Start its process.  Raises OSError, TimeoutError."""
        self.pid = await self._fork()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._pidfd = os.pidfd_open(self.pid)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self.pid, PRIORITY)

    @property
    def alive(self) -> bool:
        """Return whether its process lives."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        return True

    def keep(self) -> None:
        """Restart it whenever it ends, as the supervisor does."""
        self._restarter = asyncio.create_task(self._restart(), name="restart the voter")

    async def _restart(self) -> None:
        while True:
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            fd = self._pidfd
            if fd >= 0:
                loop.add_reader(fd, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(fd)
            self.restarts += 1
            await self.begin()

    async def status(self) -> dict[str, Any]:
        """Return its status.  Raises VoterGone."""
        return dict(await self._call("GET", "/status"))

    async def admit(self, name: str) -> None:
        """Admit a guest that was reverted.  Raises VoterGone."""
        await self._call("POST", f"/replicas/{name}/admit")

    async def _call(self, method: str, path: str) -> Any:
        try:
            async with self._http.request(method, f"http://voter{path}") as answer:
                return await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise VoterGone(f"the voter does not answer: {error!r}") from error

    async def all_vote(self, deadline: float) -> dict[str, Any]:
        """Wait until all its replicas vote; return its status.

        Raises TimeoutError, which names the replicas that do not, and VoterGone if it has ended.
        """
        status: dict[str, Any] = {"replicas": []}
        try:
            async with asyncio.timeout(deadline), self._events() as events:
                while True:
                    status = await self.status()
                    if all(each["state"] == "active" for each in status["replicas"]):
                        return status
                    if not await events.content.readany():
                        raise VoterGone("the voter has ended")
        except aiohttp.ClientError as error:
            raise VoterGone(f"the voter does not answer: {error!r}") from error
        except TimeoutError:
            states = ", ".join(
                f"{each['name']} {each['state']} ({each['reason']})" for each in status["replicas"]
            )
            raise TimeoutError(f"not all vote within {deadline:g} s: {states}") from None

    def _events(self) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Return the stream of its events: each change of a replica is a line."""
        return self._http.get("http://voter/events?since=0", timeout=aiohttp.ClientTimeout())

    async def end(self) -> None:
        """Kill it: it has no state to save."""
        if self._restarter is not None:
            self._restarter.cancel()
            await asyncio.gather(self._restarter, return_exceptions=True)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self._wait_end()
            os.close(self._pidfd)
            self._pidfd = -1
        await self._http.close()

    async def _wait_end(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)
