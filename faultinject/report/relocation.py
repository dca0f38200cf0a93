"""Inequality (3) from two campaigns: a function f in each guest (C1), or once on the host, F (C2).

Each has its own node (``moved-guest``, ``moved-host``).  They share the vote policies 1/n over
the first n guests, the service and the workload.  ``estimate.relocation`` holds the estimators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from faultinject.campaign.store.tally import Tally
from faultinject.estimate.counts import Counts
from faultinject.estimate.relocation import (
    NONE,
    RelocationCounts,
    RelocationPoint,
    estimate_relocation,
    heterogeneity,
)
from faultinject.results.points import FORMAT, Estimate, Figure, MeasuredPoint, MeasuredPoints
from faultinject.results.relocation import RelocationResult
from voter.commands.terminal import CommandError, ExitCode
from voter.core.vote import Policy

if TYPE_CHECKING:
    from rich.console import Console

    from faultinject.campaign.planning.plan import Cell
    from faultinject.campaign.store.store import Store
    from faultinject.estimate.intervals import Interval

__all__ = ["compare_places", "measured_points", "print_relocation"]

FIGURE_6A_GUESTS = 3
FIGURE_6B_RM = 0.75
"""n of Figure 6(a) as drawn here, and R_M' of the paper's Figure 6(b)."""


def compare_places(
    guest: Store, host: Store, rfs: Iterable[float], rms: Iterable[float]
) -> RelocationResult:
    """Estimate the break-even R_F at all combinations of R_f and R_M', for each n.

    Raises CommandError if the campaigns differ in more than the place of the function.
    """
    _check(guest, host)
    counts = _counts(guest, host)
    if not counts:
        raise CommandError(
            "the two campaigns have no vote policy 1/n in common",
            remedy="run moved-guest and moved-host, or specs derived from them",
            code=ExitCode.USAGE,
            error_code="TV0533",
        )
    alpha = guest.spec.alpha_per_analysis
    grid = [(rf, rm) for rm in rms for rf in rfs]
    return RelocationResult(
        guest=guest.directory.name, host=host.directory.name, confidence=1 - alpha,
        missions=sum(each.pooled(k).trials for each in counts for k in range(each.n + 1))
        + sum(found.trials for each in counts for found in each.moved if found),
        partial=guest.partial or host.partial,
        points=tuple(
            estimate_relocation(each, rf, rm, alpha) for each in counts for rf, rm in grid
        ),
        heterogeneity=tuple(found for each in counts for found in heterogeneity(each, alpha)),
    )  # fmt: skip


def _check(guest: Store, host: Store) -> None:
    for store, place in ((guest, "guest"), (host, "host")):
        if store.spec.station.function != place:
            raise CommandError(
                f"{store.directory}: its node's function is "
                f"{store.spec.station.function!r}, not {place!r}",
                remedy="first give the campaign with the function in each guest, then the one with "
                "it on the host",
                code=ExitCode.USAGE,
                error_code="TV0533",
            )
    one, two = guest.spec, host.spec
    same = {
        "service": (one.station.service, two.station.service),
        "deadline": (one.station.deadline, two.station.deadline),
        "hang": (one.station.hang, two.station.hang),
        "length": (one.workload.length, two.workload.length),
        "mix": (_mix(one.workload.mix), _mix(two.workload.mix)),
        "keys": (one.station.keys, two.station.keys),
        "size": (one.station.size, two.station.size),
        "alpha": (one.alpha_per_analysis, two.alpha_per_analysis),
        "faults": (_mix(one.faults), _mix(two.faults)),
    }
    other = [f"{name} {a} and {b}" for name, (a, b) in same.items() if a != b]
    if other:
        raise CommandError(
            f"the two campaigns differ in more than the place of the function: {', '.join(other)}",
            remedy="run both with the same settings",
            code=ExitCode.USAGE,
            error_code="TV0533",
        )


def _mix(faults: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {weight:g}" for kind, weight in sorted(faults.items()) if weight)


def _counts(guest: Store, host: Store) -> list[RelocationCounts]:
    """Return the counts of each n that both have, rising.  Missions with repair are excluded."""
    c1, c2 = _by_vote(guest), _by_vote(host)
    found = []
    for vote in c1.keys() & c2.keys():
        policy = Policy.parse(vote)
        if policy.need != 1:
            continue
        n = policy.of
        first, second = c1[vote], c2[vote]
        mixed = tuple(
            sum((t for (k, f, moved), t in first.items() if k and f and k + f == j), NONE)
            for j in range(n + 1)
        )
        found.append(
            RelocationCounts(
                in_f=tuple(first.get((0, k, False), NONE) for k in range(n + 1)),
                in_rest=tuple(second.get((k, 0, False), NONE) for k in range(n + 1)),
                mixed=mixed,
                moved=tuple(
                    each if (each := second.get((k, 0, True), NONE)).trials else None
                    for k in range(n + 1)
                ),
            )
        )
    return sorted(found, key=lambda each: each.n)


def _by_vote(store: Store) -> dict[str, dict[tuple[int, int, bool], Counts]]:
    """Count by vote, and by (guests whose rest was hit, guests whose f was, whether F was)."""
    tallies = store.by_stratum(store.prefix() if store.partial else None)
    found: dict[str, dict[tuple[int, int, bool], Tally]] = {}
    for cell in store.plan.cells:
        if _is_used(cell):
            vote = cell.vote or store.spec.station.vote
            key = (cell.k, cell.function_k, cell.host_function_hit)
            counted = found.setdefault(vote, {})
            counted[key] = counted.get(key, Tally()) + tallies.get(cell.name, Tally())
    return {
        vote: {key: tally.counts() for key, tally in counted.items()}
        for vote, counted in found.items()
    }


def _is_used(cell: Cell) -> bool:
    return cell.forced and cell.design == "voted" and not (cell.repair or cell.voter_hit)


def measured_points(result: RelocationResult) -> MeasuredPoints:
    """Return the break-even R_F as points to draw over Figures 6(a) and 6(b)."""
    points = []
    for each in result.points:
        figures: tuple[Figure, ...] = ("6a",) if each.n == FIGURE_6A_GUESTS else ()
        figures += ("6b",) if abs(each.rm_rest - FIGURE_6B_RM) < 1e-9 else ()
        found = each.pooled
        if not figures or not 0.0 <= found.value <= 1.0:  # not measured, or no R_F is enough
            continue
        points.append(
            MeasuredPoint(
                figures=figures, basis="recombined", label=f"n = {each.n}", n=each.n,
                rm_rest=each.rm_rest,
                rf=Estimate(value=each.rf, low=each.rf, high=each.rf),
                r_moved=Estimate(
                    value=found.value, low=max(0.0, found.low), high=min(1.0, found.high)
                ),
            )
        )  # fmt: skip
    return MeasuredPoints(
        format=FORMAT,
        source=f"campaigns {result.guest} and {result.host}, {result.missions:,} missions",
        confidence=result.confidence,
        points=tuple(points),
    )


def print_relocation(result: RelocationResult, console: Console) -> None:
    """Print the break-even R_F, both reliabilities, and the precision, as tables."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Smallest R_F at which relocating f is no loss (Inequality 3)")
    for name in ("n", "R_M'", "R_f", "paper: 1 - R_F", "recombined: 1 - R_F", "strata separate",
                 "given f_k = 0, k < n", "precision"):  # fmt: skip
        table.add_column(name, justify="right")
    for each in result.points:
        table.add_row(
            str(each.n), f"{each.rm_rest:g}", f"{each.rf:g}", _number(each.room),
            _room(each.pooled), _room(each.separate),
            _room(each.given_f0) if each.given_f0 else "f_k > 0",
            _precision(each),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{result.missions:,} missions; intervals at {result.confidence:.0%}, simultaneous for all "
        "R_f and R_M' of one n. Recombined: strata of C1 and C2 with k failed guests estimate one "
        "f_k. Separate: f_k may differ between strata. R_H and R_V cancel.",
        markup=False,
    )
    for found in result.heterogeneity:
        counts = ", ".join(f"{each.failures} of {each.trials}" for each in found.strata)
        console.print(
            f"f_k depends on which part of a guest failed: n = {found.n}, k = {found.k}: "
            f"{counts} failed.",
            markup=False,
        )
    if not result.heterogeneity:
        console.print(
            "No dependence of f_k on the failed part of a guest (f or rest) was detected."
        )
    sides = Table(title="R_sys, recombined from measured strata (R_H = R_V = 1)")
    for name in ("n", "R_M'", "R_f", "C1, f in each guest", "C2, R_F = 1"):
        sides.add_column(name, justify="right")
    for each in result.points:
        sides.add_row(
            str(each.n), f"{each.rm_rest:g}", f"{each.rf:g}", _span(each.c1), _span(each.c2)
        )
    console.print(sides)
    _print_needed(result, console)
    if result.partial:
        console.print("[yellow]partial[/]: some planned missions have not been run")


