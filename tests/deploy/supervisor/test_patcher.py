"""The patcher: quarantine, promotion one by one, and the way back, also when it is killed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from deploy.machine.spec import GuestState
from deploy.node.records import Layout
from deploy.patching.record import read_patch
from deploy.supervisor import patch_mover
from deploy.supervisor import patcher as patcher_module
from deploy.supervisor.patch_routes import describe, try_rules
from guests.protocol.message import encode_request
from tests.deploy.supervisor.patch_world import PatchWorld, image, order
from tests.errors import logs, raises
from tests.waiting import until

RULES = '[[expect]]\nname = "fixed"\npath = "/a"\nold.status = 500\nnew.status = 200\n'


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PatchWorld]:
    monkeypatch.setattr(patcher_module, "PASS_INTERVAL", 0.01)
    layout = Layout(tmp_path)
    layout.prepare()
    made = PatchWorld(layout)
    made.start()
    yield made
    await made.stop()


async def reach(world: PatchWorld, phase: str) -> None:
    await until(lambda: world.phase == phase and (not world.record.final or not world.record.slot))


async def in_quarantine(world: PatchWorld, **changes: Any) -> None:
    await world.patcher.start(order(**changes))
    await reach(world, "quarantine")


# ---- quarantine


async def test_copy_gets_into_quarantine_and_its_replies_are_counted(world: PatchWorld) -> None:
    await in_quarantine(world, after=50)
    assert world.table["g4"] == "observer"
    world.compare(20)
    await until(lambda: world.record.compared == 20)
    assert "20 of 50 requests" in world.patcher.verdict().waits_for
    with raises("TV0774", match="has not passed"):
        world.patcher.promote()
    assert world.checkpoint_seq == 0
    world.compare(30)
    await until(lambda: world.patcher.verdict().passed)
    assert world.phase == "quarantine"
    assert world.patched == set()


async def test_automatic_promotion_replaces_all_voters(world: PatchWorld) -> None:
    await in_quarantine(world, after=10, auto=True)
    world.compare(10)
    await reach(world, "done")
    assert len(world.patched) == 3
    assert [role for role in world.table.values() if role == "voter"] == ["voter"] * 3
    assert len(world.changes) == 3
    assert world.fewest == 3
    assert world.node_image == image("new")
    assert world.guests[world.free() or ""].state == GuestState.ABSENT
    phases = [e["phase"] for e in world.history.after(0) if e["event"] == "patch"]
    assert phases == ["preparing", "quarantine", "promoting", "done"]


async def test_unexpected_difference_rejects_an_automatic_patch(world: PatchWorld) -> None:
    await in_quarantine(world, after=10, auto=True)
    world.differ()
    with logs("TV0775"):
        await reach(world, "rejected")
    assert world.record.reason == "unexpected differences: 1 x status, body"
    assert world.table["g4"] == "retired"
    assert world.patched == set()


async def test_expected_difference_does_not_stop_a_promotion(world: PatchWorld) -> None:
    await in_quarantine(world, after=10, auto=True, rules=RULES, rules_name="r.toml")
    world.differ()
    world.compare(10)
    await reach(world, "done")
    assert world.patcher.verdict().expected == {"fixed": 1}


async def test_difference_that_is_on_its_way_stops_a_promotion(world: PatchWorld) -> None:
    world.delay = 0.5
    await in_quarantine(world, after=10, auto=True)
    await until(lambda: world.patcher.verdict().waits_for)
    world.differ()
    world.compare(10)
    await reach(world, "rejected")
    assert world.patched == set()


async def test_rules_can_be_tried_and_then_used(world: PatchWorld) -> None:
    await in_quarantine(world, after=1)
    world.differ()
    await until(lambda: world.patcher.findings)
    assert not world.patcher.verdict().passed
    from deploy.patching.rules import read_rules

    writes = [encode_request("GET", "/a"), encode_request("GET", "/b"), b"no request"]
    tried = try_rules(read_rules(RULES, "r"), world.patcher.findings, writes)
    assert tried == {
        "rules": [{"name": "fixed", "explains": 1, "requests": 1}], "unexpected": 0, "log": 3
    }  # fmt: skip
    assert not world.patcher.verdict().passed
    world.patcher.use_rules(RULES, "r.toml")
    await until(lambda: world.patcher.verdict().passed)
    shown = describe(world.patcher.findings[0])
    assert (shown["rule"], shown["old"], shown["new"]) == ("fixed", 500, 200)


async def test_rule_that_matches_everything_is_refused_and_nothing_changes(
    world: PatchWorld,
) -> None:
    await in_quarantine(world)
    with raises("TV0773"):
        world.patcher.use_rules('[[expect]]\nname = "all"\n', "r.toml")
    assert world.record.rules == ""


async def test_copy_with_another_state_is_not_promoted(world: PatchWorld) -> None:
    world.other_state = True
    await in_quarantine(world, after=5, auto=True)
    world.compare(5)
    await reach(world, "rejected")
    assert world.record.reason == "unexpected differences: 1 x state"
    assert world.patched == set()


async def test_crash_of_the_copys_service_is_a_difference(world: PatchWorld) -> None:
    await in_quarantine(world, after=1)
    world.compare(1)
    await until(lambda: world.patcher.verdict().passed)
    world.crashes["g4"] += 1
    await until(lambda: world.patcher.verdict().unexpected == {"crash": 1})
    assert not world.patcher.verdict().passed


async def test_copy_that_is_late_on_average_is_a_difference(world: PatchWorld) -> None:
    await in_quarantine(world)
    await until(lambda: world.record.quarantined is not None)
    world.compare(5)
    await until(lambda: world.record.compared == 5)
    world.compare(40, behind=3.0)
    await until(lambda: world.patcher.verdict().unexpected == {"latency": 1})


async def test_copy_whose_machine_ends_is_rejected(world: PatchWorld) -> None:
    await in_quarantine(world)
    world.guests["g4"].state = GuestState.DEAD
    await reach(world, "rejected")
    assert "virtual machine ended" in world.record.reason
    assert world.patcher.verdict().unexpected == {"crash": 1}


async def test_copy_that_does_not_start_is_rejected(world: PatchWorld) -> None:
    world.fails = "guest g4 never became ready: it panicked"
    await world.patcher.start(order())
    with logs("TV0775"):
        await reach(world, "rejected")
    assert "never became ready: it panicked" in world.record.reason
    assert world.table["g4"] == "retired"


# ---- orders that cannot be carried out


async def test_second_patch_is_refused_while_one_is_under_way(world: PatchWorld) -> None:
    await in_quarantine(world)
    with raises("TV0771", match="already under way: it is quarantine"):
        await world.patcher.start(order())
    world.patcher.reject("")
    await reach(world, "rejected")
    await in_quarantine(world)
    assert world.record.number == 2


async def test_patch_is_refused_while_the_free_slot_is_in_use(world: PatchWorld) -> None:
    world.busy = "g2 is rejuvenated"
    with raises("TV0771", match="in use: g2 is rejuvenated"):
        await world.patcher.start(order())


async def test_patch_to_the_running_image_is_refused(world: PatchWorld) -> None:
    with raises("TV0769", match="nothing would change"):
        await world.patcher.start(order(image=image("old")))


@pytest.mark.parametrize("name,form", [("counter", 2), ("other", 1)])
async def test_patch_with_another_state_format_is_refused(
    world: PatchWorld, name: str, form: int
) -> None:
    world.layout.journal.mkdir()
    identity = {"service": "counter", "state_format": 1, "more": True}
    (world.layout.journal / "identity.json").write_bytes(msgspec.json.encode(identity))
    with raises("TV0772", match=f"{name} with state format {form}, and the node holds .* with 1"):
        await world.patcher.start(order(name=name, state_format=form))
    await in_quarantine(world, name="counter", state_format=1)


@pytest.mark.parametrize("call", ["promote", "reject", "abort"])
async def test_order_without_a_patch_is_refused(world: PatchWorld, call: str) -> None:
    orders: dict[str, Any] = {
        "promote": lambda: world.patcher.promote(force=True),
        "reject": lambda: world.patcher.reject(""),
        "abort": lambda: world.patcher.abort(""),
    }
    with raises("TV0770", match="has no patch"):
        orders[call]()
    world.hold.clear()
    await world.patcher.start(order())
    if call != "abort":
        with raises("TV0770", match="a patch that is preparing"):
            orders[call]()


async def test_damaged_record_refuses_every_order(world: PatchWorld) -> None:
    await world.stop()
    world.layout.patch.write_text("{")
    with logs("TV0779"):
        await world.restart()
    with raises("TV0779"):
        await world.patcher.start(order())


# ---- the way back


async def test_abort_before_the_copy_runs_ends_its_start(world: PatchWorld) -> None:
    world.hold.clear()
    await world.patcher.start(order())
    await until(lambda: world.phase == "preparing")
    world.patcher.abort("changed my mind")
    await reach(world, "aborted")
    assert world.record.reason == "changed my mind"
    assert world.table["g4"] == "retired"


async def test_versions_that_differ_change_places_as_a_majority(world: PatchWorld) -> None:
    await in_quarantine(world, after=2, auto=True, rules=RULES, rules_name="r.toml")
    world.differ()
    world.compare(2)
    await reach(world, "done")
    retired, joined, last = world.changes
    assert list(retired.values()) == ["retired"]
    assert sorted(joined.values()) == ["retired", "voter", "voter"]
    assert sorted(last.values()) == ["retired", "voter"]
    assert world.fewest == 2
    assert len(world.patched) == 3
    assert not world.held


@pytest.mark.parametrize("patched", [0, 2])
async def test_versions_that_differ_return_as_a_majority(world: PatchWorld, patched: int) -> None:
    await in_quarantine(world, after=2, rules=RULES, rules_name="r.toml")
    world.differ()
    world.compare(2)
    await until(lambda: world.patcher.verdict().passed)
    world.hold_after = patched
    world.patcher.promote()
    await until(lambda: world.changes and len(world.patched) == patched)
    await until(lambda: world.phase == "promoting")
    world.patcher.abort("no")
    world.hold_after = -1
    world.hold.set()
    await reach(world, "aborted")
    assert world.patched == set()
    assert sorted(world.table.values()) == ["retired", "voter", "voter", "voter"]
    assert world.node_image == image("old")
    assert not world.held


@pytest.mark.parametrize("promoted", [0, 1, 2])
async def test_abort_while_promoting_returns_to_the_old_image(
    world: PatchWorld, promoted: int
) -> None:
    await in_quarantine(world, after=1)
    world.compare(1)
    await until(lambda: world.patcher.verdict().passed)
    world.hold_after = promoted
    if promoted == 0:
        world.inactive = {"g1", "g2", "g3"}
    world.patcher.promote()
    await until(lambda: len(world.patched) == promoted and world.phase == "promoting")
    world.patcher.abort("too slow")
    world.hold_after = -1
    world.hold.set()
    world.inactive = set()
    await reach(world, "aborted")
    assert world.patched == set()
    assert world.node_image == image("old")
    assert world.fewest == 3
    assert sorted(world.table.values()) == ["retired", "voter", "voter", "voter"]


async def test_promotion_waits_until_all_others_vote_and_says_so(
    world: PatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_mover, "WAIT_WARNING", 0.0)
    await in_quarantine(world, after=1)
    world.inactive = {"g1", "g2"}
    with logs("TV0776"):
        world.patcher.promote(force=True)
        await until(lambda: world.refused == 3)
    assert world.patcher.waits_for == "only 2 are active"
    assert world.patched == set()
    world.inactive = {"g1"}
    await until(lambda: world.patched == {"g4"})
    assert world.changes[0] == {"g4": "voter", "g1": "retired"}
    await reach(world, "done")


# ---- killed supervisors


@pytest.mark.parametrize("steps", range(4))
async def test_killed_supervisor_continues_a_promotion(world: PatchWorld, steps: int) -> None:
    await in_quarantine(world, after=1)
    world.inactive = {"g1", "g2", "g3"}
    world.patcher.promote(force=True)
    await until(lambda: world.phase == "promoting")
    for _ in range(steps):
        world.inactive = set()
        before = len(world.changes)
        await until(lambda before=before: len(world.changes) > before or world.record.final)  # type: ignore[misc]
        await world.restart()
    world.inactive = set()
    await world.restart()
    await reach(world, "done")
    assert len(world.patched) == 3
    assert world.fewest == 3


async def test_quarantine_survives_a_killed_supervisor(world: PatchWorld) -> None:
    await in_quarantine(world, after=30)
    world.differ()
    world.compare(9)
    await until(lambda: world.patcher.findings and world.record.compared == 10)
    await world.stop()
    assert read_patch(world.layout.patch) is not None
    await world.restart()
    assert world.phase == "quarantine"
    assert len(world.patcher.findings) == 1
    world.differ()
    await until(lambda: len(world.patcher.findings) == 2)


async def test_copy_is_gone_when_the_node_was_restarted(world: PatchWorld) -> None:
    await in_quarantine(world)
    await world.restart(taken_over=False)
    await reach(world, "aborted")
    assert "restarted" in world.record.reason
    assert world.table["g4"] == "retired"


async def test_node_that_starts_with_another_image_has_no_patch_under_way(
    world: PatchWorld,
) -> None:
    await in_quarantine(world)
    world.node_image = image("third")
    await world.restart(taken_over=False)
    await reach(world, "aborted")
    assert "another image" in world.record.reason


async def test_silent_voter_delays_a_patch_only(world: PatchWorld) -> None:
    await in_quarantine(world, after=1, auto=True)
    world.down = True
    world.compare(1)
    await until(lambda: world.observer.voter_status is None)
    world.down, world.pid = False, 101

    def answered_until_done() -> bool:
        world.compare(1)
        return world.phase == "done"

    await until(answered_until_done)


async def test_full_disk_refuses_an_order_before_anything_is_done(
    world: PatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_quarantine(world)

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploy.patching.record.write_json", full)
    with raises("TV0778", match="No space left"):
        world.patcher.promote(force=True)
    assert world.phase == "quarantine"
    monkeypatch.undo()
    world.patcher.promote(force=True)
    await reach(world, "done")
