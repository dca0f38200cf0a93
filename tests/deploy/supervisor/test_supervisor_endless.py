"""Guests that fall again and again, and repairs that meet each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.errors import DeployError
from tests.deploy.fake_node import FakeGuest
from tests.deploy.supervisor.test_supervisor import Running, all_active, has_state, plan, until


@pytest_asyncio.fixture
async def node(scratch: Path) -> AsyncIterator[Running]:
    """Give a node of three that is up and allows faults."""
    running = Running(plan(scratch))
    await running.start()
    assert not running.done(), running.reports
    yield running
    await running.stop()


async def end_service_again_and_again(guest: FakeGuest) -> None:
    """Kill the service inside a guest whenever it runs; the agent starts it anew each time."""
    while True:
        if guest.pid is not None:
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{guest.pid}/task/{guest.pid}/children")
                for word in path.read_text().split():
                    os.kill(int(word), signal.SIGKILL)
        await asyncio.sleep(0.1)


@pytest.mark.timeout(150)
async def test_a_service_that_ends_again_and_again_is_given_up_and_that_is_said(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.repair_policy.LIMIT", 2)
    monkeypatch.setattr("deploy.supervisor.repair_policy.FIRST_DELAY", 0.1)
    ending = asyncio.create_task(end_service_again_and_again(node.node.machines["g2"]))
    async with await node.client() as client:

        async def given_up() -> bool:
            assert (await client.request("PUT", "/kv/a", b"1")).status in (201, 204)
            guest = (await node.supervisor.status())["guests"][1]
            return bool(guest["repairs"]["given_up"]) and guest["state"] == "dead"

        await until(given_up, 50.0)
        guest = (await node.supervisor.status())["guests"][1]
        assert guest["repairs"]["in_row"] == node.node.machines["g2"].put_backs == 2
        assert "fell out of the vote" in guest["repairs"]["last_error"]
        events = [e["what"] for e in node.supervisor.history.after(0) if e["guest"] == "g2"]
        assert events.count("given up") == 1
        await asyncio.sleep(1.0)  # longer than another repair would wait
        assert await has_state(node, "g2", "dead")
        ending.cancel()
        await node.supervisor.heal("g2")
        assert await all_active(node)
        assert not (await node.supervisor.status())["guests"][1]["repairs"]["given_up"]


async def test_a_guest_that_dies_while_it_is_put_back_is_put_back_again(node: Running) -> None:
    guest = node.node.machines["g3"]
    start = guest.start

    async def start_and_die() -> None:
        guest.start = start  # type: ignore[method-assign]  # the next time it lives
        await start()
        asyncio.get_running_loop().call_later(0.01, asyncio.ensure_future, guest.kill())

    guest.start = start_and_die  # type: ignore[method-assign]
    await guest.kill()
    await until(lambda: guest.put_backs == 2)
    await until(lambda: all_active(node))


async def test_two_guests_that_vote_are_never_put_back_at_once(node: Running) -> None:
    """Each alone could be spared; both at once could not."""
    repairer = node.supervisor._repairer
    both = [repairer.heal(name, undo=nothing, must=True) for name in ("g1", "g2")]
    await asyncio.gather(*both)
    assert [node.node.machines[name].put_backs for name in ("g1", "g2", "g3")] == [1, 1, 0]
    assert await all_active(node)


async def test_a_heal_waits_for_the_repair_of_another_guest(node: Running) -> None:
    """While g1 comes back by itself, g2 votes: putting it back then would leave no majority."""
    release, guest = asyncio.Event(), node.node.machines["g1"]
    put_back = guest.put_back

    async def slowly() -> None:
        await release.wait()
        await put_back()

    guest.put_back = slowly  # type: ignore[method-assign]
    await guest.kill()
    await until(lambda: node.supervisor._repairer._busy == {"g1"})
    healing = asyncio.create_task(node.supervisor._repairer.heal("g2", undo=nothing, must=True))
    await asyncio.sleep(0.5)
    assert not healing.done()
    assert await has_state(node, "g2", "active")
    release.set()
    await healing
    assert await all_active(node)
    assert node.node.machines["g2"].put_backs == 1


async def nothing() -> None:
    """There is no fault to undo."""


async def test_a_fault_whose_end_finds_no_majority_ends_later(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.fault_records.HEAL_AGAIN", 0.2)
    heal, refused = node.supervisor._book._heal, 0

    async def refuse_twice(guest: str) -> object:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise DeployError(f"{guest} is one of the last 2 that vote")
        return await heal(guest)

    node.supervisor._book._heal = refuse_twice
    await node.supervisor.inject("corrupt-reply", "g1", 0.2)
    await until(lambda: not node.supervisor._book.held("g1"))
    assert refused == 2
    await until(lambda: all_active(node))