def _precision(point: RelocationPoint) -> str:
    if point.resolved:
        return f"within {point.target:.0%}"
    if point.unresolved > point.target:
        return f"f_k may account for {point.unresolved:.3g} of it"
    return "f_n too imprecise"  # where R_M' is low, missions with all n guests failed dominate


def _print_needed(result: RelocationResult, console: Console) -> None:
    """Print, for the least precise point of each n, how many missions would be enough."""
    for n in sorted({each.n for each in result.points}):
        here = [each for each in result.points if each.n == n and each.unresolved > each.target]
        if here:
            worst = max(here, key=lambda each: each.unresolved)
            needed = ", ".join(f"k = {k}: {count:,}" for k, count in enumerate(worst.needed))
            console.print(
                f"n = {n}: missions without a failure needed to bound f_k within "
                f"{worst.target:.0%} of {worst.room:.2g} (R_f = {worst.rf:g}, "
                f"R_M' = {worst.rm_rest:g}): {needed}",
                markup=False,
            )


def _span(interval: Interval) -> str:
    if interval.value != interval.value:
        return "not measured"
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _room(interval: Interval) -> str:
    """1 - R_F with its interval; below 0: no R_F is enough."""
    if interval.value != interval.value:
        return "not measured"
    low, value, high = (_number(1.0 - x) for x in (interval.high, interval.value, interval.low))
    return f"{value} ({low} to {high})"
