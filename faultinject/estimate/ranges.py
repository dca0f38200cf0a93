"""For which R_M the voted node is better at a given R_V: Figure 7 read sideways, as measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import msgspec

from faultinject.estimate.strata import Band, check_probability

__all__ = ["BetterRange", "better_range"]

STEPS = 500
"""How many R_M are looked at before the ends are bisected: the gain is smooth between them."""
HALVINGS = 40
"""Bisections of a step: to 1e-14."""

Ends = tuple[float, float]


class BetterRange(msgspec.Struct, frozen=True, kw_only=True):
    """R_M, lowest and highest, between which the voted node is better than the plain one.

    ``sure``: all of the band says so.  ``seen``: by the shares as they were counted.  ``possible``:
    some of the band allows it.  None where there is no such R_M.  Where there are several such
    ranges it is the longest: that of 700 missions with all guests hit not one succeeded does not
    exclude that one in 300 does, which at R_M below .003 would be more than plain.
    """

    rv: float
    sure: Ends | None
    seen: Ends | None
    possible: Ends | None


def better_range(found: Band, rv: float, rh: float = 1.0) -> BetterRange:
    """Where R_sys - R_H R_M is above 0.  Raises EstimateError for an R_V or R_H out of [0, 1]."""
    check_probability("R_V", rv)
    check_probability("R_H", rh)
    return BetterRange(
        rv=rv,
        sure=_ends(lambda rm: found.gain(rm, rv, rh).low > 0.0),
        seen=_ends(lambda rm: found.gain(rm, rv, rh).value > 0.0),
        possible=_ends(lambda rm: found.gain(rm, rv, rh).high > 0.0),
    )


def _ends(better: Callable[[float], bool]) -> Ends | None:
    looks = groupby(range(STEPS + 1), key=lambda i: better(i / STEPS))
    inside = [list(steps) for yes, steps in looks if yes]
    if not inside:
        return None
    longest = max(inside, key=len)
    first, last = longest[0], longest[-1]
    low = 0.0 if first == 0 else _turn(better, first / STEPS, (first - 1) / STEPS)
    high = 1.0 if last == STEPS else _turn(better, last / STEPS, (last + 1) / STEPS)
    return low, high


def _turn(better: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where ``better`` changes between the two."""
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2.0
        if better(middle):
            inside = middle
        else:
            outside = middle
    return inside
