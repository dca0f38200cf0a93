"""Where faults act, and what comes of one: the protocols between acts and whoever calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from deploy.machine.spec import GuestState
from faultinject.faults.lies import Lie

__all__ = ["Applied", "ClientSite", "FunctionSite", "Liar", "FaultTarget", "NotApplied", "Site"]


class NotApplied(Exception):
    """A fault could not be applied, or not be proved applied: ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Applied:
    """A fault that acts: it was read back (``proof``, in words)."""

    def __init__(
        self,
        proof: str,
        *,
        used: bool | Callable[[], bool | None] | None = None,
        undo: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``used``: whether what it broke is met, or how to know; None where it cannot be known."""
        self.proof = proof
        self._used = used
        self._undo = undo

    async def used(self) -> bool | None:
        """Whether what it broke has been met by now; None if that cannot be known."""
        return self._used() if callable(self._used) else self._used

    async def undo(self) -> None:
        """End what goes on in this process or on the link; guests are put back by others.

        A second call does nothing.
        """
        undo, self._undo = self._undo, None
        if undo is not None:
            await undo()


class FaultTarget(Protocol):
    """A guest's virtual machine, as ``deploy.machine.guest.Guest`` is one."""

    @property
    def name(self) -> str:
        """g1, g2, ..."""

    @property
    def state(self) -> GuestState:
        """Where it is."""

    @property
    def pid(self) -> int | None:
        """Its QEMU, or None."""

    async def kill(self) -> None:
        """End its QEMU at once; return when it is gone."""

    async def pause(self) -> None:
        """Stop its processor."""

    async def resume(self) -> None:
        """Let it go on."""

    async def reset(self) -> None:
        """Press its reset button."""

    async def nmi(self) -> None:
        """Send its processor a non-maskable interrupt."""

    async def registers(self) -> str:
        """Return its registers in QEMU's words."""

    def debug_stub(self) -> AbstractAsyncContextManager[Path]:
        """Have QEMU's debug stub listen on the unix socket that is given."""

    def ram_file(self) -> Path:
        """Return the file that is its memory."""

    def tail(self, count: int = 20) -> list[str]:
        """Return the last lines of its console."""


class Liar(Protocol):
    """A link that can be made to lie, as ``faultinject.faults.proxy.Link`` is one."""

    @property
    def kind(self) -> str | None:
        """The lie told on it now, or None."""

    @property
    def lie(self) -> Lie | None:
        """The lie itself, which counts."""

    def tell(self, kind: str | None, seed: bytes = b"") -> None:
        """Lie like this from now on, or (None) relay untouched bytes."""


class Site(Protocol):
    """A node that faults are applied to."""

    @property
    def names(self) -> Sequence[str]:
        """The guests' names."""

    def machine(self, name: str) -> FaultTarget:
        """Return a guest's machine."""

    def link(self, name: str) -> Liar:
        """Return a guest's link."""

    def shell(self, name: str) -> Any:
        """Return a guest's shell (``deploy.machine.ssh.GuestShell``)."""

    def voter_pid(self) -> int | None:
        """Return the voter's process, or None where there is none (NV)."""


@runtime_checkable
class ClientSite(Site, Protocol):
    """A site whose client sends more requests than its workload when a fault asks for it."""

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """Send a request; return the reply's status and body (status 0: no reply came).

        It is one of the mission's requests: its oracle gets it too.  Never raises on a refusal.
        """


@runtime_checkable
class FunctionSite(Site, Protocol):
    """A site that may have F, the function that requests pass on the host."""

    def function_pid(self) -> int | None:
        """Return F's process, or None where there is none."""
