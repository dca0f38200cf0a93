"""The state of one guest's VM: legal changes, and those who are notified of each."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from deploy.errors import WrongState
from deploy.machine.spec import TRANSITIONS, GuestEvent, GuestState

__all__ = ["StateHolder"]

_log = structlog.get_logger("deploy.machine.guest")


class StateHolder:
    """The base of `Guest`."""

    def __init__(self, name: str) -> None:
        self._guest_name = name
        self.state = GuestState.ABSENT
        self._subscribers: list[Callable[[GuestEvent], object]] = []

    @property
    def name(self) -> str:
        """Its name in the node: g1, g2, ..."""
        return self._guest_name

    @property
    def pid(self) -> int | None:
        """The process id of its running QEMU, or None."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[GuestEvent], object]) -> Callable[[], None]:
        """Call `callback` at each change of state; the returned function ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def _set(self, state: GuestState, why: str) -> None:
        before = self.state
        if state not in TRANSITIONS[before]:
            raise WrongState(f"guest {self.name} cannot become {state.value}: it is {before.value}")
        self.state = state
        _log.info("guest", guest=self.name, state=state.value, why=why, pid=self.pid)
        event = GuestEvent(guest=self.name, before=before, after=state, why=why, pid=self.pid)
        for callback in list(self._subscribers):
            callback(event)

    def _is(self, *states: GuestState) -> bool:
        return self.state in states  # any await may change that

    def _require(self, *states: GuestState) -> None:
        if self.state not in states:
            wanted = " or ".join(state.value for state in states)
            raise WrongState(f"guest {self.name} is {self.state.value}, not {wanted}")
