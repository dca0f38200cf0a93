"""Slots and roles under a supervisor with a real voter, on guests that are processes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.machine.spec import GuestState
from deploy.supervisor.membership import Membership, MembershipBusy, SlotOperation
from deploy.supervisor.membership_record import MembershipRecord, Operation, Step, read_membership
from tests.deploy.supervisor.running import Running, plan, running
from tests.errors import logs, raises
from tests.waiting import until

STEPS: list[Step] = ["starting", "joining", "replacing", "ending"]


async def put(node: Running, count: int) -> None:
    async with await node.client() as client:
        for number in range(count):
            answer = await client.request("PUT", f"/kv/k{number}", b"v")
            assert answer.status in (200, 201, 204)


async def replace_guest(node: Running, guest: str) -> None:
    async with node.supervisor.membership.operation("rejuvenation", guest) as operation:
        await operation.start(by="clone", share=50)
        await operation.join()
        await operation.replace()


def table(node: Running) -> dict[str, str]:
    return node.supervisor.membership.table


def roles(*voters: str) -> dict[str, str]:
    return {name: "voter" if name in voters else "retired" for name in ("g1", "g2", "g3", "g4")}


async def test_free_slot_is_not_a_guest(scratch: Path) -> None:
    async with running(scratch) as node:
        status = await node.status()
        assert [guest["name"] for guest in status["guests"]] == ["g1", "g2", "g3"]
        assert (status["spare"], status["operation"]) == (["g4"], None)
        assert status["roles"]["table"] == roles("g1", "g2", "g3")
        with raises("TV0114", match="no guest 'g4': it has g1, g2, g3"):
            await node.supervisor.inject("crash", "g4", None)


async def test_guest_in_the_free_slot_takes_the_place_of_another(scratch: Path) -> None:
    async with running(scratch) as node:
        await put(node, 20)
        async with node.supervisor.membership.operation("rejuvenation", "g2") as operation:
            assert (operation.slot, operation.guest) == ("g4", "g2")
            await operation.start(by="clone", share=50)
            await operation.join()
            status = await node.status()
            assert {each["name"]: each["role"] for each in status["guests"]}["g4"] == "learner"
            assert status["operation"]["step"] == "joining"
            await put(node, 5)
            await operation.replace()
        assert table(node) == roles("g1", "g3", "g4")
        assert node.guests["g2"].state is GuestState.ABSENT
        status = await node.status()
        assert [each["name"] for each in status["guests"]] == ["g1", "g3", "g4"]
        assert (status["spare"], status["operation"]) == (["g2"], None)
        assert await node.all_active()
        await put(node, 5)
        # The next one takes the slot that is free now.
        async with node.supervisor.membership.operation("rejuvenation", "g1") as operation:
            assert operation.slot == "g2"
            await operation.start(by="boot", share=50)
            await operation.join()
            await operation.replace()
        assert table(node) == roles("g2", "g3", "g4")
        assert await node.all_active()


async def test_second_operation_is_refused_while_one_is_under_way(scratch: Path) -> None:
    async with running(scratch) as node:
        membership = node.supervisor.membership
        async with membership.operation("patch", "g2", role="observer"):
            with raises("TV0740", match="a patch is under way: g4 is to take the place of g2"):
                async with membership.operation("rejuvenation", "g1"):
                    pass
        with raises("TV0743", match="g4 does not vote: its role is retired"):
            async with membership.operation("rejuvenation", "g4"):
                pass


async def test_node_without_a_free_slot_says_so(scratch: Path) -> None:
    async with running(scratch, spares=0) as node:
        with raises("TV0740", match="no free slot .* --in-place"):
            async with node.supervisor.membership.operation("rejuvenation", "g1"):
                pass
        assert await node.all_active()


@pytest.mark.parametrize("after", ["nothing", "start", "join"])
async def test_failed_operation_leaves_the_node_as_before(scratch: Path, after: str) -> None:
    async with running(scratch) as node:

        async def fail() -> None:
            async with node.supervisor.membership.operation("rejuvenation", "g2") as operation:
                if after != "nothing":
                    await operation.start(by="clone", share=50)
                if after == "join":
                    await operation.join()
                raise DeployError("this test")

        with pytest.raises(DeployError, match="this test"):
            await fail()
        assert table(node) == roles("g1", "g2", "g3")
        assert node.guests["g4"].state is GuestState.ABSENT
        assert (await node.status())["operation"] is None
        assert await node.all_active()


async def test_guest_that_ends_while_it_joins_fails_the_operation(scratch: Path) -> None:
    async with running(scratch) as node:
        with raises("TV0742", match="g4 was started and cannot vote: its guest is dead"):
            async with node.supervisor.membership.operation("rejuvenation", "g2") as operation:
                await operation.start(by="clone", share=50)
                await node.guests["g4"].kill()
                await operation.join()
        assert table(node) == roles("g1", "g2", "g3")
        assert await node.all_active()


async def test_guest_that_cannot_be_ended_is_ended_later(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.supervisor.membership.RETRY_INTERVAL", 0.1)
    async with running(scratch) as node:

        async def fail() -> None:
            async with node.supervisor.membership.operation("rejuvenation", "g2") as operation:
                await operation.start(by="clone", share=50)
                node.node.fail_end = True
                await node.guests["g4"].kill()
                await operation.join()

        with logs("TV0744"), pytest.raises(DeployError, match="its guest is dead"):
            await fail()
        assert node.guests["g4"].state is GuestState.DEAD
        node.node.fail_end = False
        await until(lambda: node.guests["g4"].state is GuestState.ABSENT)
        assert sorted(await node.states()) == ["g1", "g2", "g3"]


async def test_change_that_the_voter_rejects_names_its_reason(scratch: Path) -> None:
    async with running(scratch) as node:
        with raises("TV0741", match="needs exactly 3 voters"):
            await node.supervisor.membership.change({"g1": "retired"}, "a test", patience=0.2)
        assert table(node) == roles("g1", "g2", "g3")


async def test_change_that_is_made_already_does_nothing(scratch: Path) -> None:
    async with running(scratch) as node:
        version = node.supervisor.membership.version
        assert await node.supervisor.membership.change({"g1": "voter"}, "a test") == version


async def test_dead_learner_is_not_repaired_and_dead_voter_is(scratch: Path) -> None:
    async with running(scratch) as node:
        async with node.supervisor.membership.operation(
            "patch", "g2", role="observer"
        ) as operation:
            await operation.start(by="clone", share=50)
            await operation.join()
            await node.guests["g4"].kill()
            await node.guests["g1"].kill()
            await until(lambda: node.guests["g1"].restores == 1)
            assert node.guests["g4"].restores == 0
        await until(node.all_active)
        assert table(node) == roles("g1", "g2", "g3")


# ---- crashes


async def carry_out(membership: Membership, operation: SlotOperation, last: Step) -> None:
    """Do an operation's steps up to this one, which is recorded and not done."""
    if last == "starting":
        return
    await operation.start(by="clone", share=50)
    if last == "joining":
        return
    await operation.join()
    if last == "replacing":
        return
    await membership.change({operation.slot: "voter", operation.guest: "retired"}, "a test")


