"""Inequality (3) and Figure 6: a function f in each guest, or once on the host as F."""

from __future__ import annotations

from itertools import pairwise

from faultinject.claims.evidence import Evidence, Results
from faultinject.estimate.relocation import RelocationPoint
from faultinject.model.bounds import breakeven_rf

__all__ = ["figure6_shape", "figure6_values", "inequality3", "one_guest", "retained"]

EXACT = 1e-12
"""Differences below this are rounding errors."""


def _room(point: RelocationPoint) -> str:
    """1 - R_F as recombined."""
    found = point.pooled
    ending = "" if found.high < 1.0 else ", 0 not excluded"
    return f"{1 - found.value:.3g} [{1 - found.high:.3g}, {1 - found.low:.3g}]{ending}"


def _relocated(results: Results) -> list[RelocationPoint]:
    return [] if results.moved is None else list(results.moved.points)


def one_guest(results: Results) -> Evidence:
    """Evaluate whether the place of f is irrelevant with one guest."""
    worst = max(abs(float(breakeven_rf(rf / 10, 0.75, 1)) - rf / 10) for rf in range(1, 10))
    measured = "; ".join(
        f"for R_f = {p.rf:g}: {p.pooled.low:.3g} to {p.pooled.high:.3g}"
        for p in _relocated(results) if p.n == 1 and p.rm_rest == 0.75
    )  # fmt: skip
    exact = "exactly R_f" if worst < EXACT else f"R_f to within {worst:.1g}"
    measured = f" Recombined at R_M' = .75, {measured}." if measured else ""
    return Evidence(
        text=f"computed: the required R_F is {exact}.{measured} So the place is irrelevant if "
        "R_F = R_f; relocation does not ensure that",
        sides=(worst < EXACT,), basis=("computed", "recombined") if measured else ("computed",),
    )  # fmt: skip


def inequality3(results: Results) -> Evidence:
    """Compare the recombined break-even R_F with Inequality (3)."""
    found = _relocated(results)
    inside = [p.pooled.contains(p.paper) for p in found]
    resolved = sum(p.resolved for p in found)
    distinct = [p.room for p in found if p.pooled.high < 1.0]
    widest = max(found, key=lambda p: (p.n, p.pooled.width))
    partial = results.moved is not None and results.moved.partial
    ns = ", ".join(str(n) for n in sorted({point.n for point in found}))
    missions = results.moved.missions if results.moved is not None else 0
    same = f", all recombined from the same {missions:,} missions"
    return Evidence(
        text=f"for an f that stops: (3)'s R_F lies within the interval of the recombined "
        f"break-even at {sum(inside)} of {len(found)} points (n = {ns}){same}. "
        f"The interval is at most ± {widest.pooled.width / 2:.2g} wide for n = {widest.n} "
        f"(pooled f_k). At {resolved} points it is within {found[0].target:.0%} of 1 - R_F. "
        f"The smallest 1 - R_F distinguished from 0 "
        f"is {f'{min(distinct):.2g}' if distinct else 'none'}"
        f"{'; some planned missions have not been run' if partial else ''}",
        sides=(all(inside), *(p.resolved or None for p in found)),
        basis=("recombined",),
    )


def figure6_values(results: Results) -> Evidence:
    """Evaluate the two values that the paper's text gives."""
    six, nine = (float(breakeven_rf(0.75, 0.75, n)) for n in (6, 9))
    measured = "; ".join(
        f"n = {p.n}: 1 - R_F = {_room(p)}, (3) has {p.room:.3g}"
        for p in _relocated(results) if p.n in (6, 9) and p.rf == p.rm_rest == 0.75
    )  # fmt: skip
    return Evidence(
        text=f"computed: {six:.6f} and {nine:.6f}{f'; recombined: {measured}' if measured else ''}",
        sides=(round(six, 4) == 0.9932 and round(nine, 4) == 0.9994,),
        basis=("computed", "recombined") if measured else ("computed",),
    )  # fmt: skip


def figure6_shape() -> tuple[str, bool]:
    """Evaluate whether R_F exceeds R_f, and increases with R_M' and n."""
    grid = [i / 10 for i in range(1, 10)]

    def needed(rf: float, rm: float, n: int) -> float:
        return float(breakeven_rf(rf, rm, n))

    more = all(needed(f, m, n) > f for f in grid for m in grid for n in range(2, 10))
    with_rm = all(
        needed(f, low, n) < needed(f, high, n)
        for f in grid for low, high in pairwise(grid) for n in range(2, 10)
    )  # fmt: skip
    with_n = all(
        needed(f, m, n) < needed(f, m, n + 1) for f in grid for m in grid for n in range(1, 9)
    )
    so = ["everywhere" if each else "not everywhere" for each in (more, with_rm, with_n)]
    return (
        f"for R_f, R_M' from .1 to .9 and n from 2 to 9, R_F > R_f {so[0]}; it increases with R_M' "
        f"{so[1]} and with n {so[2]}",
        more and with_rm and with_n,
    )


def retained() -> tuple[str, bool]:
    """Evaluate the required R_F of a poor f over n."""
    needed = {n: float(breakeven_rf(0.5, 0.75, n)) for n in (1, 2, 3, 5, 9)}
    values = ", ".join(f"{n}: {value:.4f}" for n, value in needed.items())
    grows = all(low < high for low, high in pairwise(needed.values()))
    return (
        f"for R_f = .5, R_M' = .75 the required R_F, by n: {values}. This holds for an f that "
        "stops. If f lies, the first reply of n guests is less reliable, and relocation may pay "
        "with an F worse than f (campaign moved-lies)",
        grows and needed[5] > 0.9,
    )
