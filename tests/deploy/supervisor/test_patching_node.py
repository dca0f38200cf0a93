"""Patches on a running node with a real voter, on guests that are processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.commands.control_client import ask
from deploy.node.records import Layout
from deploy.patching.record import PatchImage
from deploy.supervisor.patch_orders import PatchOrder
from tests.deploy.supervisor.running import Running, plan
from tests.waiting import until
from voter.client.errors import RequestError

SERVICE = """
from guests.service import Context, Reply, Request, Service


class Totals(Service):
    name = "totals"

    def __init__(self) -> None:
        self.total = 0

    def apply(self, request: Request, context: Context) -> Reply:
        if request.method == "POST":
            self.total += int(request.body or b"0")
            return Reply(201, b"%d" % self.total)
        if request.path == "/half":
            #HALF
            return Reply(200, b"%d" % (self.total // 2 + self.total % 2))
        return Reply(200, b"%d" % self.total)

    def snapshot(self):
        yield b"%d" % self.total

    def restore(self, state: bytes) -> None:
        self.total = int(state or 0)
"""
FIXED = SERVICE.replace("#HALF", 'return Reply(200, b"%.1f" % (self.total / 2))')
CRASHES = SERVICE.replace("#HALF", "import os; os._exit(3)")
RULES = """
[[expect]]
name = "halves are exact"
method = "GET"
path = "/half"
old.status = 200
new.body = "^[0-9]+[.][05]$"
"""


def planned(scratch: Path) -> Layout:
    """Make a node whose image, for fake guests, is its service's file."""
    file = scratch / "totals.py"
    file.write_text(SERVICE)
    layout = plan(scratch / "node", service=str(file))
    layout.write(msgspec.structs.replace(layout.read_node(), initrd=str(file), image="old"))
    return layout


@contextlib.asynccontextmanager
async def a_node(scratch: Path) -> AsyncIterator[Running]:
    running = Running(planned(scratch))
    await running.start_ready()
    try:
        yield running
    finally:
        await running.stop()


def order(scratch: Path, source: str, name: str = "patched.py", **changes: Any) -> PatchOrder:
    """Return the order for a patch: a fake guest's image is its service's file."""
    file = scratch / name
    file.write_text(source)
    image = PatchImage(
        kernel="-", initrd=str(file), image=name, manifest="-", service=str(file), identity=name
    )
    return PatchOrder(title=name, image=image, name="totals", state_format=1, **changes)


class Load:
    """A client that writes and reads, and what it saw."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.answered = 0
        self.failed: list[str] = []
        self.fewest = 3
        self.halves: list[bytes] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with await self.running.client() as client:
            while True:
                try:
                    await client.request("POST", "/add", b"1")
                    self.halves.append((await client.request("GET", "/half")).body)
                    self.answered += 2
                except RequestError as error:
                    self.failed.append(str(error))
                roles = self.running.supervisor.membership.table.values()
                self.fewest = min(self.fewest, sum(role == "voter" for role in roles))
                await asyncio.sleep(0.002)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def under_load(running: Running) -> AsyncIterator[Load]:
    load = Load(running)
    try:
        yield load
    finally:
        await load.stop()


def phase(running: Running) -> str | None:
    record = running.supervisor.patcher.record
    return None if record is None else str(record.phase)


async def test_fix_is_promoted_under_load_without_a_failed_request(scratch: Path) -> None:
    async with a_node(scratch) as node, under_load(node) as load:
        patcher = node.supervisor.patcher
        await patcher.start(order(scratch, FIXED, after=40, rules=RULES, rules_name="r", auto=True))
        await until(lambda: phase(node) in ("done", "rejected"))
        assert phase(node) == "done", patcher.describe()
        before = load.answered
        await until(lambda: load.answered > before + 20)
        assert load.failed == []
        assert load.fewest == 2, "a majority joins in one step"
        assert load.halves[-1].endswith((b".0", b".5"))
        assert b".5" not in b"".join(load.halves[:5])
        status = await node.status()
        assert status["patch"]["promoted"] == sorted(status["patch"]["promoted"])
        assert len(status["patch"]["promoted"]) == 3
        assert status["service"].endswith("patched.py")
        assert patcher.verdict().expected.keys() == {"halves are exact"}
        await until(node.all_active)


async def test_patch_without_a_difference_never_leaves_fewer_than_three_voters(
    scratch: Path,
) -> None:
    async with a_node(scratch) as node, under_load(node) as load:
        await node.supervisor.patcher.start(order(scratch, SERVICE + "# same", after=40, auto=True))
        await until(lambda: phase(node) in ("done", "rejected"))
        assert phase(node) == "done"
        assert load.failed == []
        assert load.fewest == 3
        await until(node.all_active)


async def test_patch_that_crashes_is_rejected_and_nobody_notices(scratch: Path) -> None:
    async with a_node(scratch) as node, under_load(node) as load:
        await node.supervisor.patcher.start(order(scratch, CRASHES, after=1000, auto=True))
        await until(lambda: phase(node) == "rejected")
        assert "crash" in node.supervisor.patcher.verdict().unexpected
        await until(lambda: len(node.supervisor.membership.used) == 3)
        assert load.failed == []
        before = load.answered
        await until(lambda: load.answered > before + 20)


async def test_abort_in_the_middle_returns_to_the_old_service(scratch: Path) -> None:
    async with a_node(scratch) as node, under_load(node) as load:
        patcher = node.supervisor.patcher
        await patcher.start(order(scratch, FIXED, after=1, rules=RULES, rules_name="r"))
        await until(lambda: phase(node) == "quarantine")
        patcher.promote(force=True)
        await until(lambda: node.events("roles changed")[-1]["roles"].get("g4") == "voter")
        assert phase(node) == "promoting"
        patcher.abort("a test")
        await until(lambda: phase(node) == "aborted")
        await until(node.all_active)
        assert load.failed == []
        before = len(load.halves)
        await until(lambda: len(load.halves) > before + 10)
        assert not any(b"." in half for half in load.halves[-5:])
        assert (await node.status())["service"].endswith("totals.py")


@pytest.mark.parametrize("when", ["preparing", "quarantine", "promoting"])
async def test_patch_continues_after_a_killed_supervisor(scratch: Path, when: str) -> None:
    first = Running(planned(scratch))
    await first.start_ready()
    load = Load(first)
    await first.supervisor.patcher.start(
        order(scratch, FIXED, after=10, rules=RULES, rules_name="r", auto=True)
    )
    await until(lambda: phase(first) == when)
    await load.stop()
    await first.cut_off()
    second = Running(first.layout, first.node)
    await second.start_ready()
    try:
        async with under_load(second) as load:
            await until(lambda: phase(second) == "done", str(second.supervisor.patcher.record))
            assert load.failed == []
        await until(second.all_active)
    finally:
        await second.stop()


async def test_patch_continues_after_a_killed_voter(scratch: Path) -> None:
    async with a_node(scratch) as node:
        patcher = node.supervisor.patcher
        load = Load(node)
        await patcher.start(order(scratch, FIXED, after=20, rules=RULES, rules_name="r"))
        await until(lambda: phase(node) == "quarantine")
        await until(lambda: patcher.verdict().compared >= 20)
        os.kill(await node.voter_pid(), signal.SIGKILL)
        patcher.promote(force=True)
        await until(lambda: phase(node) == "done", str(patcher.waits_for))
        await load.stop()
        await until(node.all_active)


async def test_orders_come_by_the_control_socket(scratch: Path) -> None:
    async with a_node(scratch) as node, under_load(node):
        layout = node.layout
        assert await asyncio.to_thread(ask, layout, "GET", "/patch") == {"patch": None}
        await node.supervisor.patcher.start(order(scratch, FIXED, after=10_000))
        await until(lambda: phase(node) == "quarantine")
        await until(lambda: node.supervisor.patcher.findings)
        found = await asyncio.to_thread(ask, layout, "GET", "/patch/differences")
        first = found["differences"][0]
        assert (first["label"], first["rule"]) == ("body", None)
        body = {"text": RULES, "name": "r.toml", "use": False}
        tried = await asyncio.to_thread(ask, layout, "POST", "/patch/rules", body)
        assert tried["unexpected"] == 0
        assert tried["rules"][0]["explains"] >= 1
        assert tried["rules"][0]["requests"] == 0
        assert tried["log"] > 0
        await asyncio.to_thread(ask, layout, "POST", "/patch/reject", {"reason": "no"})
        await until(lambda: len(node.supervisor.membership.used) == 3)
