"""Durations of missions, the summary of a plan, and tallies."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.campaign.planning.durations import MissionDurations, MissionShape, learn
from faultinject.campaign.planning.kept_durations import ENOUGH, keep_durations, usual_durations
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import load, parse
from faultinject.campaign.planning.summary import summarize
from faultinject.campaign.store.tally import Tally
from tests.errors import logs
from tests.faultinject.campaign.specs import small_plan

__all__: list[str] = []


def ran(stratum: str, seconds: float, *kinds: str, forced: bool = True) -> MissionShape:
    return MissionShape(stratum=stratum, kinds=kinds, forced=forced, seconds=seconds)


def test_learn_returns_mean_durations() -> None:
    durations = learn([
        ran("f0", 0.2), ran("f0", 0.4), ran("f1", 2.3, "crash"), ran("f1", 0.5, "hang"),
        ran("g1", 3.0, "crash", "voter-kill"), ran("dose-7-nv", 6.0, "flip-ram", forced=False),
    ])  # fmt: skip
    assert durations is not None
    assert durations.clean == pytest.approx(0.3)
    assert durations.kinds == pytest.approx({"crash": 2.3, "hang": 0.5})
    expected = {"f0": 0.3, "f1": 1.4, "g1": 3.0, "dose-7-nv": 6.0}
    assert durations.strata == pytest.approx(expected)
    assert durations.missions == 6
    assert learn([]) is None


def test_updated_keeps_rates_that_the_newer_run_lacks() -> None:
    before = MissionDurations(
        clean=0.3, kinds={"crash": 2.0, "hang": 1.0}, strata={"f1": 1.5}, missions=9
    )
    now = MissionDurations(kinds={"crash": 3.0}, strata={"f2": 4.0}, missions=5)
    assert before.updated(now) == MissionDurations(
        clean=0.3, kinds={"crash": 3.0, "hang": 1.0}, strata={"f1": 1.5, "f2": 4.0}, missions=5
    )


def test_rates_estimate_a_mission_by_stratum_or_longest_fault() -> None:
    durations = MissionDurations(
        clean=0.3, kinds={"crash": 2.0, "corrupt-reply": 1.0}, strata={"f1": 1.25}
    )
    for mission in small_plan().missions:
        if mission.stratum == "f1":
            assert durations.mission(mission) == 1.25
        elif mission.stratum == "f0":
            assert durations.mission(mission) == 0.3
        elif mission.stratum == "f2":
            crashes = any(hit.kind == "crash" for hit in mission.injections)
            assert durations.mission(mission) == (2.0 if crashes else 1.0)
    dose = next(m for m in small_plan().missions if m.stratum == "dose-flip-ram-50-nv")
    assert durations.mission(dose) == pytest.approx(1.5), "a kind never seen: the others' mean"


def test_usual_rates_predict_the_kept_campaigns() -> None:
    # softerrors: 80 minutes with four workers, commoncause 28.
    for name, minutes in (("softerrors", 80), ("commoncause", 28)):
        spec, _ = load(name)
        seconds = summarize(plan(spec, 1), usual_durations(), workers=4).seconds
        assert seconds is not None
        assert seconds / 60 == pytest.approx(minutes, rel=0.15)


def test_summary_shows_missions_precision_and_duration() -> None:
    spec, _ = load("inequality4")
    summary = summarize(plan(spec, 1), MissionDurations(clean=0.36), workers=2)
    assert summary.seconds == pytest.approx(0.36 * summary.missions / 2)
    text = "\n".join(summary.lines())
    assert "f0             8,000  voted: nothing hit" in text
    assert "g1               500  voted: 1 guest and the voter hit" in text
    assert "for q >= 0.044" in text, "docs/statistics.md: 6,000 clean missions reach q = .05"
    assert "minutes with 2 workers" in text


def test_plan_shows_what_it_detects_in_each_stratum_and_in_all() -> None:
    summary = summarize(plan(load("inequality4")[0], 1))
    least = {cell.name: cell.detectable for cell in summary.cells}
    assert least["f0"] == pytest.approx(1 - 0.2 ** (1 / 8000))
    assert least["f3"] == pytest.approx(1 - 0.2 ** (1 / 700))
    pooled = {(each.subject, each.where): each for each in summary.power}
    found = pooled["2/3", "q = 0.05 (if f_0 departs)"]
    assert found.pooled and found.of == pytest.approx(0.00725)
    assert found.least == pytest.approx(0.857375 * (1 - 0.2 ** (1 / 8000)))
    text = "\n".join(summary.lines())
    assert "nothing hit [0.0002]" in text
    assert "0.00017 (2.4% of U) at q = 0.05" in text


def test_plan_shows_which_doses_can_discriminate_and_what_all_detect() -> None:
    summary = summarize(plan(load("softerrors")[0], 1))
    assert all(cell.detectable is None for cell in summary.cells)
    least = {(each.quantity, each.where): each.least for each in summary.power}
    below = "R_sys below the model"
    assert least[below, "R_M = 0.5"] is None, "300 missions detect no possible departure"
    at_ninety = least[below, "R_M = 0.9"]
    assert at_ninety is not None and 0.05 < at_ninety < 0.1
    alone = least["intraclass correlation (G-test)", "R_M = 0.7"]
    [pooled] = [e for e in summary.power if e.pooled and "failed guests" in e.quantity]
    assert alone is not None and pooled.least is not None and pooled.least < alone / 2
    text = "\n".join(summary.lines())
    assert "detected with 80 % probability" in text and "no possible one at" in text


def test_plan_with_doses_of_several_sizes_shows_the_power_of_each() -> None:
    text = load("softerrors")[1].replace("voted = 300\nnv = 300", "voted = 3000\nnv = 3000", 1)
    summary = summarize(plan(parse(text), 1))
    least = {each.where: each.least for each in summary.power if "G-test" in each.quantity}
    few, many = (least[f"R_M = 0.9 ({n} + {n} missions)"] for n in ("300", "3,000"))
    assert few is not None and many is not None and many < few / 2


def test_plan_shows_what_common_causes_detect() -> None:
    summary = summarize(plan(load("commoncause")[0], 1))
    found = [each for each in summary.power if each.subject == "shot-flip-all-500"]
    assert len(found) == 4 and all(each.least and 0.1 < each.least < 0.5 for each in found)


def test_summary_shows_the_precision_of_each_design() -> None:
    text = "\n".join(summarize(plan(load("oneofn")[0], 1)).lines())
    for n in range(1, 10):
        assert f"1/{n}: R_sys would be known to within +-0.0" in text
    assert "1/1, repair on: R_sys would be known to" in text
    moved = "\n".join(summarize(plan(load("moved-guest")[0], 1)).lines())
    assert "1/6: R_sys would be known to" in moved


def test_tally_counts_failures_as_the_paper_does() -> None:
    tally = Tally.of(
        {
            "silent-corruption": 1,
            "voter-lost": 2,
            "detected": 3,
            "timeout": 4,
            "correct": 5,
            None: 6,
        }
    )
    assert (tally.trials, tally.failures, tally.successes, tally.excluded) == (15, 10, 5, 6)
    assert tally + tally == Tally.of(
        {
            "silent-corruption": 2,
            "voter-lost": 4,
            "detected": 6,
            "timeout": 8,
            "correct": 10,
            None: 12,
        }
    )
    counts = tally.counts()
    assert (counts.trials, counts.failures, counts.silent, counts.excluded) == (15, 10, 1, 6)


def test_durations_that_cannot_be_saved_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRIVISOR_CACHE", str(tmp_path / "file"))
    with logs("TV0536"):
        keep_durations(MissionDurations(missions=ENOUGH))
