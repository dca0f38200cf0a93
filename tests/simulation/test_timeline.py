"""The timeline: it shows what happened, and changes nothing."""

from __future__ import annotations

from faultinject.simulation.plan import make_plan
from faultinject.simulation.run import run
from faultinject.simulation.timeline import Timeline, describe
from voter.core import events as ev

SEED = 77009623


def test_a_run_with_a_timeline_takes_the_same_course() -> None:
    timeline = Timeline()
    assert run(make_plan(SEED), timeline).trace == run(make_plan(SEED)).trace
    assert timeline.lines


def test_it_shows_requests_votes_faults_the_journal_and_who_holds_what() -> None:
    timeline = Timeline()
    run(make_plan(SEED), timeline)
    text = "\n".join(timeline.lines)
    for words in (
        "client sends", "send to g0, g1, g2", "replies to", "release", "journal: write",
        "journal is durable", "FAULT     0 expel", "continues from checkpoint",
        "the writes that replicas hold", "holds the state after",
    ):  # fmt: skip
        assert words in text, words


def test_times_never_go_back() -> None:
    timeline = Timeline()
    run(make_plan(SEED), timeline)
    times = [float(line.split()[0]) for line in timeline.lines]
    assert times == sorted(times)


def test_every_event_and_effect_has_words() -> None:
    quiet = {"Tick", "Heard", "Ping", "Piece", "Event", "Effect"}
    kinds = [
        kind for kind in (*ev.Event.__subclasses__(), *ev.Effect.__subclasses__())
        if kind.__name__ not in quiet
    ]  # fmt: skip
    assert len(kinds) > 25
    from faultinject.simulation import timeline

    assert not {kind.__name__ for kind in kinds if kind not in timeline._DESCRIPTIONS}
    assert describe(ev.Synced(3)) == "journal is durable up to entry 3"
