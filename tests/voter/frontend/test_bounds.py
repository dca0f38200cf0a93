"""Deadlines: which connection expires, and when."""

from __future__ import annotations

import pytest

from voter.frontend.bounds import Bounds


class Clocked(Bounds[str, str]):
    """Bounds with a clock that a test sets."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.late: list[tuple[str, str]] = []
        super().__init__(limits, lambda key, phase: self.late.append((key, phase)))
        self.time = 0.0
        self._now = lambda: self.time

    def at(self, time: float) -> list[tuple[str, str]]:
        """Return who is found late at this time."""
        self.time = time
        self.late.clear()
        self.sweep()
        return list(self.late)


@pytest.fixture
def bounds() -> Clocked:
    return Clocked({"short": 1.0, "long": 5.0})


def test_each_falls_due_by_its_phase_once(bounds: Clocked) -> None:
    bounds.enter("a", "long")
    bounds.enter("b", "short")
    bounds.time = 0.5
    bounds.enter("c", "short")
    assert bounds.at(0.9) == []
    assert bounds.at(1.0) == [("b", "short")]
    assert bounds.at(4.9) == [("c", "short")]
    assert bounds.at(9.0) == [("a", "long")]
    assert bounds.at(99.0) == []


def test_entering_again_does_not_extend_the_deadline(bounds: Clocked) -> None:
    bounds.enter("a", "short")
    bounds.time = 0.9
    bounds.enter("a", "short")
    assert bounds.at(1.0) == [("a", "short")]


def test_leaving_and_entering_does(bounds: Clocked) -> None:
    bounds.enter("a", "short")
    bounds.time = 0.9
    bounds.leave("a", "short")
    bounds.enter("a", "short")
    assert bounds.at(1.8) == []
    assert bounds.at(1.9) == [("a", "short")]


def test_a_phase_without_a_limit_never_ends(bounds: Clocked) -> None:
    bounds.enter("a", "endless")
    assert bounds.at(1e9) == []
    bounds.leave("a", "endless")
