"""The state of a node as its supervisor reports it, or its voter while there is no supervisor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from deploy.node.records import Layout

__all__ = ["GuestView", "NodeView", "SupervisorRefused", "NoAnswer", "View"]

CALL_TIMEOUT = 5.0
JOINING = ("restoring", "learner")
LAG = 50
"""Most requests that a guest may be behind.  One further behind does not help a majority yet."""


class NoAnswer(Exception):
    """A control socket does not answer."""


class SupervisorRefused(Exception):
    """The supervisor refused a request; the message is its reason."""


class GuestView(msgspec.Struct, frozen=True, kw_only=True):
    """One guest.  Without the supervisor's answer ``vm`` is empty and ``under_way`` false."""

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
        """Whether it does not vote, and is being repaired or joins the vote."""
        return self.replica != "active" and (self.under_way or self.joining)

    @property
    def joining(self) -> bool:
        """Whether it receives the state, or catches up."""
        return self.replica in JOINING

    @property
    def recovered(self) -> bool:
        """Whether it votes without a fault, a repair or a long lag."""
        state = (self.replica, self.vm, self.fault)
        return state == ("active", "ready", "") and not self.under_way and self.lag <= LAG

    def __str__(self) -> str:
        parts = (
            self.replica,
            f"machine {self.vm}" if self.vm else "",
            f"{self.fault} acts" if self.fault else "",
            "under repair" if self.under_way else "",
        )
        return ", ".join(filter(None, parts))


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The node at the time of an answer (``at``, in monotonic seconds)."""

    at: float
    supervisor: int | None
    voter: int | None
    status: str
    guests: dict[str, GuestView]

    @property
    def recovered(self) -> bool:
        """Whether supervisor and voter serve and all guests vote."""
        return (
            self.supervisor is not None
            and self.voter is not None
            and self.status == "ready"
            and all(guest.recovered for guest in self.guests.values())
        )

    def __str__(self) -> str:
        guests = "; ".join(f"{name} {guest}" for name, guest in self.guests.items())
        return f"supervisor {self.supervisor}, voter {self.voter} {self.status}; {guests}"


class NodeView:
    """A connection to one node's control sockets, kept until the end of ``async with``."""

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

    async def poll(self) -> View:
        """Ask the supervisor, else the voter.  Raises NoAnswer if neither answers."""
        try:
            status = await self.supervisor("GET", "/status")
        except NoAnswer:
            return await self._poll_voter()
        guests = {
            guest["name"]: GuestView(
                # The last state known to the supervisor, if the voter is gone.
                replica=str(guest["replica"]["state"]),
                reason=str(guest["replica"]["reason"]),
                vm=guest["vm"],
                pid=guest["pid"],
                under_way=guest["repairs"]["in_progress"],
                in_row=guest["repairs"]["consecutive"],
                fault=guest["fault"]["kind"] if guest["fault"] else "",
                lag=guest["replica"]["lag"] or 0,
            )
            for guest in status["guests"]
        }
        up = status["phase"] == "up"
        return View(
            at=time.monotonic(),
            supervisor=status["supervisor"]["pid"] if up else None,
            voter=status["voter"]["pid"],
            status=status["status"],
            guests=guests,
        )

    async def _poll_voter(self) -> View:
        """Ask the voter alone.  Raises NoAnswer."""
        socket = str(self.layout.voter_control)
        _, status = await self._call(socket, "GET", "/status", None, CALL_TIMEOUT)
        guests = {
            replica["name"]: GuestView(replica=replica["state"], reason=replica["reason"])
            for replica in status["replicas"]
        }
        return View(
            at=time.monotonic(),
            supervisor=None,
            voter=status["pid"],
            status=status["status"],
            guests=guests,
        )

    async def supervisor(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> dict[str, Any]:
        """Ask the supervisor.  Raises NoAnswer, SupervisorRefused."""
        socket = str(self.layout.supervisor_socket)
        status, answer = await self._call(socket, method, path, body, timeout)
        if status >= 400:
            raise SupervisorRefused(str(answer.get("error", answer)))
        return answer

    async def voted_again(self, guest: str, since: float) -> bool:
        """Return whether a guest returned to the vote after ``since`` (seconds since 1970).

        Reads the supervisor's history, or the voter's state where there is no supervisor.  Returns
        True if neither answers, because it is not known then.
        """
        try:
            socket = str(self.layout.supervisor_socket)
            _, answer = await self._call(socket, "GET", "/events", None, CALL_TIMEOUT)
        except NoAnswer:
            try:
                return (await self._poll_voter()).guests[guest].replica == "active"
            except NoAnswer:
                return True
        return any(
            event["guest"] == guest and event.get("after") == "active" and event["time"] >= since
            for event in answer["events"]
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
        """Make one request.  Raises NoAnswer."""
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
