"""A running node as a site of faults: what its supervisor hands out, in the words of the acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.node.interfaces import FaultSite, GuestPort
from faultinject.faults.site import Liar, NotApplied
from voter.client import Client
from voter.errors import RequestError

__all__ = ["NodeSite"]

_BARE = "the guests of a running node have no network card, and so no shell"


class NodeSite:
    """Implements ``faults.site.ClientSite``; links lie in a process of their own (``inject``)."""

    def __init__(self, site: FaultSite) -> None:
        self._site = site

    @property
    def names(self) -> Sequence[str]:
        """The guests' names."""
        return tuple(self._site.guests)

    def machine(self, name: str) -> GuestPort:
        """Return a guest's machine."""
        return self._site.guests[name]

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
