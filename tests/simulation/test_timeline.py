"""The timeline shows what happened, and does not change the run."""

from __future__ import annotations

from faultinject.simulation import timeline as module
from faultinject.simulation.plan import make_plan
from faultinject.simulation.run import run
from faultinject.simulation.timeline import Timeline
from voter.core import events as ev

SEED = 77009623


def test_timeline_shows_each_part_in_order_and_does_not_change_the_run() -> None:
    timeline = Timeline()
    assert run(make_plan(SEED), timeline).trace == run(make_plan(SEED)).trace
    text = "\n".join(timeline.lines)
    for part in (
        "client sends", "send to g0, g1, g2", "replies to", "release", "journal: write",
        "journal is durable", "FAULT     0 expel", "continues from checkpoint",
        "the writes that replicas hold", "holds the state after",
    ):  # fmt: skip
        assert part in text, part
    times = [float(line.split()[0]) for line in timeline.lines]
    assert times == sorted(times)


def test_every_event_and_effect_has_a_description() -> None:
    quiet = {"Tick", "Heard", "Ping", "Piece"}
    kinds = {kind.__name__ for kind in (*leaves(ev.Event), *leaves(ev.Effect))} - quiet
    assert len(kinds) > 25
    assert kinds <= {kind.__name__ for kind in module._DESCRIPTIONS}


def leaves(kind: type) -> list[type]:
    """Return the subclasses that have no subclasses."""
    below: list[type] = kind.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [kind]
