"""A running node as a site of faults: what its supervisor hands out, in the words of the acts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from deploy.machine.states import GuestState
from deploy.node.interfaces import FaultSite, GuestPort
from faultinject.faults.site import Liar, NotApplied
from voter.client import Client
from voter.client.errors import RequestError

__all__ = ["NodeTarget", "NodeSite"]

_BARE = "the guests of a running node have no network card, and so no shell"


class NodeSite:
    """Implements ``faults.site.ClientSite``; links lie in a process of their own (``inject``)."""

    def __init__(self, site: FaultSite) -> None:
        self._site = site

    @property
    def names(self) -> Sequence[str]:
        """The guests' names."""
        return tuple(self._site.guests)

    def machine(self, name: str) -> NodeTarget:
        """Return a guest's machine."""
        return NodeTarget(self._site.guests[name])

    def link(self, name: str) -> Liar:
        """Raise NotApplied: the proxy is another process, which ``inject`` speaks to."""
        raise NotApplied(f"the link of {name} is in another process")

    def shell(self, name: str) -> Any:
        """Raise NotApplied."""
        raise NotApplied(f"{name}: {_BARE}")

    def voter_pid(self) -> int | None:
        """Return None: the voter is its supervisor's, which would start it again."""
        return None

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """Send a request to the voter; return status and body, 0 where there is no verdict."""
        address = f"unix:{self._site.layout.native_socket}"
        try:
            async with await Client.connect(address) as client:
                answer = await client.request(method, target, body, headers)
        except (RequestError, TimeoutError) as error:
            return 0, str(error).encode()
        return answer.status, answer.body


class NodeTarget:
    """Implements ``faults.site.Machine`` by what the supervisor hands out of a guest."""

    def __init__(self, port: GuestPort) -> None:
        self._port = port

    @property
    def name(self) -> str:
        """g1, g2, ..."""
        return self._port.name

    @property
    def state(self) -> GuestState:
        """Where it is."""
        return GuestState(self._port.state)

    @property
    def pid(self) -> int | None:
        """Its QEMU, or None."""
        return self._port.pid

    async def kill(self) -> None:
        """End its QEMU at once; return when it is gone."""
        await self._port.kill()

    async def pause(self) -> None:
        """Stop its processor."""
        await self._port.pause()

    async def resume(self) -> None:
        """Let it go on."""
        await self._port.resume()

    async def reset(self) -> None:
        """Press its reset button."""
        await self._port.reset()

    async def nmi(self) -> None:
        """Send its processor a non-maskable interrupt."""
        await self._port.nmi()

    async def registers(self) -> str:
        """Return its registers in QEMU's words."""
        return await self._port.registers()

    def debug_stub(self) -> AbstractAsyncContextManager[Path]:
        """Have QEMU's debug stub listen on the unix socket that is given."""
        return self._port.debug_stub()

    def ram_file(self) -> Path:
        """Return the file that is its memory."""
        return self._port.ram()

    def tail(self, count: int = 20) -> list[str]:
        """Return the last lines of its console."""
        return self._port.tail(count)
