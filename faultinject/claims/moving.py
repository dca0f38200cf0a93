"""What section 4 says of moving a function out of the VMs: Inequality (3), Figures 5 and 6."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from faultinject import model
from faultinject.claims.claim import ClaimAnswer, Results
from faultinject.estimate.relocation import RelocationPoint

__all__ = ["degree", "inequality3", "retaining", "single", "spots"]

EXACT = 1e-12
"""Less is rounding."""


def _moved(results: Results) -> list[RelocationPoint]:
    return [] if results.moved is None else list(results.moved.points)


def _room(point: RelocationPoint) -> str:
    """1 - R_F as measured."""
    shared = point.shared
    told = "" if shared.high < 1.0 else ", not told from 0"
    return f"{1 - shared.value:.3g} [{1 - shared.high:.3g}, {1 - shared.low:.3g}]{told}"


def inequality3(results: Results) -> ClaimAnswer:
    """The R_F at which C1 and C2 came out alike, beside (3)."""
    found = _moved(results)
    inside = [p.shared.low <= p.paper <= p.shared.high for p in found]
    sharp = sum(p.reaches for p in found)
    told = [p.room for p in found if p.shared.high < 1.0]
    widest = max(found, key=lambda p: (p.n, p.shared.high - p.shared.low))
    half = (widest.shared.high - widest.shared.low) / 2
    partial = results.moved is not None and results.moved.partial
    words = "; after a part of their missions" if partial else ""
    return ClaimAnswer(
        measured=f"for an f that stops: (3)'s R_F lies within the interval of the measured "
        f"break-even at {sum(inside)} of {len(found)} points (n = {_ns(found)}), which is "
        f"± {half:.2g} wide at most for n = {widest.n}, where a failed guest counts alike on both "
        f"sides; at {sharp} points it is within {found[0].share:.0%} of 1 - R_F. A 1 - R_F down to "
        f"{_least(told)} is told from 0{words}",
        says="does not hold" if not all(inside) else "holds" if sharp == len(found)
        else "holds as far as the data reach",
    )  # fmt: skip


def _least(rooms: Iterable[float]) -> str:
    least = min(rooms, default=None)
    return "none" if least is None else f"{least:.2g}"


def _ns(found: Iterable[RelocationPoint]) -> str:
    return ", ".join(str(n) for n in sorted({point.n for point in found}))


def spots(results: Results) -> ClaimAnswer:
    """The paper's two numbers."""
    six, nine = (float(model.breakeven_rf(0.75, 0.75, n)) for n in (6, 9))
    right = round(six, 4) == 0.9932 and round(nine, 4) == 0.9994
    measured = [
        f"n = {p.n}: 1 - R_F = {_room(p)}, (3) has {p.room:.3g}"
        for p in _moved(results) if p.n in (6, 9) and p.rf == p.rm_rest == 0.75
    ]  # fmt: skip
    words = f"; measured: {'; '.join(measured)}" if measured else ""
    return ClaimAnswer(
        measured=f"computed: {six:.6f} and {nine:.6f}{words}",
        says="is a formula" if right else "does not hold",
    )


def single(results: Results) -> ClaimAnswer:
    """n = 1 in (3)."""
    worst = max(abs(float(model.breakeven_rf(rf / 10, 0.75, 1)) - rf / 10) for rf in range(1, 10))
    measured = [
        f"for R_f = {p.rf:g}: {p.shared.low:.3g} to {p.shared.high:.3g}"
        for p in _moved(results) if p.n == 1 and p.rm_rest == 0.75
    ]  # fmt: skip
    exact = "exactly R_f" if worst < EXACT else f"R_f, but for {worst:.1g}"
    words = f" Measured at R_M' = .75, {'; '.join(measured)}." if measured else ""
    return ClaimAnswer(
        measured=f"computed: the R_F needed is {exact}.{words} It does not matter, then, if R_F = "
        "R_f; moving a function does not give that by itself",
        says="is a formula" if worst < EXACT else "does not hold",
    )


def degree(_: Results) -> ClaimAnswer:
    """On a grid: R_F / R_f, and how it grows with R_M' and with n."""
    grid = [i / 10 for i in range(1, 10)]

    def needed(rf: float, rm: float, n: int) -> float:
        return float(model.breakeven_rf(rf, rm, n))

    more = all(needed(f, m, n) > f for f in grid for m in grid for n in range(2, 10))
    with_rm = all(
        needed(f, low, n) < needed(f, high, n)
        for f in grid for low, high in pairwise(grid) for n in range(2, 10)
    )  # fmt: skip
    with_n = all(
        needed(f, m, n) < needed(f, m, n + 1) for f in grid for m in grid for n in range(1, 9)
    )
    return ClaimAnswer(
        measured=f"computed for R_f, R_M' from .1 to .9 and n from 2 to 9: R_F > R_f "
        f"{_everywhere(more)}, it grows with R_M' {_everywhere(with_rm)}, with n "
        f"{_everywhere(with_n)}",
        says="is a formula" if more and with_rm and with_n else "does not hold",
    )


def retaining(_: Results) -> ClaimAnswer:
    """What a poor f has to become to be worth moving, as guests are added."""
    needed = {n: float(model.breakeven_rf(0.5, 0.75, n)) for n in (1, 2, 3, 5, 9)}
    words = ", ".join(f"{n}: {value:.4f}" for n, value in needed.items())
    grows = all(low < high for low, high in pairwise(needed.values()))
    return ClaimAnswer(
        measured=f"computed for R_f = .5, R_M' = .75: the R_F needed, by n: {words}. That is for "
        "an f that stops; with one that lies the first reply of n guests is worth less, and moving "
        "it may pay with an F worse than f (campaign moved-lies)",
        says="is a formula" if grows and needed[5] > 0.9 else "does not hold",
    )


def _everywhere(so: bool) -> str:
    return "everywhere" if so else "not everywhere"
