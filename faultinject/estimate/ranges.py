"""The measured range of R_M in which the voted node is better at a given R_V (Figure 7)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import msgspec

from faultinject.estimate.intervals import check_probability
from faultinject.estimate.strata import Band

__all__ = ["BetterRange", "better_range"]

STEPS = 500
"""Grid steps of R_M before the ends are bisected; the gain is smooth between them."""
HALVINGS = 40
"""Bisections of one step: to 1e-14."""

Ends = tuple[float, float]


class BetterRange(msgspec.Struct, frozen=True, kw_only=True):
    """Lowest and highest R_M between which the voted node is better than the plain one.

    ``certain``: the whole band is above the plain node.  ``estimated``: the point estimate is.
    ``possible``: some of the band is.  None where there is no such R_M.  Of several ranges it is
    the longest: 700 missions with all guests hit and no success do not exclude a success rate of
    1 in 300, which at R_M below .003 would exceed the plain node's.
    """

    rv: float
    certain: Ends | None
    estimated: Ends | None
    possible: Ends | None


def better_range(found: Band, rv: float, rh: float = 1.0) -> BetterRange:
    """Find where R_sys - R_H R_M > 0.  Raises EstimateError for an R_V or R_H outside [0, 1]."""
    check_probability("R_V", rv)
    check_probability("R_H", rh)
    return BetterRange(
        rv=rv,
        certain=_ends(lambda rm: found.gain(rm, rv, rh).low > 0.0),
        estimated=_ends(lambda rm: found.gain(rm, rv, rh).value > 0.0),
        possible=_ends(lambda rm: found.gain(rm, rv, rh).high > 0.0),
    )


def _ends(better: Callable[[float], bool]) -> Ends | None:
    runs = groupby(range(STEPS + 1), key=lambda i: better(i / STEPS))
    inside = [list(steps) for yes, steps in runs if yes]
    if not inside:
        return None
    longest = max(inside, key=len)
    first, last = longest[0], longest[-1]
    low = 0.0 if first == 0 else _bisect(better, first / STEPS, (first - 1) / STEPS)
    high = 1.0 if last == STEPS else _bisect(better, last / STEPS, (last + 1) / STEPS)
    return low, high


def _bisect(better: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where ``better`` changes between ``inside`` and ``outside``."""
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2.0
        if better(middle):
            inside = middle
        else:
            outside = middle
    return inside
