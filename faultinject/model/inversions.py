"""What a design needs to reach a given node reliability R, and Inequality (3) solved for its terms.

``bounds`` compares with the plain node.  Here R is given and one of R_V, R_M, n is found; for a
function moved into the VMM, one of R_f, R_M', n.  Reliabilities are ``Paired``.  All functions
raise ModelError for a question without an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from faultinject.model.bounds import Needed, breakeven_rf
from faultinject.model.paired import ModelError, Paired, count, probability
from faultinject.model.reliability import series
from faultinject.model.tails import all_fail, binomial_at_least

__all__ = [
    "breakeven_with",
    "guests_for_majority",
    "guests_when_moved",
    "rf_when_moved",
    "rm_needed",
    "rm_when_moved",
    "rv_needed",
]

MOST_GUESTS = 10_000
SMALLEST_LOG = -745.0  # of the smallest float


def breakeven_with(rm: float, guests: float) -> Paired:
    """The R_V above which a design is better than plain: ``R_M / guests``.

    ``guests`` is the probability that enough of them are up, however it was found (unequal guests,
    a shared cause); ``rm`` is the plain node's.  Infinite where ``guests`` is 0.
    """
    plain, voted = probability("R_M", rm), probability("the guests' part", guests)
    if plain == 0.0:
        raise ModelError(
            "R_M = 0: a VM that never works allows no comparison (section 4)", error_code="TV0603"
        )
    if voted == 0.0:
        return Paired(math.inf, -math.inf)
    return Paired(float(plain) / float(voted), (plain.down - voted.down) / float(voted))


def _share(r: float, layer: Paired) -> Paired:
    """Return the reliability that the guests need for a node reliability ``r`` on ``layer``."""
    want = probability("R", r)
    room = want.down - layer.down
    if room <= 0.0:
        raise ModelError(
            f"R = {float(want):g} is not below R_H R_V = {float(layer):g}: no number of VMs takes "
            "the node above the layer under them (Inequality 2 requires R < R_V)",
            error_code="TV0603",
        )
    return Paired(float(want) / float(layer), room / float(layer))


def rv_needed(r: float, guests: float, rh: float = 1.0) -> Paired:
    """The R_V for a node reliability ``r``: ``R / (R_H guests)``.

    ``guests``: the probability that enough guests are up.  1 or more where no R_V < 1 is enough;
    infinite where ``guests`` or ``rh`` is 0.
    """
    want = probability("R", r)
    rest = series(probability("R_H", rh), probability("the guests' part", guests))
    if rest == 0.0:
        return Paired(math.inf, -math.inf)
    return Paired(float(want) / float(rest), (want.down - rest.down) / float(rest))


def rm_needed(r: float, rv: float, m: int, n: int, rh: float = 1.0) -> Paired:
    """The R_M at which m-of-n has node reliability ``r``; above it, it has more.

    Raises ModelError unless r < R_H R_V.  For 1-of-n ``1 - (1 - R/(R_H R_V))^(1/n)``, else by
    bisection of the smaller of R_M and 1 - R_M, to about 1e-14 of it.
    """
    size = count("the number of VMs n", n)
    need = count("the number of VMs that must agree m", m, 1, size)
    share = _share(r, series(probability("R_H", rh), probability("R_V", rv)))
    if share == 0.0:
        return Paired(0.0, 1.0)
    if need == 1:
        log_missing = math.log1p(-float(share)) if share < 0.5 else math.log(share.down)
        return Paired(-math.expm1(log_missing / size), math.exp(log_missing / size))

    def reached(rm: Paired) -> bool:
        voted = binomial_at_least(need, size, rm)
        return voted.down <= share.down if share > 0.5 else float(voted) >= float(share)

    if reached(Paired(0.5, 0.5)):
        return Paired(_least(lambda x: reached(Paired(x)), 0.5))
    return Paired.failing(_greatest(lambda x: reached(Paired.failing(x)), 0.5))


def _least(holds: Callable[[float], bool], most: float) -> float:
    """The least positive x up to ``most`` for which ``holds``, which is true from there on."""
    low, high = SMALLEST_LOG, math.log(most)
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _greatest(holds: Callable[[float], bool], most: float) -> float:
    """The greatest x up to ``most`` for which ``holds``, which is false from there on."""
    return _least(lambda x: not holds(x), most)


def guests_for_majority(r: float, rv: float, rm: float, rh: float = 1.0) -> Needed:
    """The smallest odd n whose majority has a node reliability above ``r``; ``bound`` is n - 2.

    It rises with n for R_M > .5 only: at .5 or less one VM is as good as any vote, or better.
    """
    chance = probability("R_M", rm)
    share = _share(r, series(probability("R_H", rh), probability("R_V", rv)))

    def reached(half: int) -> bool:  # n = 2 half + 1
        return binomial_at_least(half + 1, 2 * half + 1, chance).down < share.down

    if reached(0):
        return Needed(bound=0.0, guests=1)
    if chance <= 0.5:
        raise ModelError(
            f"R_M = {float(chance):g} is not above .5: more VMs only make a majority vote worse "
            "(Inequality 4 has no R_V < 1 there)",
            error_code="TV0603",
        )
    low, high = 0, (MOST_GUESTS - 1) // 2
    if not reached(high):
        raise ModelError(
            f"a majority of R_M = {float(chance):g} needs more than {MOST_GUESTS:,} VMs for this R",
            error_code="TV0603",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return Needed(bound=2.0 * high - 1.0, guests=2 * high + 1)


def _both(r_moved: float, n: int) -> tuple[Paired, int]:
    return probability("R_F", r_moved), count("the number of VMs n", n)


def rf_when_moved(r_moved: float, rm_rest: float, n: int) -> Paired:
    """Inequality (3) for R_f: up to this R_f it is no loss to replace f by F.

    ``[1 - (1 - R_F [1 - (1 - R_M')^n])^(1/n)] / R_M'``; 0 < rm_rest <= 1.
    """
    moved, size = _both(r_moved, n)
    rest = probability("R_M'", rm_rest)
    if rest == 0.0:
        raise ModelError(
            "R_M' = 0: VMs that never work allow no comparison (Inequality 3)", error_code="TV0603"
        )
    if size == 1 or moved.down == 0.0:
        return moved
    lost = all_fail(rest, size)  # (1 - R_M')^n
    kept = series(moved, Paired(lost.down, float(lost)))  # C2's guests and F
    if kept.down == 0.0:
        return Paired(1.0, 0.0)
    log_z = (math.log1p(-float(kept)) if kept < 0.5 else math.log(kept.down)) / size
    up = -math.expm1(log_z) / float(rest)
    # 1 - R_f = [z - (1 - R_M')] / R_M', z^n = (1 - R_M')^n + (1 - R_F) [1 - (1 - R_M')^n]
    if rest.down == 0.0:
        down = math.exp(log_z)
    elif (gain := lost.down * moved.down / float(lost) if lost > 0.0 else math.inf) < math.inf:
        down = rest.down * math.expm1(math.log1p(gain) / size) / float(rest)
    else:
        down = (math.exp(log_z) - rest.down) / float(rest)
    return Paired.sums(1.0 - down if down < 0.5 else up, down)


def rm_when_moved(r_moved: float, rf: float, n: int) -> Paired:
    """Inequality (3) for R_M': up to this R_M' it is no loss to move f; n >= 2.

    The bound rises with R_M', from R_f to 1 - (1 - R_f)^n.  1 where F is good enough for every
    R_M'.  Raises ModelError where R_F <= R_f < 1: then no R_M' is low enough.
    """
    moved, size = _both(r_moved, n)
    inside = probability("R_f", rf)
    if size == 1:
        raise ModelError(
            "n = 1: Inequality 3 requires R_F >= R_f for every R_M', so there is no R_M' to find",
            error_code="TV0603",
        )
    if not _worse(moved, breakeven_rf(inside, 1.0, size)):
        return Paired(1.0, 0.0)
    if not _worse(inside, moved):
        raise ModelError(
            f"R_F = {float(moved):g} is not above R_f = {float(inside):g}: F must be more "
            "reliable than f for every R_M' (Inequality 3)",
            error_code="TV0603",
        )

    def lost(rest: Paired) -> bool:
        return _worse(moved, breakeven_rf(inside, rest, size))

    if lost(Paired(0.5)):
        return Paired(_least(lambda x: lost(Paired(x)), 0.5))
    return Paired.failing(_least(lambda x: not lost(Paired.failing(x)), 0.5))


def _worse(one: Paired, other: Paired) -> bool:
    """Whether one < other, also where both are close to 1."""
    return one.down > other.down if other > 0.5 else float(one) < float(other)


def guests_when_moved(r_moved: float, rf: float, rm_rest: float) -> int | None:
    """Inequality (3) for n: the largest n at which moving f is no loss; None: 10,000 or more.

    Raises ModelError where R_F < R_f: then not even at n = 1.
    """
    moved = probability("R_F", r_moved)
    if _worse(moved, breakeven_rf(rf, rm_rest, 1)):
        raise ModelError(
            f"R_F = {float(moved):g} is below R_f = {float(rf):g}: moving f loses even at n = 1 "
            "(Inequality 3)",
            error_code="TV0603",
        )

    def pays(n: int) -> bool:
        return not _worse(moved, breakeven_rf(rf, rm_rest, n))

    low, high = 1, MOST_GUESTS
    if pays(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low
