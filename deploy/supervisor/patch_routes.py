"""The part of the supervisor's control socket that is for patches.

GET  /patch                {"patch": the last one's status, or null}
GET  /patch/differences    what its copy answered otherwise
POST /patch/start          ``PatchOrder``; answered once the patch is recorded
POST /patch/promote        {"force"}: the quarantine ends, voters are replaced
POST /patch/reject, /abort {"reason"}
POST /patch/rules          {"text", "name", "use"}: what the rules would explain
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from deploy.patching.judgement import Finding, classify
from deploy.patching.rules import RuleSet, read_rules
from deploy.patching.store import show
from deploy.supervisor.patch_orders import PatchOrder
from deploy.supervisor.patcher import Patcher
from voter.core.entries import Record
from voter.errors import JournalError
from voter.journal.reader import JournalReader

__all__ = ["PatchRoutes"]

MOST_WRITES = 1000
"""Requests of the recent log on which rules are tried."""


class _Promotion(msgspec.Struct, forbid_unknown_fields=True):
    force: bool = False


class _Ending(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class _Rules(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    name: str
    use: bool = False


class PatchRoutes:
    """Answers the requests about patches.  ``journal`` is the directory of the node's journal."""

    def __init__(self, patcher: Patcher, journal: Path) -> None:
        self._patcher = patcher
        self._journal = journal

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/patch", self._status)
        app.router.add_get("/patch/differences", self._differences)
        app.router.add_post("/patch/start", self._start)
        app.router.add_post("/patch/promote", self._promote)
        app.router.add_post("/patch/reject", self._reject)
        app.router.add_post("/patch/abort", self._abort)
        app.router.add_post("/patch/rules", self._rules)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return self._answer()

    def _answer(self) -> web.StreamResponse:
        return web.json_response({"patch": self._patcher.describe()})

    async def _differences(self, request: web.Request) -> web.StreamResponse:
        findings = self._patcher.findings
        lost = self._patcher.verdict().lost
        return web.json_response({"differences": list(map(describe, findings)), "lost": lost})

    async def _start(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=PatchOrder)
        await self._patcher.start(order)
        return self._answer()

    async def _promote(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=_Promotion)
        self._patcher.promote(force=order.force)
        return self._answer()

    async def _reject(self, request: web.Request) -> web.StreamResponse:
        self._patcher.reject(msgspec.json.decode(await request.read(), type=_Ending).reason)
        return self._answer()

    async def _abort(self, request: web.Request) -> web.StreamResponse:
        self._patcher.abort(msgspec.json.decode(await request.read(), type=_Ending).reason)
        return self._answer()

    async def _rules(self, request: web.Request) -> web.StreamResponse:
        order = msgspec.json.decode(await request.read(), type=_Rules)
        rules = read_rules(order.text, order.name)
        writes = await asyncio.to_thread(recent_writes, self._journal)
        tried = try_rules(rules, self._patcher.findings, writes)
        if order.use:
            self._patcher.use_rules(order.text, order.name)
        return web.json_response(tried | {"used": order.use})


def recent_writes(journal: Path) -> list[bytes]:
    """Return the last MOST_WRITES requests of the journal, the oldest first.

    Return none if there is no journal.  Raises JournalError if it is damaged.
    """
    try:
        reader = JournalReader(journal)
    except JournalError:
        return []
    last: deque[bytes] = deque(maxlen=MOST_WRITES)
    checkpoints = reader.checkpoints()[-2:]
    for entry in reader.entries(checkpoints[0]) if checkpoints else ():
        if isinstance(entry, Record):
            last.append(entry.request)
    return list(last)


def try_rules(
    rules: RuleSet, findings: Sequence[Finding], writes: Sequence[bytes]
) -> dict[str, Any]:
    """Return what rules would explain of recorded differences, and match of recent writes."""
    found = classify([each.difference for each in findings], rules)
    return {
        "rules": [
            {
                "name": rule.name,
                "explains": rules.used[rule.name],
                "requests": sum(rules.asks(rule, request) for request in writes),
            }
            for rule in rules.rules
        ],
        "unexpected": sum(not each.expected for each in found),
        "log": len(writes),
    }


def describe(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain data."""
    return {
        **show(finding.difference),
        "label": finding.comparison.label,
        "kinds": [str(kind) for kind in finding.comparison.kinds],
        "old": finding.comparison.old,
        "new": finding.comparison.new,
        "headers": list(finding.comparison.headers),
        "paths": list(finding.comparison.paths or ()),
        "rule": finding.explanation.rule,
        "problem": finding.explanation.problem,
    }
