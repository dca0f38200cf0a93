"""The clients that the monitor has blocked, recorded so that they stay blocked.

A restarted voter blocks nobody, so the monitor blocks them again when it begins to read the request
stream.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from deploy.errors import DeployError
from deploy.host.files import write_json
from deploy.monitor.control import call

__all__ = ["BlockedClient", "BlockList"]


class BlockedClient(msgspec.Struct, frozen=True, kw_only=True):
    """One blocked client.  ``until``: seconds since 1970; None: until it is unblocked."""

    rule: str
    until: float | None = None


class BlockList:
    """The blocked clients of a node, by the voter's names for them."""

    def __init__(self, record: Path, voter: Path) -> None:
        """``voter``: its control socket.  Raises DeployError if the record cannot be read."""
        self._record = record
        self._voter = voter
        self._clients: dict[str, BlockedClient] = {}
        try:
            self._clients = msgspec.json.decode(record.read_bytes(), type=dict[str, BlockedClient])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            raise DeployError(
                f"{record} cannot be read: {error}",
                remedy="move it away, after which nobody is blocked any more",
                error_code="TV0786",
            ) from error

    @property
    def clients(self) -> dict[str, BlockedClient]:
        """The clients that are blocked now."""
        now = time.time()
        self._clients = {
            name: client
            for name, client in self._clients.items()
            if client.until is None or client.until > now
        }
        return dict(self._clients)

    async def block(self, caller: str, rule: str, seconds: float | None) -> None:
        """Block a client and its connections.  Raises ControlError, OSError."""
        await self._send(caller, rule, seconds)
        until = None if seconds is None else time.time() + seconds
        self._clients[caller] = BlockedClient(rule=rule, until=until)
        write_json(self._record, self.clients, mode=0o600)

    async def unblock(self, caller: str) -> bool:
        """Serve a client again; return whether it was blocked.  Raises ControlError, OSError."""
        await call(self._voter, "POST", "/clients/unblock", {"caller": caller})
        known = self._clients.pop(caller, None) is not None
        write_json(self._record, self.clients, mode=0o600)
        return known

    async def apply(self) -> None:
        """Block all of them in a voter that may be another one.  Raises ControlError."""
        now = time.time()
        for caller, client in self.clients.items():
            left = None if client.until is None else max(client.until - now, 0.001)
            await self._send(caller, client.rule, left)

    async def _send(self, caller: str, rule: str, seconds: float | None) -> None:
        reason = f"rule {rule} of the monitor matched a request of this client"
        body = {"caller": caller, "seconds": seconds, "reason": reason}
        await call(self._voter, "POST", "/clients/block", body)
