"""The inequalities of section 4, solved for the R_V, R_F or n that a design needs.

Bounds are ``Paired``: ``down`` is 1 minus the bound, accurate where it is tiny, and zero or
negative where no R_V < 1 is enough.  All functions raise ModelError for a
question without an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import msgspec

from faultinject.model.paired import ModelError, Paired, count, probability
from faultinject.model.reliability import m_of_n, one_of_n, series
from faultinject.model.tails import all_fail, log_down

__all__ = [
    "Needed",
    "breakeven_rf",
    "breakeven_rv",
    "breakeven_rv_1ofn",
    "breakeven_rv_2of3",
    "guests_needed",
    "guests_to_beat_plain",
    "rm_range",
    "rm_range_2of3",
]


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """Inequality (2): ``guests``, the smallest n that is greater than ``bound``."""

    bound: float
    guests: int


def _working(section: str, rm: float, name: str = "R_M") -> Paired:
    chance = probability(name, rm)
    if chance == 0.0:
        raise ModelError(
            f"{name} = 0: a VM that never works allows no comparison ({section})",
            error_code="TV0603",
        )
    return chance


def breakeven_rv_2of3(rm: float) -> Paired:
    """Inequality (4): the R_V above which 2-of-3 is better, ``1/(3 R_M - 2 R_M^2)``.

    0 < rm <= 1.  It is 1 or more, so that no R_V < 1 is enough, for R_M <= .5 and for R_M = 1;
    lowest, 8/9, at R_M = .75.
    """
    r = _working("Inequality 4", rm)
    gain = float(r) * (1.0 + 2.0 * r.down)  # 3 R - 2 R^2 = R (1 + 2 (1 - R))
    above_half = 1.0 - 2.0 * r.down if r.down < 0.5 else 2.0 * float(r) - 1.0
    room = above_half * r.down / gain  # 1 - bound = (2 R - 1)(1 - R) / gain
    return Paired(1.0 / gain if r <= 0.5 else 1.0 - room, room)


def breakeven_rv_1ofn(rm: float, n: int) -> Paired:
    """Inequality (1): the R_V above which 1-of-n is better, ``R_M / [1 - (1 - R_M)^n]``.

    0 < rm <= 1.  It is 1, so that no R_V < 1 is enough, for n = 1 and for R_M = 1.
    """
    r, size = _working("Inequality 1", rm), count("the number of VMs n", n)
    if size == 1 or r.down == 0.0:
        return Paired(1.0, 0.0)
    served = all_fail(r, size).down
    # 1 - R/(1 - (1-R)^n) = (1-R) [1 - (1-R)^(n-1)] / [1 - (1-R)^n]
    return Paired(float(r) / served, r.down * all_fail(r, size - 1).down / served)


def breakeven_rv(rm: float, m: int, n: int) -> Paired:
    """m-of-n: the R_V above which it is better than the plain node, ``R_M / P(at least m up)``.

    0 < rm <= 1.  May be infinite where P is too small for a float.
    """
    r, size = _working("section 4, voting", rm), count("the number of VMs n", n)
    if m == 1:
        return breakeven_rv_1ofn(r, size)
    if (m, size) == (2, 3):
        return breakeven_rv_2of3(r)
    voted = m_of_n(1.0, 1.0, r, m, size)
    if voted == 0.0:
        return Paired(math.inf, -math.inf)
    return Paired(float(r) / float(voted), (r.down - voted.down) / float(voted))


def rm_range_2of3(rv: float) -> tuple[Paired, Paired] | None:
    """The open range of R_M in which 2-of-3 with this R_V is better (Figure 7); None: nowhere.

    The roots of ``2 R_M^2 - 3 R_M + 1/R_V = 0``; they are real for R_V > 8/9.
    """
    v = probability("R_V", rv)
    if v == 0.0 or (inside := 9.0 - 8.0 / float(v)) <= 0.0:
        return None
    root = math.sqrt(inside)
    high_down = 2.0 * v.down / float(v) / (1.0 + root)  # = lower root - 1/2
    return Paired(0.5 + high_down), Paired(1.0 - high_down, high_down)


def rm_range(rv: float, m: int, n: int) -> tuple[Paired, Paired] | None:
    """The open range of R_M in which m-of-n with this R_V is better than plain; None: nowhere.

    By bisection (to the last float): P(at least m of n)/R_M rises to one peak and falls (from n,
    for m = 1).  The upper end at R_V = 1 is 1; for m = 1 the lower end is 0.
    """
    v, size = probability("R_V", rv), count("the number of VMs n", n)
    need = count("the number of VMs that must agree m", m, 1, size)
    if (need, size) == (2, 3):
        return rm_range_2of3(v)
    if need == size:
        return None  # R_M^n < R_M: a VM more only adds what may fail

    def better(down: float) -> float:  # sign of R_V P - R_M, without cancelling near R_M = 1
        r = Paired.failing(down)
        sys = series(v, m_of_n(1.0, 1.0, r, need, size))
        return r.down - sys.down

    def shape(rm: float) -> float:
        return float(m_of_n(1.0, 1.0, rm, need, size)) / rm

    low, high = 1e-12, 1.0
    for _ in range(200):  # golden section; the ratio has one peak
        left, right = (
            high - (high - low) * 0.618033988749895,
            low + (high - low) * 0.618033988749895,
        )
        low, high = (left, high) if shape(left) <= shape(right) else (low, right)
    peak = 1.0 - (low + high) / 2 if need > 1 else 1.0 - 1e-12
    if better(peak) <= 0.0:
        return None
    upper = 0.0 if v.down == 0.0 else _bisect(better, 0.0, peak)
    lower = 1.0 if need == 1 else _bisect(better, 1.0, peak)
    return Paired.failing(lower), Paired.failing(upper)


def _bisect(sign: Callable[[float], float], outside: float, inside: float) -> float:
    """Where ``sign`` turns positive, from ``outside`` (it is not) to ``inside`` (it is)."""
    for _ in range(1100):  # as far as floats go, near zero too
        middle = (outside + inside) / 2
        if middle in {outside, inside}:
            break
        outside, inside = (outside, middle) if sign(middle) > 0.0 else (middle, inside)
    return inside


def guests_needed(r: float, rv: float, rm: float, rh: float = 1.0) -> Needed:
    """Inequality (2): how many VMs for a node reliability above ``r``.

    ``n > log(1 - R/R_V) / log(1 - R_M)``; with ``rh`` given, R/(R_H R_V).  0 < rm < 1 and
    r < rh rv.  A tie is decided on the decimals as written, and is not enough.
    """
    want, layer = probability("R", r), series(probability("R_H", rh), probability("R_V", rv))
    chance = _working("Inequality 2", rm)
    if chance.down == 0.0:
        raise ModelError(
            "R_M = 1: a VM that never fails leaves log(1 - R_M) undefined (2); n = 1",
            error_code="TV0603",
        )
    # R_V - R, from whichever of the two has the digits: R, or 1 - R.
    room = float(layer) - float(want) if layer < 0.5 else want.down - layer.down
    if room <= 0.0:
        raise ModelError(
            f"R = {float(want):g} is not below R_H R_V = {float(layer):g}: no number of VMs takes "
            "the node above the layer under them (Inequality 2 requires R < R_V)",
            error_code="TV0603",
        )
    share = float(want) / float(layer)
    missing = math.log1p(-share) if share < 0.5 else math.log(room / float(layer))
    bound = missing / log_down(chance)
    if math.isinf(bound):
        raise ModelError(
            f"R_M = {float(chance):g}: no finite number of such VMs is enough", error_code="TV0603"
        )
    guests = max(1, math.floor(bound) + 1)
    nearest = round(bound)
    if nearest >= 1 and abs(bound - nearest) <= 1e-9 * nearest and nearest <= 10_000:
        guests = nearest if _exceeds(nearest, want, (rh, rv), chance) else nearest + 1
    return Needed(bound=bound, guests=guests)


def _exceeds(n: int, r: Paired, layer: tuple[float, float], rm: Paired) -> bool:
    """Whether n VMs give more than r, in exact arithmetic on the shortest decimals."""
    want, fails = Fraction(repr(float(r))), 1 - Fraction(repr(float(rm)))
    top = Fraction(repr(float(layer[0]))) * Fraction(repr(float(layer[1])))
    return bool(want < top * (1 - fails**n))


def guests_to_beat_plain(rm: float, rv: float) -> Needed:
    """Inequality (1) solved for n: the number of VMs that make 1-of-n better than the plain node.

    0 < rm < 1 and rv > rm.  At R_M = .1, R_V = .3: 4.
    """
    v, r = probability("R_V", rv), _working("Inequality 1", rm)
    if v <= r:
        raise ModelError(
            f"R_V = {float(v):g} is not above R_M = {float(r):g}: the hypervisor has to be more "
            "reliable than the individual VM (Inequality 1)",
            error_code="TV0603",
        )
    return guests_needed(r, v, r)


def breakeven_rf(rf: float, rm_rest: float, n: int) -> Paired:
    """Inequality (3): the smallest R_F at which moving f out of the VMs is no loss.

    ``[1 - (1 - R_f R_M')^n] / [1 - (1 - R_M')^n]``; 0 < rm_rest <= 1.  At n = 1 it is R_f.
    """
    f, size = probability("R_f", rf), count("the number of VMs n", n)
    rest = _working("Inequality 3", rm_rest, "R_M'")
    if size == 1 or f == 1.0:
        return f
    with_f = series(f, rest)
    top, bottom = one_of_n(1.0, 1.0, with_f, size), one_of_n(1.0, 1.0, rest, size)
    if rest.down == 0.0:
        return top
    # 1 - top/bottom = [x^n - y^n] / bottom, x = 1 - R_f R_M', y = 1 - R_M', x - y = R_M' (1 - R_f)
    spread = math.log1p(float(rest) * f.down / rest.down)
    room = top.down * -math.expm1(-size * spread) / float(bottom)
    return Paired(float(top) / float(bottom) if room > 0.5 else 1.0 - room, room)
