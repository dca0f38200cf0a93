"""Rounds: every target is measured once in a round, in random order.

Whatever slows this machine for a while then slows all targets alike.  A ratio of two targets is
taken within a round, and the median over rounds is reported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from statistics import median
from typing import Literal, NamedTuple, Protocol, TypeVar

__all__ = ["IN_FLIGHT", "Goal", "Measured", "medians", "ratios", "run_rounds"]

IN_FLIGHT = 64
"""Requests in flight while throughput is measured."""


class Measured(Protocol):
    """One target in one round."""

    @property
    def target(self) -> str:
        """Its name."""

    @property
    def p50(self) -> float:
        """The median latency with one request in flight, seconds."""

    @property
    def rate(self) -> float:
        """Requests a second with 64 in flight."""


M = TypeVar("M", bound=Measured)


class Goal(NamedTuple):
    """A ratio of two targets, and the value to reach: 0 if the ratio is only reported.

    A latency has to be at most the value, a rate at least.
    """

    measure: Literal["p50", "rate"]
    upper: str
    lower: str
    reach: float = 0.0

    def reached(self, value: float) -> bool:
        """Return whether a measured ratio meets the goal."""
        return value <= self.reach if self.measure == "p50" else value >= self.reach

    def describe(self) -> str:
        """Return the goal in words; an empty string without one."""
        bound = "at most" if self.measure == "p50" else "at least"
        return f"{bound} {self.reach:g}" if self.reach else ""

    def of(self, measured: Measured) -> float:
        """Return the figure that the ratio is made of."""
        return measured.p50 if self.measure == "p50" else measured.rate


async def run_rounds(
    names: Sequence[str],
    measure: Callable[[str, int], Awaitable[M]],
    *,
    rounds: int,
    seed: int,
    progress: Callable[[str], None],
) -> list[list[M]]:
    """Call ``measure(name, round)`` for each target in each round; return results by round.

    The results of a round are in the order of ``names``.
    """
    random = Random(seed)
    results = []
    for at in range(rounds):
        done: dict[str, M] = {}
        for name in random.sample(sorted(names), len(names)):
            progress(f"round {at + 1} of {rounds}: {name}")
            done[name] = await measure(name, at)
        results.append([done[name] for name in names])
    return results


def medians(rounds: Sequence[Sequence[M]], value: Callable[[M], float]) -> dict[str, float]:
    """Return the median over rounds of a figure, by target."""
    return {
        series[0].target: median(value(each) for each in series)
        for series in zip(*rounds, strict=True)
    }


def ratios(goals: Mapping[str, Goal], rounds: Sequence[Sequence[Measured]]) -> dict[str, float]:
    """Return the median over rounds of each ratio whose two targets were measured."""
    found = {}
    for name, goal in goals.items():
        values = []
        for done in rounds:
            figures = {each.target: goal.of(each) for each in done}
            if goal.upper in figures and goal.lower in figures:
                values.append(figures[goal.upper] / figures[goal.lower])
        if values:
            found[name] = median(values)
    return found
