"""What the supervisor needs of others, as small protocols: guests, a node of them, faults.

``deploy.machine.node`` and ``deploy.machine.guest`` are the real machines; ``faultinject`` hands
in the faults,
which ``deploy`` must not know; tests hand in stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from deploy.host.identity import ProcessIdentity
from deploy.node.records import Layout, Settings

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
        """A word for its state: ``running`` if it can serve, ``paused``, ``dead``, ``booting``,
        ...
        """

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

    async def yield_processor(self, yields: bool) -> None:
        """Have it leave the host's processors to the other guests, or not any more.

        One that could not be brought back does not yield; what failed is tried by the next call.
        """

    async def reset(self) -> None:
        """Press its reset button.  Raises DeployError."""

    async def nmi(self) -> None:
        """Send its processor a non-maskable interrupt.  Raises DeployError."""

    async def registers(self) -> str:
        """Return its processor's registers in QEMU's words.  Raises DeployError."""

    def debug_stub(self) -> AbstractAsyncContextManager[Path]:
        """Have a debug stub listen on the unix socket that is given.  Raises DeployError."""

    def ram(self) -> Path:
        """Return a file by which its memory can be mapped.  Raises OSError."""

    def tail(self, count: int) -> list[str]:
        """Return the last lines of its console."""


class NodePort(Protocol):
    """The guests of a node."""

    @property
    def guests(self) -> Mapping[str, GuestPort]:
        """By name, in order."""

    async def up(self, progress: Progress, *, take_over: bool) -> None:
        """Have all guests run: adopt those that do, start the others.  Raises DeployError.

        ``take_over``: the voter serves already; guests that do not run are left dead, for repair.
        """

    async def down(self) -> None:
        """End all guests.  Raises DeployError."""

    async def let_go(self) -> None:
        """Let the guests live on without this process."""

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have ``changed`` called with a guest's name whenever its state has changed."""


class FaultPort(Protocol):
    """What breaks guests on purpose.  A kind is a word of its catalogue."""

    def check(self, kind: str, guest: str) -> None:
        """Raise FaultRefused unless such a fault can be injected into this guest of this node."""

    def link(self, guest: str) -> str:
        """Return the address at which the voter is to find the guest."""

    def must_put_back(self, kind: str) -> bool:
        """Whether the guest must be put back after this fault, even while it still votes."""

    @property
    def processes(self) -> Mapping[str, ProcessIdentity]:
        """Processes of its own that run now, by name."""

    async def start(self, before: Mapping[str, ProcessIdentity]) -> None:
        """Get ready; go on with those of the processes ``before`` that live.

        Raises DeployError.
        """

    async def keep(self) -> None:
        """Keep its processes running, until cancelled."""

    async def inject(self, kind: str, guest: str) -> str:
        """Apply a fault; return how it was proved applied, in words.  Raises DeployError."""

    async def resume(self, kind: str, guest: str) -> bool:
        """Go on with a fault that a former supervisor applied; False if it is over."""

    async def undo(self, kind: str, guest: str) -> None:
        """End a fault; the supervisor puts the guest back if it must be.  Raises DeployError."""

    async def end(self) -> None:
        """End all faults and processes."""

    async def let_go(self) -> None:
        """Let its processes live on without this one."""


class FaultSite(Protocol):
    """Where faults act: what the supervisor gives to a FaultFactory."""

    @property
    def layout(self) -> Layout:
        """The node's directory."""

    @property
    def settings(self) -> Settings:
        """What `up` was asked for."""

    @property
    def guests(self) -> Mapping[str, GuestPort]:
        """The guests by name."""

    def changed(self) -> None:
        """Tell that the processes have changed (to be written down)."""


FaultFactory = Callable[[FaultSite], FaultPort]
