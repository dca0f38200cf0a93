"""The node that a fault is injected into, and a fault that is active, as seen by the injection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from deploy.node.interfaces import GuestPort
from faultinject.faults.proxy import ProxiedLink
from guests.errors import CodedError

__all__ = ["ActiveFault", "NotApplied", "Site"]


class NotApplied(CodedError):
    """A fault could not be injected, or its injection could not be proved; ``reason`` says why."""

    error_code = "TV0506"

    def __init__(self, reason: str, *, error_code: str = "") -> None:
        super().__init__(reason, error_code=error_code)
        self.reason = reason


class ActiveFault:
    """A fault that was injected.  ``proof`` describes what was read back.

    ``activated``: whether the target has met the damage, or a function that returns it.  None:
    that cannot be known.
    """

    def __init__(
        self,
        proof: str,
        *,
        activated: bool | Callable[[], bool | None] | None = None,
        undo: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.proof = proof
        self._activated = activated
        self._undo = undo

    async def activated(self) -> bool | None:
        """Return whether the target has met the damage by now; None if that cannot be known."""
        return self._activated() if callable(self._activated) else self._activated

    async def undo(self) -> None:
        """End what continues in this process or on the link; others revert the guests.

        A second call does nothing.
        """
        undo, self._undo = self._undo, None
        if undo is not None:
            await undo()


class Site:
    """A node that faults are injected into.  A subclass overrides what its node has."""

    @property
    def names(self) -> Sequence[str]:
        """The guests' names."""
        raise NotImplementedError

    def machine(self, name: str) -> GuestPort:
        """Return a guest's machine."""
        raise NotImplementedError

    def link(self, name: str) -> ProxiedLink:
        """Return the proxy in a guest's link."""
        raise NotApplied(f"this node has no proxy in the link of {name}", error_code="TV0508")

    def shell(self, name: str) -> Any:
        """Return a guest's shell (``deploy.machine.ssh.GuestShell``)."""
        raise NotApplied(f"{name} has no network card, and so no shell", error_code="TV0508")

    def voter_pid(self) -> int | None:
        """Return the voter's process, or None where there is none (NV)."""
        return None

    def function_pid(self) -> int | None:
        """Return the process of F, the function on the host, or None where there is none."""
        return None

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """Send a request; return the reply's status and body (status 0: no reply came).

        The request belongs to the mission: its oracle sees it too.  A refusal does not raise.
        """
        raise NotApplied(
            "this node has no client that sends a request for a fault", error_code="TV0508"
        )
