"""The monitor of one node: it reads what happens, and has the responder act on what matches.

The monitor is a process of its own.  It reads the request stream from the voter's control socket,
consoles and events from the supervisor's, the use of resources from ``/proc``, and guests' memory
from its files.  Whatever ends or restarts, it connects again.

What is missed is made up for where the journal has it: the writes that were ordered while the
monitor was behind, or between two voters, are read there and judged.  Reads are lost to it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.machine.qemu import ram_file
from deploy.monitor.blocking import BlockList
from deploy.monitor.control import ControlError, call, lines
from deploy.monitor.inline import InlineServer
from deploy.monitor.memory import MemoryJudge
from deploy.monitor.observations import ConsoleJudge, Finding, ResourceJudge, Usage, VoteJudge
from deploy.monitor.recent_log import journaled_writes
from deploy.monitor.requests import Match, RequestJudge, SeenRequest
from deploy.monitor.responder import Responder
from deploy.monitor.rules import MemoryRule, ResourceRule, Rules
from deploy.monitor.targets import Targets, pids_in
from deploy.node.records import Layout, NodeRecord
from guests.protocol.message import MessageError, Request
from voter.core import Policy
from voter.errors import JournalError

__all__ = ["Monitor", "check_node"]

RETRY = 0.05
"""Seconds before a stream that ended is opened again: a voter restarts in about 0.1 s."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

_log = structlog.get_logger(__name__)


def check_node(rules: Rules, layout: Layout, record: NodeRecord, inline: Path) -> None:
    """Raise DeployError if this node cannot be monitored by these rules."""
    names = {f"g{number}" for number in range(1, len(record.uuids))}
    for rule in rules:
        unknown = set(getattr(rule, "guests", ())) - names
        if unknown:
            raise DeployError(
                f"rule {rule.name} names {', '.join(sorted(unknown))}, which is no guest here",
                remedy=f"its guests are {', '.join(sorted(names))}",
                error_code="TV0784",
            )
    if rules.memory and not record.settings.allow_faults:
        raise DeployError(
            f"rule {rules.memory[0].name} reads the guests' memory, which is in no file here",
            remedy=layout.faults_hint,
            error_code="TV0784",
        )
    if rules.inline and record.settings.function != f"unix:{inline}":
        raise DeployError(
            f"rule {rules.inline[0].name} is inline, and this node does not ask the monitor at "
            f"{inline}",
            remedy=f"start the node with {layout.option('function', f'unix:{inline}')}, or take "
            "`inline` out",
            error_code="TV0784",
        )


def describe_request(data: bytes) -> str:
    """Return a request's first line, in printable ASCII and at most 200 characters."""
    try:
        request = Request.decode(data)
        return f"{request.method} {request.target}"[:200]
    except MessageError:
        return f"{data[:60]!r}"


def _finding(match: Match) -> Finding:
    seen = match.request
    text = describe_request(seen.data)
    if match.undecided:
        text += " (a pattern took too long, which counts as a match)"
    return Finding(match.rule, text, None, seen.caller or None, seen.seq)


