"""What is shown of a run, and what the rows so far are said to show."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec import parse
from faultinject.campaign.records import MissionRow, Outcome
from faultinject.campaign.run.running import CellView, InterimResults, look_at
from faultinject.campaign.run.screen import CampaignScreen, duration
from faultinject.campaign.store.tally import Tally
from tests.faultinject.campaign.workers.test_runner import SPEC

DOSES = """
title = "Doses"
question = "softerrors"
doses = [{ flips = 100, voted = 10, nv = 20 }]
"""


def test_what_the_rows_show_has_an_interval_for_every_stratum() -> None:
    planned = plan(parse(SPEC), 7)
    tallies = {
        "f0": Tally(correct=10),
        "f1": Tally(correct=8, timeout=1, void=1),
        "f2": Tally(correct=1, detected=4, silent=1),
        "f3": Tally(detected=4),
    }
    running = look_at(planned.spec, planned.cells, tallies)
    f0, f1, f2, _ = running.cells
    assert (f0.rate, f0.low, f0.trials) == (0.0, 0.0, 10)
    assert f0.high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert (f1.trials, f1.failures, f1.void) == (9, 1, 1)
    assert f2.silent == running.silent == 1
    assert len(running.words) == 1 and running.words[0].startswith("R_sys 0.")


def test_without_every_stratum_there_is_no_system_yet() -> None:
    planned = plan(parse(SPEC), 7)
    running = look_at(planned.spec, planned.cells, {"f0": Tally(correct=3)})
    assert running.words == ()
    assert [cell.rate for cell in running.cells] == [0.0, None, None, None]


def test_doses_show_both_designs_beside_each_other() -> None:
    planned = plan(parse(DOSES), 1)
    tallies = {
        "dose-flip-ram-100": Tally(correct=9, detected=1),
        "dose-flip-ram-100-nv": Tally(correct=10, timeout=10),
    }
    running = look_at(planned.spec, planned.cells, tallies)
    assert len(running.words) == 1
    words = running.words[0]
    assert words.startswith("100 x flip-ram: R_M 0.500 [") and "R_sys 0.900 [" in words


def view() -> InterimResults:
    cell = CellView(
        name="f0",
        voted=True,
        planned=50,
        trials=2,
        failures=1,
        silent=1,
        void=0,
        rate=0.5,
        low=0.1,
        high=0.9,
    )
    return InterimResults(cells=(cell,), words=("R_sys 0.9 [0.8, 0.95]",))


def shown(*, terminal: bool) -> tuple[CampaignScreen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, soft_wrap=True)
    return CampaignScreen(console, done=10, total=100, goal=100, look=view), out


def test_done_rate_time_left_and_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    screen, out = shown(terminal=False)
    with screen:
        assert screen.progress == "10 of 100 missions"
        for index in range(10):
            screen.row(MissionRow(index=index, outcome=Outcome.CORRECT), again=False)
            now += 2
        screen.row(MissionRow(index=0, outcome=Outcome.CORRECT), again=True)  # a twin is no mission
        assert screen.progress == "20 of 100 missions, 1,620 an hour, 3 min left"
        screen.look()
    assert "20 of 100 missions, 1,620 an hour, 3 min left; R_sys 0.9 [0.8, 0.95]" in out.getvalue()


def test_a_silent_wrong_reply_is_told_at_once() -> None:
    screen, out = shown(terminal=False)
    with screen:
        screen.row(
            MissionRow(index=62, outcome=Outcome.SILENT, words="request 9: 4 [1]"), again=False
        )
    assert "mission 62: a wrong reply was released request 9: 4 [1]" in out.getvalue()


def test_a_plain_guests_wrong_reply_is_no_release() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    screen = CampaignScreen(console, done=0, total=1, goal=1, look=view, voted=lambda _: False)
    with screen:
        screen.row(MissionRow(index=62, outcome=Outcome.SILENT), again=False)
    assert "released" not in out.getvalue()


def test_on_a_terminal_it_stands() -> None:
    screen, out = shown(terminal=True)
    with screen:
        screen.row(MissionRow(index=1, outcome=None, void="not applied"), again=False)
        screen.look()
        screen.stopping = "the workers end their guests"
    said = out.getvalue()
    assert "11 of 100 missions" in said and "1 void" in said
    assert "the workers end their guests" in said and "0.1000 to 0.9000" in said


def test_duration() -> None:
    assert [duration(each) for each in (3.2, 89, 91, 3600, 12_000)] == [
        "3 s", "89 s", "2 min", "60 min", "3 h 20 min",
    ]  # fmt: skip
