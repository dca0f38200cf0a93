"""Two campaigns put together: a function f in each guest (C1), and once on the host, F (C2).

Each was run on a station of its own (``moved-guest``, ``moved-host``), so what they share is the
vote policies 1/n over the first n guests, the service and the workload.  ``faultinject.estimate.
moved`` says what follows from the counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from faultinject.campaign.store.tally import Tally
from faultinject.estimate import Counts
from faultinject.estimate.relocation import (
    NONE,
    RelocationEstimate,
    estimate_relocation,
    unlike,
)
from faultinject.results.points import FORMAT, MeasuredPoint, MeasuredPoints
from faultinject.results.relocation import RelocationResult
from voter.commands.terminal import CommandError, ExitCode
from voter.core.vote import Policy

if TYPE_CHECKING:
    from rich.console import Console

    from faultinject.campaign.planning.plan import Cell
    from faultinject.campaign.store.store import Store
    from faultinject.estimate import Interval
    from faultinject.estimate.relocation import RelocationPoint

__all__ = [
    "measured_points",
    "compare_places",
    "print_relocation",
]

FIGURE_6A_GUESTS = 3
FIGURE_6B_RM = 0.75
"""For which n the paper's Figure 6(a) is drawn here, and for which R_M' its 6(b)."""


def compare_places(
    guest: Store, host: Store, rfs: Iterable[float], rms: Iterable[float]
) -> RelocationResult:
    """Return what they say at all combinations of R_f and R_M', for each n.

    Raises CommandError if they are not two sides of one question.
    """
    _check(guest, host)
    counts = _counts(guest, host)
    if not counts:
        raise CommandError(
            "the two campaigns have no vote policy 1/n in common",
            remedy="run moved-guest and moved-host, or files made from them",
            code=ExitCode.USAGE,
        )
    alpha = guest.spec.alpha_look
    grid = [(rf, rm) for rm in rms for rf in rfs]
    return RelocationResult(
        guest=guest.directory.name, host=host.directory.name, confidence=1 - alpha,
        missions=sum(each.pooled(k).trials for each in counts for k in range(each.n + 1))
        + sum(found.trials for each in counts for found in each.moved if found),
        partial=guest.partial or host.partial,
        points=tuple(
            estimate_relocation(each, rf, rm, alpha) for each in counts for rf, rm in grid
        ),
        unlike=tuple(found for each in counts for found in unlike(each, alpha)),
    )  # fmt: skip


def _check(guest: Store, host: Store) -> None:
    for store, place in ((guest, "guest"), (host, "host")):
        if store.spec.station.function != place:
            raise CommandError(
                f"{store.directory}: its station's function is "
                f"{store.spec.station.function!r}, not {place!r}",
                remedy="give first the campaign with the function in each guest, then that with it "
                "on the host",
                code=ExitCode.USAGE,
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
        "alpha": (one.alpha_look, two.alpha_look),
        "faults": (_mix(one.faults), _mix(two.faults)),
    }
    other = [f"{name} {a} and {b}" for name, (a, b) in same.items() if a != b]
    if other:
        raise CommandError(
            f"the two campaigns differ in more than the place of the function: {', '.join(other)}",
            remedy="run both with the same settings",
            code=ExitCode.USAGE,
        )


def _mix(faults: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {weight:g}" for kind, weight in sorted(faults.items()) if weight)


def _counts(guest: Store, host: Store) -> list[RelocationEstimate]:
    """Return the counts of each n that both have, rising.  Missions with repair are left out."""
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
            RelocationEstimate(
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
        if _is_ours(cell):
            vote = cell.vote or store.spec.station.vote
            key = (cell.k, cell.function_k, cell.host_function_hit)
            counted = found.setdefault(vote, {})
            counted[key] = counted.get(key, Tally()) + tallies.get(cell.name, Tally())
    return {
        vote: {key: tally.counts() for key, tally in counted.items()}
        for vote, counted in found.items()
    }


def _is_ours(cell: Cell) -> bool:
    return cell.forced and cell.design == "voted" and not (cell.repair or cell.voter_hit)


def measured_points(result: RelocationResult) -> MeasuredPoints:
    """Return the break-even R_F as points to lay over Figures 6(a) and 6(b)."""
    points = []
    for each in result.points:
        figures = ["6a"] if each.n == FIGURE_6A_GUESTS else []
        figures += ["6b"] if abs(each.rm_rest - FIGURE_6B_RM) < 1e-9 else []
        value, interval = each.shared.value, each.shared
        if not figures or not 0.0 <= value <= 1.0:  # not measured, or no R_F will do
            continue
        points.append(
            {
                "figures": figures,
                "label": f"n = {each.n}",
                "n": each.n,
                "rm_rest": each.rm_rest,
                "rf": {"value": each.rf, "low": each.rf, "high": each.rf},
                "r_moved": {
                    "value": value, "low": max(0.0, interval.low), "high": min(1.0, interval.high)
                },
            }
        )  # fmt: skip
    return MeasuredPoints(
        format=FORMAT,
        source=f"campaigns {result.guest} and {result.host}, {result.missions:,} missions",
        confidence=result.confidence,
        points=msgspec.convert(points, tuple[MeasuredPoint, ...]),
    )


def print_relocation(result: RelocationResult, console: Console) -> None:
    """Print it as a table, and what it rests on."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="R_F from which it is no loss to move f out of the guests (Inequality 3)")
    for name in ("n", "R_M'", "R_f", "paper: 1 - R_F", "measured: 1 - R_F", "C1 and C2 apart",
                 "given f_k = 0, k < n", "reach"):  # fmt: skip
        table.add_column(name, justify="right")
    for each in result.points:
        table.add_row(
            str(each.n), f"{each.rm_rest:g}", f"{each.rf:g}", _number(each.room),
            _room(each.shared), _room(each.apart),
            _room(each.given) if each.given else "f_k > 0",
            _said(each),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{result.missions:,} missions, intervals at {result.confidence:.0%} for all R_f and R_M' "
        "of one n at once. Measured: strata of C1 and C2 that have k failed guests count towards "
        "one f_k; apart: they need not be the same. R_H and R_V stand on both sides.",
        markup=False,
    )
    for found in result.unlike:
        console.print(f"It matters what of a guest failed: {found.words}.", markup=False)
    if not result.unlike:
        console.print("Nowhere is it seen to matter whether f or the rest of a guest failed.")
    _show_sides(result, console)
    _show_reach(result, console)
    if result.partial:
        console.print("[yellow]partial[/]: missions of their plans are missing")


