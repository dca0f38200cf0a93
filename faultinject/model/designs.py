"""The best design at given (R_M, R_V, n), a question that the paper leaves open."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from faultinject.model.outcomes import FailureMode, Outcomes, guest_outcomes, node_outcomes
from faultinject.model.paired import Paired, count, probability
from faultinject.model.reliability import series

__all__ = [
    "WITHIN",
    "Chosen",
    "Design",
    "RankedDesign",
    "best_design",
    "designs",
    "evaluate",
    "rank",
]

WITHIN = 0.1
"""The share of the greatest gain that may be lost for fewer guests."""


class Design(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """``n`` guests of which ``m`` must agree; plain (NV) is one guest without a voter."""

    n: int
    m: int
    plain: bool = False

    @property
    def name(self) -> str:
        """``NV``, ``1-of-4``, ``2-of-3``."""
        return "NV" if self.plain else f"{self.m}-of-{self.n}"


class RankedDesign(msgspec.Struct, frozen=True, kw_only=True):
    """A design with the outcomes of its missions; ``gain``: its reliability minus that of NV."""

    design: Design
    outcomes: Outcomes
    gain: float


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The recommended design, and the most reliable one regardless of cost."""

    take: RankedDesign
    best: RankedDesign


def designs(n: int) -> Iterator[Design]:
    """NV, and each m-of-k for k from 2 to ``n`` (at most 100) whose vote is sound: m = 1, m > k/2.

    Fewest guests first.
    """
    most = count("the number of VMs n", n, 1, 100)
    yield Design(n=1, m=1, plain=True)
    for size in range(2, most + 1):
        yield Design(n=size, m=1)
        for m in range(size // 2 + 1, size + 1):
            yield Design(n=size, m=m)


def evaluate(
    design: Design, rm: float, rv: float, rh: float = 1.0, failing: FailureMode | None = None
) -> RankedDesign:
    """Return the outcomes of a mission on ``design``.  NV has no V, so R_V does not affect it.

    Raises ModelError for a value that is no probability.
    """
    hardware, voter = probability("R_H", rh), probability("R_V", rv)
    layer = hardware if design.plain else series(hardware, voter)
    found = node_outcomes(layer, guest_outcomes(rm, design.m, design.n, failing))
    plain = series(hardware, probability("R_M", rm))
    gain = 0.0 if design.plain else _difference(found.correct, plain)
    return RankedDesign(design=design, outcomes=found, gain=gain)


def rank(
    rm: float, rv: float, n: int, rh: float = 1.0, failing: FailureMode | None = None
) -> list[RankedDesign]:
    """Return every design of up to ``n`` guests, most reliable first, then fewest guests."""
    found = [evaluate(each, rm, rv, rh, failing) for each in designs(n)]
    return sorted(found, key=lambda each: (each.outcomes.correct.down, each.design))


def best_design(
    rm: float, rv: float, n: int, rh: float = 1.0, failing: FailureMode | None = None
) -> Chosen:
    """Return the design with fewest guests that has at least 9/10 of the greatest gain over NV.

    NV where nothing is better.
    """
    found = rank(rm, rv, n, rh, failing)
    gains = {each.design: each.gain for each in found}
    by_design = {each.design: each for each in found}
    take = by_design[_take(gains)]
    best = max(found, key=lambda each: (each.gain, -each.design.n))
    return Chosen(take=take, best=best)


def _difference(one: Paired, other: Paired) -> float:
    """one - other, by the smaller sides."""
    return other.down - one.down if other > 0.5 else float(one) - float(other)


def _take(gains: dict[Design, float]) -> Design:
    greatest = max(gains.values())
    if greatest <= 0.0:
        return Design(n=1, m=1, plain=True)
    enough = [each for each, gain in gains.items() if gain >= (1.0 - WITHIN) * greatest]
    return min(enough, key=lambda each: (each.n, -gains[each]))
