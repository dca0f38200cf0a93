"""A revert that was interrupted, or that is not possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.node.records import Layout
from deploy.supervisor.observer import EventHistory
from deploy.supervisor.reverting import Reverter, RevertOrder, complete_revert
from tests.deploy.replay.journals import JournalMaker, make_journal, put
from tests.deploy.supervisor.running import Running, plan
from tests.errors import raises
from voter.journal.reader import JournalReader
from voter.journal.revert import plan_revert

ORDER = RevertOrder(before=25, rule="poison", detail="PUT /kv/a")


async def journaled(directory: Path) -> Layout:
    """Make a stopped node with 30 writes, 10 of them after the last checkpoint, at 22."""

    def fill(maker: JournalMaker) -> Any:
        for part in range(3):
            for number in range(10):
                maker.write(put(f"k{number}", str(part)))
            if part < 2:
                yield

    layout = plan(directory)
    await make_journal(layout.journal, fill)
    return layout


def newest(layout: Layout) -> int:
    return max(each.seq for each in JournalReader(layout.journal).checkpoints())


@pytest.mark.parametrize("planned", [False, True])
async def test_next_supervisor_completes_a_revert(scratch: Path, planned: bool) -> None:
    layout, history = await journaled(scratch / "n"), EventHistory()
    record: dict[str, Any] = {"order": {"before": 25, "rule": "poison"}, "time": 1.0}
    expected = plan_revert(layout.journal, 25)
    if planned:
        names = expected.__struct_fields__
        record["plan"] = {name: getattr(expected, name) for name in names}
    layout.revert.write_text(json.dumps(record))
    await complete_revert(layout, history)
    assert newest(layout) == expected.seq
    (event,) = history.after(0)
    assert (event["event"], event["lost"], event["interrupted"]) == ("reverted", 10, True)
    await complete_revert(layout, history)
    assert len(history.after(0)) == 1, "it is done once"


async def test_revert_that_was_done_and_not_reported_is_not_done_again(scratch: Path) -> None:
    layout, history = await journaled(scratch / "n"), EventHistory()
    expected = plan_revert(layout.journal, 25)
    names = expected.__struct_fields__
    record = {
        "order": {"before": 25, "rule": "poison"}, "time": 1.0,
        "plan": {name: getattr(expected, name) for name in names},
    }  # fmt: skip
    for _ in range(2):
        layout.revert.write_text(json.dumps(record))
        await complete_revert(layout, history)
        assert newest(layout) == expected.seq


async def test_damaged_record_of_a_revert_is_named_and_nothing_is_started(scratch: Path) -> None:
    layout = await journaled(scratch / "n")
    layout.revert.write_text('{"order": 1}')
    with raises("TV0788", "revert.json"):
        await complete_revert(layout, EventHistory())
    assert newest(layout) == 22


async def test_node_without_a_journal_is_not_reverted(scratch: Path) -> None:
    running = Running(plan(scratch / "n", durability="none"))
    await running.start_ready()
    try:
        pid = await running.voter_pid()
        reverter = Reverter(running.layout, running.guests, running.supervisor.history)
        with raises("TV0789", "no journal"):
            await reverter.revert(ORDER)
        assert await running.voter_pid() == pid
        assert not running.layout.revert.exists()
    finally:
        await running.stop()