def _show_sides(result: RelocationResult, console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="R_sys, measured (R_H = R_V = 1)")
    for name in ("n", "R_M'", "R_f", "C1, f in each guest", "C2, R_F = 1"):
        table.add_column(name, justify="right")
    for each in result.points:
        table.add_row(
            str(each.n), f"{each.rm_rest:g}", f"{each.rf:g}", _span(each.c1), _span(each.c2)
        )
    console.print(table)


def _said(point: RelocationPoint) -> str:
    if point.reaches:
        return "reaches"
    if point.hidden > point.share:
        return f"f_k may hide {point.hidden:.3g} of it"
    return "f_n is not known well enough"  # what n failed guests leave, where R_M' is low


def _show_reach(result: RelocationResult, console: Console) -> None:
    """Say at the widest point of each n how many missions would do."""
    for n in sorted({each.n for each in result.points}):
        here = [each for each in result.points if each.n == n and each.hidden > each.share]
        if here:
            worst = max(here, key=lambda each: each.hidden)
            wanted = ", ".join(f"k = {k}: {count:,}" for k, count in enumerate(worst.wanted))
            console.print(
                f"n = {n}: missions without a failure for f_k to hide {worst.share:.0%} of "
                f"{worst.room:.2g} at most (R_f = {worst.rf:g}, R_M' = {worst.rm_rest:g}): "
                f"{wanted}",
                markup=False,
            )  # fmt: skip


def _span(interval: Interval) -> str:
    if interval.value != interval.value:
        return "not measured"
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _room(interval: Interval) -> str:
    """1 - R_F, its value and its interval; below 0: no R_F will do."""
    if interval.value != interval.value:
        return "not measured"
    low, value, high = (_number(1.0 - x) for x in (interval.high, interval.value, interval.low))
    return f"{value} ({low} to {high})"
