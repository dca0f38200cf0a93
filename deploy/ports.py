"""What the supervisor needs of others, as small protocols: guests, a node of them, faults.

``deploy.node`` and ``deploy.guest`` are the real machines; ``faultinject`` hands in the faults, which
``deploy`` must not know; tests hand in stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from deploy.child import Identity
from deploy.records import Layout, Settings

__all__ = ["FaultFactory", "FaultPort", "FaultSite", "GuestPort", "NodePort", "Progress"]

Progress = Callable[[str], None]
"""Is told, in a few words, of each step that takes time."""


class GuestPort(Protocol):
    """One guest."""

    @property
    def name(self) -> str:
        """g1, g2, ..."""

    @property
    def state(self) -> str:
        """A word for its state: ``running`` if it can serve, ``paused``, ``dead``, ``booting``, ..."""

    @property
    def pid(self) -> int | None:
        """Its process, or None while there is none."""

    @property
    def link_socket(self) -> Path:
        """The unix socket of its link."""

    async def put_back(self) -> None:
        """Bring it back to its clean snapshot, whatever state it is in.  Raises DeployError."""

    async def kill(self) -> None:
        """End its process at once; return when it is gone.  Raises DeployError."""

    async def pause(self) -> None:
        """Stop its processor.  Raises DeployError."""

    async def resume(self) -> None:
        """Let its processor go on.  Raises DeployError."""

    def ram(self) -> Path:
        """Return a file by which its memory can be mapped.  Raises OSError."""

    def tail(self, count: int) -> list[str]:
        """Return the last lines of its console."""


class NodePort(Protocol):
    """The guests of a node."""

    @property
    def guests(self) -> Mapping[str, GuestPort]:
        """By name, in order."""

    async def up(self, progress: Progress) -> None:
        """Have all guests run: adopt those that do, start the others.  Raises DeployError."""

    async def down(self) -> None:
        """End all guests.  Raises DeployError."""

    async def let_go(self) -> None:
        """Let the guests live on without this process."""

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have ``changed`` called with a guest's name whenever its state has changed."""
