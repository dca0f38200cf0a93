"""The book of injected faults: what holds which guest, since when, until when.

A fault is written down before it is applied, so that a repair leaves the guest alone from the
start, and so that a supervisor that takes over knows of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from deploy.errors import DeployError
from deploy.node.interfaces import FaultPort
from deploy.node.records import FaultRecord

__all__ = ["FaultRecords", "FaultRefused"]

HEAL_AGAIN = 2.0
"""Seconds until healing is tried again where it was refused when a fault's time was over."""

_log = structlog.get_logger(__name__)


class FaultRefused(DeployError):
    """A fault that this node, or this guest now, does not take."""


class FaultRecords:
    """Faults that hold, by guest.  ``heal`` undoes one and brings the guest back."""

    def __init__(
        self,
        port: FaultPort | None,
        *,
        heal: Callable[[str], Awaitable[object]],
        changed: Callable[[], None],
    ) -> None:
        """``heal`` is called when a fault's time is over, ``changed`` when the book has changed."""
        self._port = port
        self._heal = heal
        self._changed = changed
        self._timers: dict[str, asyncio.Task[None]] = {}
        self.holds: dict[str, FaultRecord] = {}

    def held(self, guest: str) -> bool:
        """Whether a fault holds this guest."""
        return guest in self.holds

    def must_put_back(self, guest: str) -> bool:
        """Whether after the fault that holds it the guest must be put back even if it votes."""
        record, port = self.holds.get(guest), self._port
        return record is not None and port is not None and port.must_put_back(record.kind)

    async def inject(self, kind: str, guest: str, seconds: float | None) -> FaultRecord:
        """Apply a fault, for ``seconds`` or until healed.  Raises FaultRefused, DeployError."""
        if self._port is None:
            raise FaultRefused(
                "this node does not allow faults",
                remedy="start it with `trivisor up --allow-faults`",
            )
        self._port.check(kind, guest)
        if guest in self.holds:
            raise FaultRefused(
                f"{guest} is held by {self.holds[guest].kind} already",
                remedy=f"`trivisor heal {guest}` first",
            )
        now = time.time()
        until = None if seconds is None else now + seconds
        self.holds[guest] = FaultRecord(kind=kind, since=now, until=until, proof="being applied")
        self._changed()
        try:
            proof = await self._port.inject(kind, guest)
        except BaseException:
            self._forget(guest)
            raise
        record = FaultRecord(kind=kind, since=now, until=until, proof=proof)
        self._keep(guest, record)
        _log.warning("fault injected", guest=guest, kind=kind, seconds=seconds, proof=proof)
        return record

    async def resume(self, before: Mapping[str, FaultRecord]) -> None:
        """Go on with the faults that a former supervisor left.  Raises DeployError."""
        for guest, record in before.items():
            if self._port is not None and await self._port.resume(record.kind, guest):
                self._keep(guest, record)

    def _keep(self, guest: str, record: FaultRecord) -> None:
        self.holds[guest] = record
        self._changed()
        if record.until is not None:
            timer = self._end_in_time(guest, record.until)
            self._timers[guest] = asyncio.create_task(timer, name=f"fault of {guest}")

    async def _end_in_time(self, guest: str, until: float) -> None:
        await asyncio.sleep(max(0.0, until - time.time()))
        record, timer = self.holds.get(guest), asyncio.current_task()
        while record is not None and self.holds.get(guest) is record and timer is not None:
            self._timers.pop(guest, None)  # so that `undo` does not cancel the one that called it
            try:
                await self._heal(guest)
            except DeployError as error:
                _log.error(
                    "healing failed when the fault's time was over", guest=guest, error=str(error)
                )
            if self.holds.get(guest) is record:
                # It is one of the last that vote, say: nothing tells when that changes.
                self._timers[guest] = timer
                await asyncio.sleep(HEAL_AGAIN)

    async def undo(self, guest: str) -> None:
        """End the fault that holds a guest, if there is one.  Raises DeployError."""
        record = self.holds.get(guest)
        if record is not None and self._port is not None:
            await self._port.undo(record.kind, guest)
            self._forget(guest)
            _log.info("fault ended", guest=guest, kind=record.kind)

    def _forget(self, guest: str) -> None:
        self.holds.pop(guest, None)
        timer = self._timers.pop(guest, None)
        if timer is not None:
            timer.cancel()
        self._changed()

    def stop(self) -> None:
        """End the timers; the faults hold on."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