@pytest.mark.parametrize("step", STEPS)
async def test_supervisor_that_dies_in_a_step_leaves_the_state_before_or_after(
    scratch: Path, step: Step
) -> None:
    """The supervisor dies after each step, before the next one is recorded."""
    first = Running(plan(scratch))
    await first.start_ready()
    reached = asyncio.Event()

    async def operate() -> None:
        async with first.supervisor.membership.operation("rejuvenation", "g2") as operation:
            membership = first.supervisor.membership
            await carry_out(membership, operation, step)
            membership.record_step(operation.record, step, survives=False)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(operate())
    try:
        await asyncio.wait_for(reached.wait(), 60)
        await put(first, 5)
        await first.cut_off()
        await asyncio.gather(task, return_exceptions=True)
        second = Running(first.layout, first.node)
        await second.start_ready()
        try:
            done = step == "ending"
            voters = ("g1", "g3", "g4") if done else ("g1", "g2", "g3")
            await until(lambda: second.events("operation found") != [])
            [event] = second.events("operation found")
            assert event["outcome"] == ("complete" if done else "rolled back")
            assert (event["guest"], event["slot"], event["step"]) == ("g2", "g4", step)
            assert table(second) == roles(*voters)
            await until(second.all_active)
            assert sorted(await second.states()) == sorted(voters)
            assert (await second.status())["operation"] is None
            await put(second, 5)
            free = "g2" if done else "g4"
            assert first.node.guests[free].state is GuestState.ABSENT
        finally:
            await second.stop()
    finally:
        task.cancel()


