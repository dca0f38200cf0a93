"""Repairs that never succeed, and repairs of several guests at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from deploy.errors import HypervisorLost
from tests.deploy.fake_node import FakeGuest
from tests.deploy.supervisor.running import Running, plan
from tests.errors import logs, raises
from tests.waiting import until


async def nothing() -> None:
    """Undo no fault."""


async def end_service_repeatedly(guest: FakeGuest) -> None:
    """Kill the service inside a guest whenever it runs; the agent restarts it each time."""
    while True:
        if guest.pid is not None:
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{guest.pid}/task/{guest.pid}/children")
                for word in path.read_text().split():
                    os.kill(int(word), signal.SIGKILL)
        await asyncio.sleep(0.1)


async def test_repair_of_a_flapping_guest_is_abandoned_and_heal_starts_it_again(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = plain_node
    monkeypatch.setattr("deploy.supervisor.repair_policy.LIMIT", 2)
    monkeypatch.setattr("deploy.supervisor.repair_policy.FIRST_DELAY", 0.1)
    ending = asyncio.create_task(end_service_repeatedly(node.guests["g2"]))
    async with await node.client() as client:

        async def abandoned() -> bool:
            assert (await client.request("PUT", "/kv/a", b"1")).status in (201, 204)
            guest = (await node.status())["guests"][1]
            return bool(guest["repairs"]["abandoned"]) and guest["state"] == "dead"

        with logs("TV0718"):
            await until(abandoned)
        repairs = (await node.status())["guests"][1]["repairs"]
        assert repairs["consecutive"] == node.guests["g2"].restores == 2
        assert "left the vote" in repairs["last_error"]
        assert [event["guest"] for event in node.events("repair abandoned")] == ["g2"]
        await asyncio.sleep(1.0)  # longer than the delay before another repair
        assert await node.has_state("g2", "dead")
        ending.cancel()
        await node.supervisor.heal("g2")
        assert await node.all_active()
        assert not (await node.status())["guests"][1]["repairs"]["abandoned"]


async def test_guest_that_dies_during_its_repair_is_repaired_again(plain_node: Running) -> None:
    guest = plain_node.guests["g3"]
    start = guest.start

    async def start_and_die() -> None:
        guest.start = start  # type: ignore[method-assign]  # the next start succeeds
        await start()
        asyncio.get_running_loop().call_later(0.01, asyncio.ensure_future, guest.kill())

    guest.start = start_and_die  # type: ignore[method-assign]
    await guest.kill()
    await until(lambda: guest.restores == 2)
    await until(plain_node.all_active)


async def test_repair_waits_for_libvirt_and_is_not_counted(plain_node: Running) -> None:
    node, guest = plain_node, plain_node.guests["g2"]
    restore = guest.restore

    async def lose_libvirt() -> None:
        node.node.problem = "the daemon ended"
        guest.restore = restore  # type: ignore[method-assign]
        raise HypervisorLost(node.node.problem)

    guest.restore = lose_libvirt  # type: ignore[method-assign]
    await guest.kill()
    await until(lambda: bool(node.events("libvirt lost")))
    assert node.events("libvirt lost")[0]["reason"] == "the daemon ended"
    status = await node.status()
    assert status["connect_problem"] == "the daemon ended"
    assert status["guests"][1]["repairs"]["consecutive"] == 0
    await asyncio.sleep(1.0)  # longer than two passes
    assert node.restores() == [0, 0, 0]
    async with await node.client() as client:
        assert (await client.request("PUT", "/kv/a", b"1")).status == 201
    node.node.problem = ""
    await until(node.all_active)
    assert node.restores() == [0, 1, 0]
    assert node.events("libvirt works again")


HANGING = """
from guests.service import Context, Reply, Request, Service


class Hanging(Service):
    name = "hanging"

    def apply(self, request: Request, context: Context) -> Reply:
        while request.target == "/hang":
            pass
        return Reply(200, "here")
"""


async def test_guest_that_hangs_again_during_its_repair_is_repaired_again(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, also on a host without a free processor, where no time limit would end the repair.

    A write that hangs the guests is sent to them again after their repair, and then voided.
    """
    monkeypatch.setattr("deploy.machine.contention.UncontendedClock.step", lambda clock: 0.0)
    file = scratch / "hanging.py"
    file.write_text(HANGING)
    node = Running(plan(scratch / "node", allow_faults=False, service=str(file)))
    await node.start_ready()
    try:
        async with await node.client() as client:
            hang = asyncio.create_task(client.request("POST", "/hang", timeout=90.0))
            await until(lambda: bool(node.events("repair failed")))
            assert any("left again" in each["error"] for each in node.events("repair failed"))
            await until(node.all_active)
            assert (await hang).status == 500
            assert (await client.request("POST", "/")).body == b"here"
    finally:
        await node.stop()


async def test_two_voting_guests_are_never_restored_at_once(plain_node: Running) -> None:
    """Each alone is not needed for a majority, but both together are."""
    repairer = plain_node.supervisor._repairer
    both = [repairer.heal(name, undo=nothing, must=True) for name in ("g1", "g2")]
    await asyncio.gather(*both)
    assert plain_node.restores() == [1, 1, 0]
    assert await plain_node.all_active()


async def test_heal_waits_for_the_repair_of_another_guest(plain_node: Running) -> None:
    """While g1 returns, a restore of the voting g2 would leave no majority."""
    release, guest, node = asyncio.Event(), plain_node.guests["g1"], plain_node
    restore = guest.restore

    async def restore_later() -> None:
        await release.wait()
        await restore()

    guest.restore = restore_later  # type: ignore[method-assign]
    await guest.kill()
    await until(lambda: node.supervisor._repairer.describe("g1", 0.0)["in_progress"])
    healing = asyncio.create_task(node.supervisor._repairer.heal("g2", undo=nothing, must=True))
    await asyncio.sleep(0.5)
    assert not healing.done()
    assert await node.has_state("g2", "active")
    release.set()
    await healing
    assert await node.all_active()
    assert node.guests["g2"].restores == 1


async def test_heal_restores_no_guest_that_is_needed_for_a_majority(node: Running) -> None:
    await node.supervisor.inject("crash", "g1", None)
    await until(lambda: node.has_state("g1", "dead"))
    with raises("TV0719", match="last 2 guests that vote"):
        await node.supervisor._repairer.heal("g2", undo=nothing, must=True)
    assert node.guests["g2"].restores == 0
    await node.supervisor.inject("slow", "g2", None)  # needs no restore
    await node.supervisor.heal("g2")
    assert node.guests["g2"].restores == 0
