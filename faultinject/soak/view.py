"""How the node stands, asked of its supervisor, or of its voter while there is no supervisor."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from deploy.node.records import Layout

__all__ = ["GuestView", "NodeView", "ViewRefused", "NoAnswer", "View"]

CALL_TIMEOUT = 5.0
JOINING = ("restoring", "learner")
LAG = 50
"""Requests: one that is further behind is no help yet to the others' majority."""


class NoAnswer(Exception):
    """Nobody answers on a control socket now."""


class ViewRefused(Exception):
    """The supervisor refused, with these words."""


class GuestView(msgspec.Struct, frozen=True, kw_only=True):
    """One guest.  ``vm`` is empty and ``under_way`` false while the supervisor cannot be asked."""

    replica: str
    reason: str
    vm: str = ""
    pid: int | None = None
    under_way: bool = False
    in_row: int = 0
    fault: str = ""
    lag: int = 0

    @property
    def returning(self) -> bool:
        """Whether it does not vote, and is on its way back."""
        return self.replica != "active" and (self.under_way or self.joining)

    @property
    def joining(self) -> bool:
        """Whether the state is on its way to it, or it catches up."""
        return self.replica in JOINING

    @property
    def whole(self) -> bool:
        """Whether it votes, not far behind, and nothing is done to it."""
        standing = (self.replica, self.vm, self.fault)
        return standing == ("active", "ready", "") and not self.under_way and self.lag <= LAG

    def __str__(self) -> str:
        words = [self.replica, f"machine {self.vm}" if self.vm else "", f"{self.fault} holds"]
        put_back = "being put back" if self.under_way else ""
        return ", ".join(filter(None, [*words[:2], words[2] if self.fault else "", put_back]))


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The node at one time (``at``, seconds of the steady clock, when the answer had come)."""

    at: float
    supervisor: int | None
    voter: int | None
    standing: str
    guests: dict[str, GuestView]
    seq: int = 0
    counters: dict[str, Any] = {}

    @property
    def whole(self) -> bool:
        """Whether supervisor and voter serve and all guests vote."""
        return (
            self.supervisor is not None
            and self.voter is not None
            and self.standing == "ready"
            and all(guest.whole for guest in self.guests.values())
        )

    def __str__(self) -> str:
        guests = "; ".join(f"{name} {guest}" for name, guest in self.guests.items())
        return f"supervisor {self.supervisor}, voter {self.voter} {self.standing}; {guests}"


class NodeView:
    """Asks one node.  Keeps its connections between ``async with`` and its end: a look is cheap."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def look(self) -> View:
        """Ask the supervisor, else the voter.  Raises Silent if neither answers."""
        try:
            said = await self.supervisor("GET", "/status")
        except NoAnswer:
            return await self.look_at_voter()
        guests = {
            guest["name"]: GuestView(
                # The supervisor keeps the last word of a voter that is gone.
                replica=str(guest["replica"]["state"]),
                reason=str(guest["replica"]["reason"]),
                vm=guest["vm"],
                pid=guest["pid"],
                under_way=guest["repairs"]["in_progress"],
                in_row=guest["repairs"]["consecutive"],
                fault=guest["fault"]["kind"] if guest["fault"] else "",
                lag=guest["replica"]["lag"] or 0,
            )
            for guest in said["guests"]
        }
        up = said["phase"] == "up"
        return View(
            at=time.monotonic(),
            supervisor=said["supervisor"]["pid"] if up else None,
            voter=said["voter"]["pid"],
            standing=said["standing"],
            guests=guests,
            seq=said["voter"]["seq"] or 0,
            counters=said["voter"]["counters"],
        )

    async def look_at_voter(self) -> View:
        """Ask the voter alone.  Raises Silent."""
        said = await self.voter("/status")
        guests = {
            replica["name"]: GuestView(replica=replica["state"], reason=replica["reason"])
            for replica in said["replicas"]
        }
        return View(
            at=time.monotonic(),
            supervisor=None,
            voter=said["pid"],
            standing=said["standing"],
            guests=guests,
            seq=said["seq"],
            counters=said["counters"],
        )

    async def supervisor(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> dict[str, Any]:
        """Ask the supervisor.  Raises Silent, Refused."""
        socket = str(self.layout.supervisor_socket)
        status, said = await self._call(socket, method, path, body, timeout)
        if status >= 400:
            raise ViewRefused(str(said.get("error", said)))
        return said

    async def voter(self, path: str) -> dict[str, Any]:
        """Ask the voter.  Raises Silent."""
        _, said = await self._call(str(self.layout.voter_control), "GET", path, None, CALL_TIMEOUT)
        return said

    async def voted_again(self, guest: str, since: float) -> bool:
        """Whether a guest came to vote after ``since`` (seconds since 1970), or does so now.

        Asks the supervisor's history, or the voter where there is no supervisor; True if neither
        answers: it is not known then.
        """
        try:
            socket = str(self.layout.supervisor_socket)
            async with self._answer(socket, "GET", "/events", None, CALL_TIMEOUT) as answer:
                text = await answer.text()
        except NoAnswer:
            try:
                return (await self.look_at_voter()).guests[guest].replica == "active"
            except NoAnswer:
                return True
        events = [json.loads(line) for line in text.splitlines()]
        return any(
            event["guest"] == guest and event.get("after") == "active" and event["time"] >= since
            for event in events
        )

    async def _call(
        self, socket: str, method: str, path: str, body: dict[str, Any] | None, timeout: float
    ) -> tuple[int, dict[str, Any]]:
        async with self._answer(socket, method, path, body, timeout) as answer:
            return answer.status, dict(await answer.json(content_type=None))

    @contextlib.asynccontextmanager
    async def _answer(
        self, socket: str, method: str, path: str, body: dict[str, Any] | None, timeout: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one request.  Raises Silent."""
        session = self._sessions.get(socket)
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket))
            self._sessions[socket] = session
        try:
            limit = aiohttp.ClientTimeout(total=timeout)
            async with session.request(
                method, f"http://node{path}", json=body, timeout=limit
            ) as answer:
                yield answer
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise NoAnswer(f"{socket}: {type(error).__name__} {error}") from error
