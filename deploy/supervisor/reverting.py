"""Taking a whole node back to a checkpoint, for the monitor: journal, guests and voter.

``revert.json`` is written before the first step and removed after the last.  While it is there no
voter is started.  A supervisor that finds it at its start completes what it says.  So whatever is
killed, and whenever, the node is in the state before the revert or after it: which one, the journal
decides by one file (``voter.journal.revert``), and the event `reverted` reports.

Guests are restored to their clean snapshots: what an attacker left in their memory is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from deploy.errors import DeployError
from deploy.host.files import sync_directory, write_json
from deploy.machine.spec import GuestState
from deploy.node.halt import HaltRecord, end_releases, halt
from deploy.node.interfaces import GuestPort
from deploy.node.records import Layout
from deploy.supervisor.observer import EventHistory
from voter.errors import JournalError
from voter.journal import Directory
from voter.journal.revert import RevertPlan, apply_revert, plan_revert

__all__ = ["RevertOrder", "Reverter", "complete_revert"]

JOURNAL_PATIENCE = 10.0
"""Seconds for a killed voter to let go of the journal's lock."""

_log = structlog.get_logger(__name__)


class RevertOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Undo the request ``before`` and all after it.  ``rule`` and ``detail``: why."""

    before: int
    rule: str
    detail: str = ""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """revert.json: a revert under way; without a plan it has changed nothing yet."""

    order: RevertOrder
    time: float
    plan: RevertPlan | None = None


def _read(layout: Layout) -> _Record | None:
    """Return the revert under way, or None.  Raises DeployError if its record is damaged."""
    try:
        return msgspec.json.decode(layout.revert.read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise DeployError(
            f"{layout.revert} cannot be read: {error}",
            remedy=f"move it away: the node then starts from what {layout.journal} holds",
            error_code="TV0788",
        ) from error


async def _revert_journal(layout: Layout, record: _Record) -> RevertPlan:
    """Plan, record the plan, and carry it out.  Raises JournalError, OSError."""
    plan = record.plan
    if plan is None:
        plan = await asyncio.to_thread(plan_revert, layout.journal, record.order.before)
        record = msgspec.structs.replace(record, plan=plan)
        write_json(layout.revert, record, mode=0o600)
    files = await _lock(layout)
    try:
        await apply_revert(files, layout.journal, plan)
    finally:
        files.close()
    return plan


async def _lock(layout: Layout) -> Directory:
    """Lock the journal, once the killed voter has let go of it.  Raises JournalError."""
    deadline = asyncio.get_running_loop().time() + JOURNAL_PATIENCE
    while True:
        try:
            return Directory(layout.journal)
        except JournalError:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.01)  # the end of a process releases its lock without an event


def _finish(layout: Layout) -> None:
    layout.revert.unlink(missing_ok=True)
    sync_directory(layout.directory)


def _facts(order: RevertOrder, plan: RevertPlan) -> dict[str, Any]:
    return {
        "rule": order.rule,
        "before": order.before,
        "checkpoint": plan.checkpoint,
        "seq": plan.seq,
        "lost": plan.lost,
        "first_lost": plan.first_lost or None,
        "last_lost": plan.last_lost or None,
    }


async def complete_revert(layout: Layout, history: EventHistory) -> None:
    """Complete a revert that another supervisor began, before anything of the node is started.

    Raises DeployError, JournalError; then nothing may be started.
    """
    record = _read(layout)
    if record is None:
        return
    end_releases(layout)
    plan = await _revert_journal(layout, record)
    _finish(layout)
    history.add("reverted", **_facts(record.order, plan), interrupted=True)


class Reverter:
    """Reverts a node that runs."""

    def __init__(
        self, layout: Layout, guests: Mapping[str, GuestPort], history: EventHistory
    ) -> None:
        self._layout = layout
        self._guests = guests
        self._history = history
        self._busy = asyncio.Lock()

    async def revert(self, order: RevertOrder) -> dict[str, Any]:
        """Undo a request and all after it; return what was done once the voter may start.

        Raises DeployError.  If the journal cannot be reverted, the node is halted.
        """
        layout = self._layout
        if layout.system or not layout.journal.exists():
            raise DeployError(
                "this node cannot be reverted: "
                + ("systemd runs its voter" if layout.system else "it keeps no journal"),
                remedy="use the action crash in this rule",
                error_code="TV0789",
            )
        async with self._busy:
            at = asyncio.get_running_loop().time()
            record = _Record(order=order, time=at)
            write_json(layout.revert, record, mode=0o600)
            self._end_voter()
            try:
                plan = await _revert_journal(layout, record)
            except (JournalError, OSError) as error:
                self._halt(order, str(error))
                raise DeployError(
                    f"the journal cannot be reverted, so the node was stopped: {error}",
                    remedy=f"{layout.halted} says why; move it away to start the node as it was",
                    error_code="TV0789",
                ) from error
            await asyncio.gather(*map(self._clean, self._running()))
            _finish(layout)
            facts = _facts(order, plan)
            self._history.add("reverted", **facts, interrupted=False)
            return facts

    def _end_voter(self) -> None:
        """Kill the voter at once; none is started while the record is there."""
        voter = self._layout.read_running().processes.get("voter")
        if voter is not None:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(voter.pid)
                try:
                    if voter.alive:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)

    def _halt(self, order: RevertOrder, why: str) -> None:
        detail = f"{order.detail}; the revert failed: {why}"
        halt(self._layout, HaltRecord(time=0.0, rule=order.rule, detail=detail))
        _finish(self._layout)

    def _running(self) -> Iterable[GuestPort]:
        return [guest for guest in self._guests.values() if guest.pid is not None]

    async def _clean(self, guest: GuestPort) -> None:
        """Restore a guest; end it if that fails, so that repair starts it anew."""
        try:
            await guest.restore()
        except (DeployError, OSError) as error:
            _log.info("a guest is ended instead of restored", guest=guest.name, reason=str(error))
            with contextlib.suppress(DeployError, OSError):
                if guest.state != GuestState.ABSENT:
                    await guest.kill()
