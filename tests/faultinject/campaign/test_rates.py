"""How long missions take, and what a plan says of itself before it is run."""

from __future__ import annotations

import pytest

from faultinject.campaign.plan import plan
from faultinject.campaign.rates import Rates, learn
from faultinject.campaign.spec import load, parse
from faultinject.campaign.summary import summarize
from faultinject.campaign.tally import Tally, latency_of
from tests.faultinject.campaign.specs import SMALL, small_plan

__all__: list[str] = []


def test_rates_are_learned_from_missions() -> None:
    rates = learn(
        [((), 0.2), ((), 0.4), (("crash",), 2.3), (("hang",), 0.5), (("crash", "voter-kill"), 3.0)]
    )
    assert rates is not None
    assert rates.clean == pytest.approx(0.3)
    assert rates.kinds["crash"] == pytest.approx(2.0)
    assert rates.kinds["hang"] == pytest.approx(0.2)
    assert rates.kinds["voter-kill"] == pytest.approx(1.5 - 0.15)
    assert rates.missions == 5
    assert learn([]) is None


def test_a_mission_takes_what_its_faults_take() -> None:
    rates = Rates(clean=0.3, kinds={"crash": 2.0, "corrupt-reply": 0.0})
    for mission in small_plan().missions:
        if mission.stratum in ("f1", "f2") and not mission.alike:
            crashes = sum(hit.kind == "crash" for hit in mission.hits)
            assert rates.mission(mission) == pytest.approx(0.3 + 2.0 * crashes)
    dose = next(m for m in small_plan().missions if m.stratum == "dose-flip-ram-50-nv")
    assert rates.mission(dose) == pytest.approx(0.3 + 1.0), "a kind never seen: the others' mean"


def test_a_plan_tells_its_missions_its_reach_and_its_time() -> None:
    spec, _ = load("inequality4")
    summary = summarize(plan(spec, 1), Rates(clean=0.36), workers=2)
    assert summary.seconds == pytest.approx(0.36 * summary.missions / 2)
    text = "\n".join(summary.lines())
    assert "f0             8,000  voted: nothing hit" in text
    assert "g1               500  voted: 1 guest and the voter hit" in text
    assert "from q = 0.044 on" in text, "STATISTICS.md: 6,000 clean missions reach q = .05"
    assert "minutes with 2 workers" in text


def test_doses_and_shots_tell_how_wide_their_intervals_will_be() -> None:
    text = "\n".join(summarize(small_plan()).lines())
    assert "doses: R_M of the plain design" in text
    assert "how long it takes is not known yet" in text


def test_a_plan_that_cannot_bound_f0_says_so() -> None:
    text = "\n".join(summarize(plan(parse(SMALL), 1)).lines())
    assert "every result is given that there are none" in text


def test_a_tally_counts_failures_as_the_paper_does() -> None:
    tally = Tally.of(
        {"silent": 1, "voter-lost": 2, "detected": 3, "timeout": 4, "correct": 5, None: 6}
    )
    assert (tally.trials, tally.failures, tally.successes, tally.void) == (15, 10, 5, 6)
    assert tally + tally == Tally.of(
        {"silent": 2, "voter-lost": 4, "detected": 6, "timeout": 8, "correct": 10, None: 12}
    )
    counts = tally.counts()
    assert (counts.trials, counts.failures, counts.silent, counts.void) == (15, 10, 1, 6)


def test_percentiles_are_measured_ones() -> None:
    latency = latency_of([number / 1000 for number in range(200, 0, -1)], 3)
    assert (latency.count, latency.unanswered) == (200, 3)
    assert (latency.p50, latency.p95, latency.p99, latency.max) == (0.1, 0.19, 0.198, 0.2)
    assert latency_of([]).max == 0.0
