"""One node's dashboard: where it listens, its links, and what the parts need of each other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from ipaddress import ip_address

from deploy.dashboard.access import TOKEN_LIFE, Access
from deploy.dashboard.campaigns import CampaignBoard
from deploy.dashboard.collector import Collector, NodeSource
from deploy.dashboard.server import DashboardServer
from deploy.node.records import DEFAULT_DASHBOARD
from voter.address import split_host_port
from voter.errors import AddressError
from voter.sockets import listen_tcp

__all__ = ["TOKEN_LIFE", "Dashboard", "listen"]

SEND_BUFFER = 64 << 10
"""Bytes that the kernel may hold for a browser that does not read; by default it is megabytes."""


def listen(wanted: str | None, before: str | None) -> socket.socket:
    """Return a listening socket: on the address that was asked for, else on the one ``before``,
    else on the default one, else on any free port of loopback.

    Raises AddressError if the address that was asked for is taken.
    """
    if wanted is not None:
        return _listen(before or wanted)
    for address in (before, DEFAULT_DASHBOARD):
        with contextlib.suppress(AddressError):
            if address is not None:
                return _listen(address)
    return _listen("127.0.0.1:0")


def _listen(address: str) -> socket.socket:
    sock = listen_tcp(address)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    return sock


class Dashboard:
    """Shows one node; serves from `start` to `stop`.

    ``wanted``: its address, or None for the default one.  ``before``: where the node's former
    supervisor served it.  ``uuid``: the node's.  Raises AddressError.
    """

    def __init__(
        self, node: NodeSource, *, wanted: str | None, before: str | None, uuid: str
    ) -> None:
        self.board = CampaignBoard()
        self._listener = listen(wanted, before)
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        asked = split_host_port(wanted)[0] if wanted is not None else host
        self._access = Access(asked, uuid)
        self._link_host = _link_host(host)
        self._collector = Collector(node, self.board)
        self._server = DashboardServer(node, self._collector, self._access)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve, and sample the node."""
        await self._server.start(self._listener)
        self._task = asyncio.create_task(self._collector.run(), name="dashboard")

    async def stop(self) -> None:
        """Stop serving."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._server.stop()
        self._listener.close()

    def new_link(self) -> str:
        """Return a link that logs a browser in once, within ``TOKEN_LIFE`` seconds."""
        port = self.address.rpartition(":")[2]
        return f"http://{self._link_host}:{port}/#{self._access.new_token()}"


def _link_host(host: str) -> str:
    """Return the host part of links: that of the listener, or this host's name if it is any."""
    if ip_address(host).is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
