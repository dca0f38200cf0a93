"""Agreed time: it advances whatever the wall clock does, and is neither sudden nor backwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voter.core.engine_time import SECOND, ClockChange, EngineTime

HOUR = 3600.0
START = 1_700_000_000.0
PATIENCE = 60.0


class Host:
    """A host with a steady clock, and a wall clock that can be set."""

    def __init__(self, last: float = 0.0) -> None:
        self.time = EngineTime(PATIENCE)
        self.offset = START
        self.changes: list[ClockChange] = []
        if last:
            self.time.resume(round(last * SECOND))
        self.tick(0.0)

    def tick(self, seconds: float) -> float:
        """Let time pass; return agreed time in seconds since the start."""
        now = self.time.now + seconds
        change = self.time.tick(now, round((now + self.offset) * SECOND))
        if any(change):
            self.changes.append(change)
        return self.agreed

    def run(self, seconds: float) -> float:
        for _ in range(round(seconds)):
            self.tick(1.0)
        return self.agreed

    @property
    def agreed(self) -> float:
        return self.time.agreed_ns / SECOND - START


def test_agreed_time_is_the_wall_clock_while_nobody_sets_it() -> None:
    host = Host()
    assert host.run(100) == pytest.approx(100)
    assert host.changes == []


def test_clock_that_is_wrong_for_a_moment_is_not_followed() -> None:
    host = Host()
    host.offset += 25 * HOUR
    assert host.run(30) == pytest.approx(30, rel=0.06)
    host.offset -= 25 * HOUR
    assert host.run(30) == pytest.approx(60, rel=0.06)
    assert [round(change.wall_ns / SECOND / HOUR) for change in host.changes] == [25, -25]
    assert not any(change.step_ns for change in host.changes)


def test_clock_that_stays_ahead_is_followed_by_one_reported_step() -> None:
    host = Host()
    host.offset += 25 * HOUR
    assert host.run(PATIENCE + 5) == pytest.approx(25 * HOUR + PATIENCE + 5)
    host.run(100)
    steps = [change.step_ns / SECOND for change in host.changes if change.step_ns]
    assert steps == [pytest.approx(25 * HOUR, abs=5)]


def test_time_advances_at_half_speed_while_the_wall_clock_is_behind() -> None:
    host = Host()
    host.offset -= 25 * HOUR
    before = host.agreed
    assert host.run(1000) - before == pytest.approx(500)
    assert [change.step_ns for change in host.changes] == [0]


@pytest.mark.parametrize("days", [-3.0, 3.0])
@pytest.mark.parametrize("ticked", [True, False])
def test_restarted_voter_continues_from_the_later_of_journal_and_wall_clock(
    days: float, ticked: bool
) -> None:
    last = START - days * 24 * HOUR
    if ticked:
        host = Host()
        host.time.resume(round(last * SECOND))
    else:
        host = Host(last)
    assert host.agreed == pytest.approx(max(0.0, last - START))
    before = host.agreed
    assert 40 <= host.run(100) - before <= 106


def test_time_of_a_voter_that_was_stopped_is_a_step() -> None:
    host = Host()
    assert host.tick(25 * HOUR) == pytest.approx(25 * HOUR)
    assert [change.step_ns / SECOND for change in host.changes] == [pytest.approx(25 * HOUR)]


@given(st.lists(st.tuples(st.floats(0, 59), st.floats(-1e6, 1e6)), max_size=50))
def test_rate_is_bounded_between_steps_whatever_the_clocks_do(
    moves: list[tuple[float, float]],
) -> None:
    host = Host()
    for seconds, offset in moves:
        host.offset = START + offset
        before, steps = host.time.agreed_ns, len(host.changes)
        host.tick(seconds)
        stepped = sum(change.step_ns for change in host.changes[steps:])
        gained = host.time.agreed_ns - before - stepped
        assert seconds / 2 - 1e-5 <= gained / SECOND <= seconds * 1.05 + 1e-5
