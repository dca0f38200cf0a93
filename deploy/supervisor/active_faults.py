"""The injected faults of a node: which is active in which guest, since when, until when.

A fault is recorded before it is injected.  So repair leaves the guest alone from the start, and the
next supervisor knows of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from deploy.errors import DeployError
from deploy.node.interfaces import FaultPort
from deploy.node.records import FaultRecord

__all__ = ["ActiveFaults", "FaultRefused"]

RETRY_INTERVAL = 2.0
"""Seconds until the heal of an expired fault is retried, for example because the guest is needed
for a majority."""

_log = structlog.get_logger(__name__)


class FaultRefused(DeployError):
    """A fault that this node does not allow, or that this guest cannot have now."""


class ActiveFaults:
    """The active faults by guest.

    ``heal`` ends an expired fault and brings the guest back; ``changed`` is called when the records
    have changed.
    """

    def __init__(
        self,
        port: FaultPort | None,
        how_to_allow: str,
        *,
        heal: Callable[[str], Awaitable[object]],
        changed: Callable[[], None],
    ) -> None:
        self._port = port
        self._how_to_allow = how_to_allow
        self._heal = heal
        self._changed = changed
        self._timers: dict[str, asyncio.Task[None]] = {}
        self.active: dict[str, FaultRecord] = {}

    def needs_restore(self, guest: str) -> bool:
        """Return whether its fault requires a restore of the guest even if it votes."""
        record, port = self.active.get(guest), self._port
        return record is not None and port is not None and port.needs_restore(record.kind)

    async def inject(self, kind: str, guest: str, seconds: float | None) -> FaultRecord:
        """Inject a fault, for ``seconds`` or until healed.  Raises FaultRefused, DeployError."""
        if self._port is None:
            raise FaultRefused(
                "this node does not allow faults",
                remedy=self._how_to_allow,
                error_code="TV0501",
            )
        self._port.check(kind, guest)
        if guest in self.active:
            raise FaultRefused(
                f"{self.active[guest].kind} is already active in {guest}",
                remedy=f"run `trivisor heal {guest}` first",
                error_code="TV0502",
            )
        now = time.time()
        until = None if seconds is None else now + seconds
        self.active[guest] = FaultRecord(kind=kind, since=now, until=until, proof="being injected")
        self._changed()
        try:
            proof = await self._port.inject(kind, guest)
        except BaseException:
            self._remove(guest)
            raise
        record = FaultRecord(kind=kind, since=now, until=until, proof=proof)
        self._add(guest, record)
        _log.warning(
            "fault injected",
            guest=guest,
            kind=kind,
            seconds=seconds,
            proof=proof,
            error_code="TV0512",
        )
        return record

    async def resume(self, before: Mapping[str, FaultRecord]) -> None:
        """Adopt the faults that a former supervisor left.  Raises DeployError."""
        for guest, record in before.items():
            if self._port is not None and await self._port.resume(record.kind, guest):
                self._add(guest, record)

    def _add(self, guest: str, record: FaultRecord) -> None:
        self.active[guest] = record
        self._changed()
        if record.until is not None:
            # A wall clock that was set meanwhile must not prolong the fault.
            left = min(record.until - time.time(), record.until - record.since)
            timer = self._expire(guest, max(0.0, left))
            self._timers[guest] = asyncio.create_task(timer, name=f"fault of {guest}")

    async def _expire(self, guest: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        record, timer = self.active.get(guest), asyncio.current_task()
        while record is not None and self.active.get(guest) is record and timer is not None:
            self._timers.pop(guest, None)  # so that `undo` does not cancel this task
            try:
                await self._heal(guest)
            except (DeployError, OSError) as error:
                _log.error(
                    "cannot heal an expired fault",
                    guest=guest,
                    error=str(error),
                    error_code="TV0510",
                )
            if self.active.get(guest) is record:
                self._timers[guest] = timer
                await asyncio.sleep(RETRY_INTERVAL)  # no event reports that healing is possible

    async def undo(self, guest: str) -> None:
        """End the fault in a guest, if there is one.  Raises DeployError."""
        record = self.active.get(guest)
        if record is not None and self._port is not None:
            await self._port.undo(record.kind, guest)
            self._remove(guest)
            _log.info("fault ended", guest=guest, kind=record.kind)

    def _remove(self, guest: str) -> None:
        self.active.pop(guest, None)
        timer = self._timers.pop(guest, None)
        if timer is not None:
            timer.cancel()
        self._changed()

    def stop(self) -> None:
        """Cancel the timers; the faults remain active."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
