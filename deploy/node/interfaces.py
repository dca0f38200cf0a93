"""What the supervisor needs of guests, of a node's machines and of a fault injector.

``deploy.machine`` implements the first two.  ``faultinject`` implements the third, which ``deploy``
must not import.  Tests use substitutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from deploy.host.identity import ProcessIdentity
from deploy.machine.console import Console
from deploy.machine.spec import GuestArrival, GuestEvent, GuestState, Progress, StartMethod
from deploy.node.records import Layout, Settings
from guests.image import Image

__all__ = ["FaultFactory", "FaultPort", "FaultSite", "GuestPort", "NodePort"]


class GuestPort(Protocol):
    """One guest's VM."""

    @property
    def name(self) -> str:
        """g1, g2, ..."""

    @property
    def state(self) -> GuestState:
        """Its state now."""

    @property
    def pid(self) -> int | None:
        """Its process, or None without one."""

    @property
    def link_socket(self) -> Path:
        """The unix socket of its link."""

    @property
    def console(self) -> Console:
        """What it prints."""

    async def restore(self) -> object:
        """Restore its clean snapshot, whatever its state.  Raises DeployError."""

    async def kill(self) -> None:
        """End its process at once; return when it has ended.  Raises DeployError."""

    async def pause(self) -> None:
        """Stop its CPU.  Raises DeployError."""

    async def resume(self) -> None:
        """Continue its CPU.  Raises DeployError."""

    async def yield_processor(self, yields: bool) -> None:
        """Give it the lowest CPU priority, or the same as the other guests'.

        Does nothing where that could not be reverted.  The next call retries a failed reversion.
        """

    async def reset(self) -> None:
        """Press its reset button.  Raises DeployError."""

    async def nmi(self) -> None:
        """Send its CPU a non-maskable interrupt.  Raises DeployError."""

    async def registers(self) -> str:
        """Return its CPU's registers as QEMU prints them.  Raises DeployError."""

    def debug_stub(self) -> AbstractAsyncContextManager[Path]:
        """Have a debug stub listen on the unix socket that is yielded.  Raises DeployError."""

    def ram_file(self) -> Path:
        """Return a file by which its memory can be mapped.  Raises DeployError, OSError."""

    def tail(self, count: int = 20) -> list[str]:
        """Return the last lines of its console."""


class NodePort(Protocol):
    """The machines of a node."""

    @property
    def guests(self) -> Mapping[str, GuestPort]:
        """The guests by name, in order, with empty slots; `up` and `start` replace them."""

    @property
    def problem(self) -> str:
        """Why no guest can be restored now, and the remedy; empty if guests can."""

    async def up(
        self, progress: Progress, *, take_over: bool, empty: Collection[str] | None = None
    ) -> object:
        """Make all guests run: adopt those that do, start the others.  Raises DeployError.

        With ``take_over`` the voter serves already; a guest that does not run is left dead, to be
        repaired.  ``empty``: the slots in which none is started; None: the node's spare slots.
        """

    async def start(
        self,
        name: str,
        *,
        by: StartMethod = "clone",
        share: int = 100,
        image: Image | None = None,
        progress: Progress = lambda _: None,
    ) -> GuestArrival:
        """Start a guest in an empty slot; return once it is ready.  Raises DeployError.

        See ``NodeMachines.start``.
        """

    def initrd(self, name: str) -> str:
        """Return the path of the initramfs that the guest in a slot was started with."""

    async def end(self, name: str) -> None:
        """End the guest in a slot, which is empty then.  Raises DeployError."""

    async def down(self) -> None:
        """End all guests.  Raises DeployError."""

    async def release(self) -> None:
        """Stop owning the guests, which continue to run."""

    def subscribe(self, callback: Callable[[GuestEvent], object]) -> None:
        """Call ``callback`` at each change of a guest's state."""


class FaultPort(Protocol):
    """A fault injector.  A ``kind`` is a name in its catalogue."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kinds that can be injected, with what each does."""

    def check(self, kind: str, guest: str) -> None:
        """Raise FaultRefused unless this fault can be injected into this guest."""

    def link(self, guest: str) -> str:
        """Return the address at which the voter connects to the guest."""

    def needs_restore(self, kind: str) -> bool:
        """Return whether the guest must be restored after this fault, even while it votes."""

    @property
    def processes(self) -> Mapping[str, ProcessIdentity]:
        """Its own running processes, by name."""

    async def start(self, before: Mapping[str, ProcessIdentity]) -> None:
        """Start; adopt those of the processes ``before`` that run.  Raises DeployError."""

    async def keep(self) -> None:
        """Restart its processes when they end, until cancelled."""

    async def inject(self, kind: str, guest: str) -> str:
        """Inject a fault; return the proof that it is active.  Raises DeployError."""

    async def resume(self, kind: str, guest: str) -> bool:
        """Adopt a fault that a former supervisor injected; return False if it is over."""

    async def undo(self, kind: str, guest: str) -> None:
        """End a fault; the supervisor restores the guest if necessary.  Raises DeployError."""

    async def end(self) -> None:
        """End all faults and processes."""

    async def release(self) -> None:
        """Stop owning its processes, which continue to run."""


class FaultSite(Protocol):
    """Where faults are injected: what the supervisor offers a FaultPort."""

    @property
    def layout(self) -> Layout:
        """The node's directory."""

    @property
    def settings(self) -> Settings:
        """The node's settings."""

    @property
    def guests(self) -> Mapping[str, GuestPort]:
        """The guests by name."""

    def changed(self) -> None:
        """Record the changed set of processes."""


FaultFactory = Callable[[FaultSite], FaultPort]
