"""Guests are replaced by fresh ones, on request and in turn, while clients are served."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.commands.control_client import ask
from deploy.errors import DeployError
from deploy.machine.spec import GuestState
from tests.deploy.supervisor.running import Running, running
from tests.errors import logs, raises
from tests.waiting import until
from voter.commands.terminal import CommandError


class Load:
    """A client that sends one write after another on one connection."""

    def __init__(self, node: Running) -> None:
        self.node = node
        self.answered = 0
        self.failed: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._send())
        await until(lambda: self.answered > 5)
        return self

    async def _send(self) -> None:
        async with await self.node.client() as client:
            while True:
                answer = await client.request("PUT", f"/kv/k{self.answered % 50}", b"v")
                if answer.status not in (200, 201, 204):
                    self.failed.append(str(answer.status))
                self.answered += 1
                await asyncio.sleep(0.002)

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        before = self.answered
        await until(lambda: self.answered > before + 5)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.mark.parametrize("by", ["clone", "boot"])
async def test_all_guests_are_replaced_under_load_without_a_failed_request(
    scratch: Path, by: str
) -> None:
    async with running(scratch) as node:
        async with Load(node) as load:
            for guest in ("g1", "g2", "g3"):
                done = await node.supervisor.rejuvenate(guest, by=by)  # type: ignore[arg-type]
                assert done["guest"] == guest
                assert (await node.status())["status"] in ("ready", "degraded")
        assert load.failed == []
        assert sorted(await node.states()) == ["g1", "g2", "g4"]
        assert await node.all_active()
        assert [start[0] for start in node.node.starts] == ["g4", "g1", "g2"]
        assert len(node.events("rejuvenated")) == 3
        assert (await node.status())["rejuvenation"]["done"] == 3


async def test_guest_is_restored_in_place(scratch: Path) -> None:
    async with running(scratch) as node:
        done = await node.supervisor.rejuvenate("g2", by="in-place")
        assert (done["by"], node.restores()) == ("in-place", [0, 1, 0])
        assert await node.all_active()
        assert node.node.starts == []


async def test_guest_is_not_restored_in_place_when_the_majority_needs_it(scratch: Path) -> None:
    async with running(scratch, repair="off") as node:
        await node.guests["g1"].kill()
        await until(lambda: node.has_state("g1", "dead"))
        with raises("TV0719", match="one of the last 2 guests"):
            await node.supervisor.rejuvenate("g2", by="in-place")
        assert node.guests["g2"].state is GuestState.READY


async def test_missing_memory_is_reported_and_the_guest_stays(scratch: Path) -> None:
    async with running(scratch) as node:
        node.node.fail_start = True
        with logs("TV0745"), pytest.raises(DeployError, match="use --in-place"):
            await node.supervisor.rejuvenate("g2")
        assert sorted(await node.states()) == ["g1", "g2", "g3"]
        assert await node.all_active()
        [event] = node.events("rejuvenation failed")
        assert (event["guest"], event["automatic"]) == ("g2", False)
        status = await node.status()
        assert (status["rejuvenation"]["failed"], status["operation"]) == (1, None)


async def test_cancelled_rejuvenation_leaves_the_guest(scratch: Path) -> None:
    async with running(scratch) as node:
        node.node.hold_start.clear()
        task = asyncio.create_task(node.supervisor.rejuvenate("g2"))
        await until(lambda: node.node.starts != [])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await node.status())["operation"] is None
        assert sorted(await node.states()) == ["g1", "g2", "g3"]
        node.node.hold_start.set()
        assert (await node.supervisor.rejuvenate("g2"))["slot"] == "g4"


async def test_faulty_guest_is_replaced_and_its_fault_is_over(scratch: Path) -> None:
    async with running(scratch) as node:
        await node.supervisor.inject("corrupt-reply", "g2", None)
        await node.supervisor.rejuvenate("g2")
        status = await node.status()
        assert [guest["fault"] for guest in status["guests"]] == [None] * 3
        await until(node.all_active)
        # The slot is clean when it is used again.
        await node.supervisor.rejuvenate("g1")
        async with Load(node) as load:
            pass
        assert load.failed == []
        assert await node.all_active()


async def test_node_replaces_the_guest_that_has_run_longest_in_turn(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(scratch, rejuvenate_every=1.5) as node:
        async with Load(node) as load:
            await until(lambda: len(node.events("rejuvenated")) >= 4, seconds=60)
        assert load.failed == []
        events = node.events("rejuvenated")[:4]
        assert [event["guest"] for event in events] == ["g1", "g2", "g3", "g4"]
        assert all(event["automatic"] for event in events)
        facts = (await node.status())["rejuvenation"]
        assert facts["every"] == 1.5
        assert facts["next"]["time"] > time.time() - 30


async def test_automatic_rejuvenation_waits_until_all_guests_vote(scratch: Path) -> None:
    async with running(scratch, rejuvenate_every=1.5, repair="off") as node:
        await node.guests["g3"].kill()
        done = len(node.events("rejuvenated"))

        async def postponed() -> bool:
            return "repair comes first" in str((await node.status())["rejuvenation"]["problem"])

        await until(postponed)
        assert len(node.events("rejuvenated")) <= done + 1


async def test_automatic_rejuvenation_that_fails_is_tried_again_when_the_next_is_due(
    scratch: Path,
) -> None:
    async with running(scratch, rejuvenate_every=1.5) as node:
        node.node.fail_start = True
        await until(lambda: len(node.events("rejuvenation failed")) >= 2, seconds=60)
        assert "cannot be started" in (await node.status())["rejuvenation"]["problem"]
        times = [event["time"] for event in node.events("rejuvenation failed")]
        assert times[1] - times[0] > 0.3
        node.node.fail_start = False
        await until(lambda: node.events("rejuvenated") != [], seconds=60)
        assert await node.all_active()


async def test_command_line_reaches_the_control_socket(scratch: Path) -> None:
    async with running(scratch) as node:
        order = {"guest": "g1", "by": None, "share": 25}
        done = await asyncio.to_thread(ask, node.layout, "POST", "/rejuvenate", order)
        assert (done["guest"], done["slot"], done["how"]) == ("g1", "g4", "cloned")
        assert node.node.starts == [("g4", "clone", 25, None)]
        wrong: tuple[tuple[dict[str, Any], str], ...] = (
            ({"guest": "g9", "by": None, "share": None}, "TV0114"),
            ({"guest": "g2", "by": "magic", "share": None}, "TV0734"),
            ({"guest": "g2", "by": None, "share": 101}, "TV0734"),
        )
        for bad, code in wrong:
            with pytest.raises(CommandError) as caught:
                await asyncio.to_thread(ask, node.layout, "POST", "/rejuvenate", bad)
            assert caught.value.error_code == code


async def test_nothing_is_started_while_the_disk_cannot_be_written(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(scratch) as node:
        node.supervisor.storage.problem = "the disk is full"
        with raises("TV0746", match="the disk is full"):
            await node.supervisor.rejuvenate("g2")
        node.supervisor.storage.problem = ""
        assert node.node.starts == []
