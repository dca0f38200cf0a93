"""The progress screen, and interim results."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from faultinject.campaign.assessment import AssessedMission
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.records import MissionRow
from faultinject.campaign.run.interim import CellResult, InterimResults, results_of
from faultinject.campaign.run.screen import CampaignScreen, duration
from faultinject.campaign.store.tally import Tally
from faultinject.results.outcome import Outcome
from tests.faultinject.campaign.workers.test_dispatch import SPEC

DOSES = """
title = "Doses"
question = "softerrors"
doses = [{ flips = 100, voted = 10, nv = 20 }]
"""


def test_interim_results_have_an_interval_for_each_stratum() -> None:
    planned = plan(parse(SPEC), 7)
    tallies = {
        "f0": Tally(correct=10),
        "f1": Tally(correct=8, timeout=1, excluded=1),
        "f2": Tally(correct=1, detected=4, silent_corruption=1),
        "f3": Tally(detected=4),
    }
    interim = results_of(planned.spec, planned.cells, tallies)
    f0, f1, f2, _ = interim.cells
    assert (f0.rate, f0.low, f0.trials) == (0.0, 0.0, 10)
    assert f0.high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert (f1.trials, f1.failures, f1.excluded) == (9, 1, 1)
    assert f2.wrong == 1
    assert len(interim.estimates) == 1 and interim.estimates[0].startswith("R_sys 0.")


def test_interim_results_have_no_estimate_when_a_stratum_is_missing() -> None:
    planned = plan(parse(SPEC), 7)
    interim = results_of(planned.spec, planned.cells, {"f0": Tally(correct=3)})
    assert interim.estimates == ()
    assert [cell.rate for cell in interim.cells] == [0.0, None, None, None]


def test_interim_results_compare_both_designs_of_a_dose() -> None:
    planned = plan(parse(DOSES), 1)
    tallies = {
        "dose-flip-ram-100": Tally(correct=9, detected=1),
        "dose-flip-ram-100-nv": Tally(correct=10, timeout=10),
    }
    interim = results_of(planned.spec, planned.cells, tallies)
    [estimate] = interim.estimates
    assert estimate.startswith("100 x flip-ram: R_M 0.500 [") and "R_sys 0.900 [" in estimate


def view() -> InterimResults:
    cell = CellResult(
        name="f0",
        voted=True,
        planned=50,
        trials=2,
        failures=1,
        wrong=1,
        excluded=0,
        rate=0.5,
        low=0.1,
        high=0.9,
    )
    return InterimResults(cells=(cell,), estimates=("R_sys 0.9 [0.8, 0.95]",))


def assess(row: MissionRow) -> AssessedMission:
    """Give a row the outcome that its reason for being lost names, else "correct"."""
    outcome = Outcome(row.lost or "correct")
    return AssessedMission(
        index=row.index, stratum="f0", outcome=outcome, requests_outcome=outcome, problem="wrong",
    )  # fmt: skip


def shown(*, terminal: bool, voted: bool = True) -> tuple[CampaignScreen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, soft_wrap=True)
    screen = CampaignScreen(
        console, done=10, total=100, goal=100, results=view, assess=assess, voted=lambda _: voted
    )
    return screen, out


def test_screen_shows_progress_rate_time_left_and_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    screen, out = shown(terminal=False)
    with screen:
        assert screen.progress == "10 of 100 missions"
        for index in range(10):
            screen.row(MissionRow(index=index), again=False)
            now += 2
        screen.row(MissionRow(index=0), again=True)  # stored already
        assert screen.progress == "20 of 100 missions, 1,620 an hour, 3 min left"
        screen.poll()
    assert "20 of 100 missions, 1,620 an hour, 3 min left; R_sys 0.9 [0.8, 0.95]" in out.getvalue()


@pytest.mark.parametrize("voted", [True, False])
def test_screen_prints_a_wrong_reply_of_the_voter_only(voted: bool) -> None:
    screen, out = shown(terminal=False, voted=voted)
    with screen:
        screen.row(MissionRow(index=62, lost="silent-corruption"), again=False)
    assert ("mission 62: a wrong reply was released" in out.getvalue()) == voted


def test_screen_stays_on_a_terminal() -> None:
    screen, out = shown(terminal=True)
    with screen:
        screen.row(MissionRow(index=1, lost="timeout"), again=False)
        screen.poll()
        screen.stopping = "the workers are ending their guests"
    text = out.getvalue()
    assert "11 of 100 missions" in text and "1 timeout" in text
    assert "the workers are ending their guests" in text and "0.1000 to 0.9000" in text


def test_duration_is_short_text() -> None:
    assert [duration(each) for each in (3.2, 89, 91, 3600, 12_000)] == [
        "3 s", "89 s", "2 min", "60 min", "3 h 20 min",
    ]  # fmt: skip
