"""Designs other than the node's own: m of n for several m and n in one campaign.

The strata of each are recombined as for 2-of-3 (``strata``) and compared with section 4 of the
paper: ``R_H R_V P(at least m of n guests survive)``, for m = 1 the left side of Inequality (1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultinject.campaign.planning.plan import Cell
from faultinject.estimate.strata import band
from faultinject.model.reliability import m_of_n
from faultinject.plotting import ALARM, FAINT, new_figure, soften
from faultinject.report.source import Source
from faultinject.report.strata import strata_of
from faultinject.results.findings import DesignFinding, DesignPoint
from voter.core.vote import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_designs", "find_designs"]

SHADES = ("#1f6f9c", "#5d4a7d", "#3c8c6e", "#b8651b", "#8a949e", "#4a4a4a")
PANELS = 3
"""Values of R_V that are drawn, at most."""


def find_designs(source: Source) -> tuple[DesignFinding, ...]:
    """Return every vote policy of the strata; those with equal m together, by rising n."""
    by_vote: dict[tuple[str, bool], dict[tuple[bool, int], list[Cell]]] = {}
    for cell in source.cells():
        if cell.forced and cell.vote and cell.design == "voted" and not cell.host_function_hit:
            here = by_vote.setdefault((cell.vote, cell.repair), {})
            # A guest whose f fails is a guest that fails.
            here.setdefault((cell.voter_hit, cell.failing_guests), []).append(cell)
    found = [_design(source, vote, repair, cells) for (vote, repair), cells in by_vote.items()]
    return tuple(sorted(found, key=lambda each: (each.repair, each.m, each.n)))


def _design(
    source: Source, vote: str, repair: bool, cells: dict[tuple[bool, int], list[Cell]]
) -> DesignFinding:
    policy = Policy.parse(vote)
    m, n = policy.need, policy.of
    strata = strata_of(source, cells, n)
    known = band(strata, source.alpha)
    points = []
    for rm, rv, rh in source.store.spec.points.grid():
        bound = known.bound(rm)
        points.append(
            DesignPoint(
                rm=rm, rv=rv, rh=rh, plain=rh * rm, recombined=known.system(rm, rv, rh),
                silent=known.silent(1 - rm), paper=float(m_of_n(rh, rv, rm, m, n)),
                breakeven=bound if bound.finite else None,
            )
        )  # fmt: skip
    return DesignFinding(
        vote=vote, m=m, n=n, repair=repair, points=tuple(points),
        failed=tuple(source.proportion(each.failures, each.trials) for each in strata.guests),
        voter=tuple(
            source.proportion(each.failures, each.trials) if each else None
            for each in strata.voter
        ),
        silent=tuple(source.proportion(each.silent, each.trials) for each in strata.guests),
        paper=tuple(float(k > n - m) for k in range(n + 1)),
    )  # fmt: skip


def draw_designs(designs: Sequence[DesignFinding], m: int) -> Figure:
    """Draw R_sys over n for designs that need ``m`` replies: recombined, and the paper's curves."""
    here = [node for node in designs if node.m == m and not node.repair]
    levels = sorted({p.rv for node in here for p in node.points}, reverse=True)
    shown = levels[:: max(1, (len(levels) + PANELS - 1) // PANELS)]
    figure = new_figure(9.2, 4.4)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, rv in zip(panels, shown, strict=True):
        _panel(axes, here, rv, m)
        axes.set(title=f"$R_V$ = {rv:g}", xlabel="guests, $n$")
        soften(axes)
    panels[0].set_ylabel("reliability of the node, $R_{sys}$")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6, columnspacing=1.3)
    return figure


def _panel(axes: Axes, nodes: Sequence[DesignFinding], rv: float, m: int) -> None:
    sizes = sorted(node.n for node in nodes)
    levels = sorted({p.rm for node in nodes for p in node.points})
    axes.axhline(rv, color=FAINT, linewidth=0.9, linestyle=":")
    axes.text(sizes[-1] + 0.2, rv, "$R_V$", va="center", color=FAINT, fontsize=10.5)
    for shade, rm in zip(SHADES, levels, strict=False):
        points = {n.n: p for n in nodes for p in n.points if (p.rm, p.rv, p.rh) == (rm, rv, 1.0)}
        if not points:
            continue
        axes.plot(
            sizes, [float(m_of_n(1.0, rv, rm, m, n)) for n in sizes],
            color=shade, linewidth=1.0, linestyle=(0, (5, 2.5)),
        )  # fmt: skip
        values = [points[n].recombined for n in sorted(points)]
        low = [max(0.0, each.value - each.low) for each in values]
        high = [max(0.0, each.high - each.value) for each in values]
        axes.errorbar(
            sorted(points), [each.value for each in values], yerr=[low, high],
            color=shade, fmt="o", markersize=4, linewidth=1.3, capsize=2, label=f"$R_M$ = {rm:g}",
        )  # fmt: skip
        wrong = [(n, p.silent.value) for n, p in sorted(points.items()) if p.silent.value > 0]
        if wrong:
            where, shares = zip(*wrong, strict=True)
            axes.plot(where, shares, color=ALARM, marker="v", linewidth=0.8, markersize=3)
    axes.set(xticks=sizes, ylim=(0, 1.02), xlim=(sizes[0] - 0.4, sizes[-1] + 0.9))