class Monitor:
    """Monitors a node that runs, until it is stopped or the node is halted.

    ``report`` gets a document for each match.  ``delay``: see ``Responder``.
    """

    def __init__(
        self,
        layout: Layout,
        rules: Rules,
        *,
        report: Callable[[dict[str, Any]], None],
        inline: Path | None = None,
        delay: float = 0.0,
    ) -> None:
        """Raises DeployError if the record of blocked clients cannot be read."""
        self._layout = layout
        self._rules = rules
        self._report = report
        self._targets = Targets()
        self.blocked = BlockList(layout.blocked, layout.voter_control)
        self.responder = Responder(layout, self.blocked, self._targets, report, delay=delay)
        self._inline = inline
        self._judge = RequestJudge([rule for rule in rules.request if not rule.inline])
        self._resources = ResourceJudge(rules.resource)
        self._last = -1  # sequence number of the last request that was judged
        self._pids: dict[str, int] = {}  # of the guests' QEMUs
        self._memory = 0  # bytes of memory of a guest
        self._event = (0, 0)  # the supervisor's pid, and the number of its last event
        self._responses: set[asyncio.Future[None]] = set()  # to what was decided inline
        self.reading = asyncio.Event()
        """Set once the request stream is read."""

    async def run(self) -> None:
        """Monitor until the node is halted.  Raises ControlError if the node does not answer."""
        layout, rules = self._layout, self._rules
        status = await self._refresh()
        inline: InlineServer | None = None
        if rules.inline and self._inline is not None:
            inline = InlineServer(self._inline, rules.inline, self._matched_inline)
            await inline.start()
        known = (await call(layout.supervisor_socket, "GET", "/events?lines=1"))["events"]
        self._event = (status["supervisor"]["pid"], known[-1]["id"] if known else 0)
        parts: list[Coroutine[None, None, None]] = [self._watch_events(status)]
        if any(not rule.inline for rule in rules.request) or self.blocked.clients:
            parts.append(self._watch_requests())
        else:
            self.reading.set()
        if rules.console:
            parts += [self._watch_console(guest["name"]) for guest in status["guests"]]
        if rules.resource:
            parts.append(self._watch_resources(rules.resource))
        self._memory = layout.read_node().settings.memory_mib << 20
        parts += [self._watch_memory(rule) for rule in rules.memory]
        tasks = [asyncio.create_task(part) for part in parts]
        tasks.append(asyncio.create_task(self._until_halted()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if inline is not None:
                inline.stop()
            self._targets.close()

    async def _until_halted(self) -> None:
        await self.responder.halted.wait()
        await self.responder.told.wait()

    async def _refresh(self) -> dict[str, Any]:
        """Ask for the node's status; hold its processes as they are now."""
        status = await call(self._layout.supervisor_socket, "GET", "/status")
        self._targets.hold(pids_in(status))
        pids = {guest["name"]: guest["pid"] for guest in status["guests"] if guest["pid"]}
        for name, pid in self._pids.items():
            if pids.get(name) != pid:
                self._resources.forget(name)
        self._pids = pids
        return status

    async def _stream(
        self, path: Path, target: Callable[[], Awaitable[str]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the documents of a stream without end; it is opened again when it ends."""
        while True:
            with contextlib.suppress(ControlError):
                async for document in lines(path, await target()):
                    yield document
            await asyncio.sleep(RETRY)  # no event reports that it can be opened again

    # ------------------------------------------------------------ requests

    async def _watch_requests(self) -> None:
        async def target() -> str:
            return "/requests"

        async for document in self._stream(self._layout.voter_control, target):
            if not document:  # the stream has begun
                with contextlib.suppress(ControlError):
                    await self.blocked.apply()
                if self._last >= 0:
                    await self._catch_up()
                self.reading.set()
            elif "missed" in document:
                await self._report_gap(document)
                await self._catch_up()
            elif document["seq"] > self._last:
                await self._judge_request(_seen(document))

    async def _judge_request(self, seen: SeenRequest) -> None:
        self._last = seen.seq
        for match in self._judge.judge(seen):
            await self.responder.respond(_finding(match))

    async def _catch_up(self) -> None:
        """Judge the writes of the journal after the last request that was judged."""
        try:
            found = await asyncio.to_thread(
                lambda: list(journaled_writes(self._layout.journal, self._last))
            )
        except JournalError as error:
            _log.info("the journal has no requests for the monitor", reason=str(error))
            return
        for seen in found:
            await self._judge_request(seen)

    async def _report_gap(self, gap: dict[str, Any]) -> None:
        """Report that requests were not seen, because the monitor is too slow."""
        _log.warning(
            "the monitor missed requests",
            requests=gap["missed"], first=gap["first"], last=gap["last"], error_code="TV0791",
        )  # fmt: skip
        self._report({"time": time.time(), **gap})

    def _matched_inline(self, matches: list[Match]) -> None:
        """Report what was decided before it was ordered; the voter blocks its client."""
        for match in matches:
            finding = _finding(match)
            task = asyncio.ensure_future(self.responder.respond(finding, inline=True))
            self._responses.add(task)
            task.add_done_callback(self._responses.discard)

    # --------------------------------------------------------- other sources

    async def _events(self) -> str:
        """Return where the node's events continue; another supervisor numbers them from 1."""
        pid = (await self._refresh())["supervisor"]["pid"]
        if pid != self._event[0]:
            self._event = (pid, 0)
        return f"/events?follow=1&since={self._event[1]}"

    async def _watch_events(self, status: dict[str, Any]) -> None:
        """Follow the node's events: votes, and processes that were replaced."""
        active = [
            guest["name"] for guest in status["guests"] if guest["replica"].get("state") == "active"
        ]
        need = Policy.parse(status["vote"]).need
        judge = VoteJudge(self._rules.vote, need=need, active=active)
        async for event in self._stream(self._layout.supervisor_socket, self._events):
            if not event:
                continue
            self._event = (self._event[0], event["id"])
            if event["event"] == "rule matched":
                continue
            for finding in judge.judge(event):
                await self.responder.respond(finding)
            with contextlib.suppress(ControlError):
                await self._refresh()

    async def _watch_console(self, guest: str) -> None:
        judge = ConsoleJudge(self._rules.console)

        async def target() -> str:
            return f"/logs/{guest}?follow=1"

        async for document in self._stream(self._layout.supervisor_socket, target):
            for finding in judge.judge(guest, document.get("line", "")) if document else ():
                await self.responder.respond(finding)

    async def _watch_resources(self, rules: list[ResourceRule]) -> None:
        pause = min(1.0, max(0.1, min(rule.lasting for rule in rules) / 4))
        while True:
            for guest, pid in self._pids.items():
                usage = _usage(pid)
                for finding in self._resources.judge(guest, usage) if usage else ():
                    await self.responder.respond(finding)
            await asyncio.sleep(pause)  # it is a period

    async def _watch_memory(self, rule: MemoryRule) -> None:
        judge = MemoryJudge(rule)
        while True:
            for guest, pid in self._pids.items():
                if rule.guests and guest not in rule.guests:
                    continue
                try:
                    ram = ram_file(pid, size=self._memory)
                    finding = await asyncio.to_thread(judge.judge, guest, ram)
                except OSError:
                    continue  # the guest has ended just now
                if finding is not None:
                    await self.responder.respond(finding)
            await asyncio.sleep(rule.every)  # it is a period


def _seen(document: dict[str, Any]) -> SeenRequest:
    return SeenRequest(
        document["seq"],
        document["time"],
        document["caller"],
        document["read_only"],
        base64.b64decode(document["request"]),
    )


def _usage(pid: int) -> Usage | None:
    """Return what a process has used; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        resident = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    fields = stat.rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / _TICKS
    return Usage(time.monotonic(), cpu, int(resident) * _PAGE)