@pytest.mark.parametrize("step", ["joining", "replacing", "ending"])
async def test_host_that_dies_in_a_step_leaves_the_state_before_or_after(
    scratch: Path, step: Step
) -> None:
    """Every process ends, and the record of the roles is as old as the operation."""
    first = Running(plan(scratch))
    await first.start_ready()
    await put(first, 20)
    path, reached = first.layout.membership, asyncio.Event()

    async def operate() -> None:
        async with first.supervisor.membership.operation("rejuvenation", "g2") as operation:
            old = path.read_bytes()
            await carry_out(first.supervisor.membership, operation, step)
            path.write_bytes(old)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(operate())
    await asyncio.wait_for(reached.wait(), 60)
    os.kill(await first.voter_pid(), signal.SIGKILL)
    old = path.read_bytes()
    await first.stop()
    await asyncio.gather(task, return_exceptions=True)
    path.write_bytes(old)
    async with running(scratch) as second:
        done = step == "ending"
        voters = ("g1", "g3", "g4") if done else ("g1", "g2", "g3")
        await until(second.all_active)
        assert table(second) == roles(*voters)
        assert sorted(await second.states()) == sorted(voters)
        [event] = second.events("operation found")
        assert event["outcome"] == ("complete" if done else "rolled back")
        async with await second.client() as client:
            assert (await client.request("GET", "/kv/k19")).body == b"v"


@pytest.mark.parametrize("step", ["joining", "replacing", "ending"])
async def test_voter_that_dies_in_a_step_does_not_fail_the_operation(
    scratch: Path, step: str
) -> None:
    async with running(scratch) as node:
        await put(node, 20)

        async def kill() -> None:
            os.kill(await node.voter_pid(), signal.SIGKILL)

        async with node.supervisor.membership.operation("rejuvenation", "g2") as operation:
            await operation.start(by="clone", share=50)
            if step == "joining":
                await kill()
            await operation.join()
            if step == "replacing":
                await kill()
            await operation.replace(kill if step == "ending" else None)
        await until(node.all_active)
        assert table(node) == roles("g1", "g3", "g4")
        await put(node, 5)


async def test_restarted_voter_knows_the_roles(scratch: Path) -> None:
    async with running(scratch) as node:
        await replace_guest(node, "g1")
        os.kill(await node.voter_pid(), signal.SIGKILL)
        await until(lambda: bool(node.events("voter restarted")))
        await until(node.all_active)
        assert sorted(await node.states()) == ["g2", "g3", "g4"]


async def test_new_start_fills_the_slots_of_the_voters(scratch: Path) -> None:
    async with running(scratch) as node:
        await replace_guest(node, "g1")
    async with running(scratch) as again:
        assert sorted(await again.states()) == ["g2", "g3", "g4"]
        assert again.node.starts == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": 1, "operation": 3}'])
async def test_new_start_with_a_damaged_record_asks_the_voter(scratch: Path, damage: bytes) -> None:
    async with running(scratch) as node:
        await replace_guest(node, "g1")
    node.layout.membership.write_bytes(damage)
    with logs("TV0747"):
        assert read_membership(node.layout.membership) == MembershipRecord()
    async with running(scratch) as again:
        await until(again.all_active)
        assert sorted(await again.states()) == ["g2", "g3", "g4"]
        assert [start[0] for start in again.node.starts] == ["g4"]


async def test_operation_that_survives_is_continued_by_the_next_supervisor(scratch: Path) -> None:
    first = Running(plan(scratch))
    await first.start_ready()
    held = asyncio.Event()

    async def operate() -> None:
        membership = first.supervisor.membership
        async with membership.operation("patch", "g2", role="observer") as operation:
            await operation.start(by="clone", share=50)
            await operation.join()
            operation.hold()
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(operate())
    await held.wait()
    await first.cut_off()
    await asyncio.gather(task, return_exceptions=True)
    second = Running(first.layout, first.node)
    await second.start_ready()
    try:
        membership = second.supervisor.membership
        await membership.reconcile()
        await until(lambda: table(second)["g4"] == "observer")
        with raises("TV0740"):
            async with membership.operation("rejuvenation", "g1"):
                pass
        async with membership.resumed() as operation:
            assert (operation.slot, operation.record.step) == ("g4", "holding")
            await operation.replace()
        assert table(second) == roles("g1", "g3", "g4")
        with pytest.raises(MembershipBusy, match="no operation"):
            async with membership.resumed():
                pass
    finally:
        await second.stop()


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    operation = Operation(kind="patch", guest="g1", slot="g4", role="observer", began=1.5)
    record = MembershipRecord(version=7, roles={"g1": "voter"}, operation=operation)
    record.write(tmp_path / "m.json")
    assert read_membership(tmp_path / "m.json") == record
    assert read_membership(tmp_path / "none.json") == MembershipRecord()
