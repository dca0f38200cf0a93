"""What the monitor does about a rule that matched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.monitor.blocking import BlockList
from deploy.monitor.control import ControlError, call
from deploy.monitor.observations import Finding
from deploy.monitor.rules import RequestRule
from deploy.monitor.targets import Targets
from deploy.node.halt import HaltRecord, halt
from deploy.node.records import Layout

__all__ = ["REPORTS", "Responder"]

REPORTS = 20
"""Reports of one rule in one second; more are counted, and the next report says how many."""

_log = structlog.get_logger(__name__)


class _Flood:
    """Limits the reports of one rule."""

    def __init__(self) -> None:
        self._second = 0
        self._count = 0
        self._dropped = 0

    def take(self, now: float) -> int | None:
        """Return how many reports were dropped before this one; None: this one is dropped."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        if self._count > REPORTS:
            self._dropped += 1
            return None
        dropped, self._dropped = self._dropped, 0
        return dropped


class Responder:
    """Carries out the actions of one node's rules.

    ``report`` gets a document for each match.  ``halted`` is set when the node was stopped.
    ``delay``: seconds before an action, for measurements of what a slower detection costs.
    """

    def __init__(
        self,
        layout: Layout,
        blocked: BlockList,
        targets: Targets,
        report: Callable[[dict[str, Any]], None],
        *,
        delay: float = 0.0,
    ) -> None:
        self._layout = layout
        self._blocked = blocked
        self._targets = targets
        self._report = report
        self._delay = delay
        self._floods: dict[str, _Flood] = {}
        self._reverting = 0  # sequence number before which the node was reverted last
        self.matches = 0
        self.halted = asyncio.Event()
        self.told = asyncio.Event()
        """Set when the match for which the node was halted is reported."""

    async def respond(self, finding: Finding, *, inline: bool = False) -> None:
        """Do what the rule says.  An action that fails is reported, and the monitor goes on.

        ``inline``: the voter has refused the request already, and blocks its client if it must.
        """
        self.matches += 1
        if inline and finding.rule.action == "block":
            await self._tell(finding, "refused and blocked by the voter", None, 0.0)
            return
        if self._delay:
            await asyncio.sleep(self._delay)  # it is the quantity that is measured
        began = time.monotonic()
        try:
            outcome = await self._act(finding)
            problem = None
        except (DeployError, OSError) as error:
            outcome, problem = "failed", error
        await self._tell(finding, outcome, problem, time.monotonic() - began)
        if self.halted.is_set():
            self.told.set()

    async def _act(self, finding: Finding) -> str:
        rule = finding.rule
        if rule.action == "block" and finding.caller is not None:
            assert isinstance(rule, RequestRule)
            await self._blocked.block(finding.caller, rule.name, rule.block_for)
            return f"blocked {finding.caller}"
        if rule.action == "crash":
            record = HaltRecord(time=time.time(), rule=rule.name, detail=finding.detail)
            self.halted.set()
            halt(self._layout, record, self._targets.pidfds)
            return "stopped the node"
        if rule.action == "revert":
            return await self._revert(finding)
        return "alert"

    async def _revert(self, finding: Finding) -> str:
        if finding.seq <= self._reverting:
            return "reverted already"
        body = {"before": finding.seq, "rule": finding.rule.name, "detail": finding.detail}
        done = await call(self._layout.supervisor_socket, "POST", "/revert", body)
        self._reverting = int(done["seq"])
        return f"reverted to the checkpoint at {done['checkpoint']}: {done['lost']} writes are lost"

    async def _tell(
        self, finding: Finding, outcome: str, problem: Exception | None, took: float
    ) -> None:
        """Report a match here and in the node's events."""
        dropped = self._floods.setdefault(finding.rule.name, _Flood()).take(time.time())
        if dropped is None and finding.rule.action == "alert":
            return
        document: dict[str, Any] = {
            "rule": finding.rule.name,
            "action": finding.rule.action,
            "outcome": outcome,
            "detail": finding.detail,
            "guest": finding.guest,
            "caller": finding.caller,
            "seq": finding.seq or None,
            "seconds": round(took, 6),
            "not_reported": dropped or None,
        }
        if problem is not None:
            document["detail"] += f"; {problem}"
            _log.error(
                "the action failed", rule=finding.rule.name, reason=str(problem),
                error_code="TV0787",
            )  # fmt: skip
        self._report({"time": time.time(), **document})
        try:
            await call(self._layout.supervisor_socket, "POST", "/monitor", document)
            if self.halted.is_set():
                await call(self._layout.supervisor_socket, "POST", "/down")
        except ControlError as error:
            _log.info("the match is not in the node's events", reason=str(error))
