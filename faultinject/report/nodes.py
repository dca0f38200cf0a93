"""Nodes of other designs than the station's own: m of n for several m and n, in one campaign.

For each the strata are put together as for 2-of-3 (``strata``), and held against what the paper's
section 4 has: ``R_H R_V P(at least m of n guests survive)``, which for m = 1 is the left side of
Inequality (1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultinject.campaign.planning.plan import Cell
from faultinject.estimate import band
from faultinject.model.reliability import m_of_n
from faultinject.plotting import (
    ALARM,
    FAINT,
    new_figure,
    soften,
)
from faultinject.report.counting import Source, finite, share_of, triple
from faultinject.report.strata import strata_of
from faultinject.results.findings import NodeFinding, NodePoint, VerdictFinding
from voter.core.vote import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_nodes", "find_nodes", "design_verdicts"]

SHADES = ("#1f6f9c", "#5d4a7d", "#3c8c6e", "#b8651b", "#8a949e", "#4a4a4a")
MARGIN, POINTS = 0.05, "5 points"
"""How far from what the paper assumes, 0 or 1, a stratum's share of failed missions may be."""
PANELS = 3
"""Values of R_V that are drawn, at most."""


def find_nodes(source: Source) -> tuple[NodeFinding, ...]:
    """Every vote policy that strata were given; those with m alike together, by rising n."""
    by_vote: dict[tuple[str, bool], dict[tuple[bool, int], list[Cell]]] = {}
    for cell in source.cells():
        if cell.forced and cell.vote and cell.design == "voted" and not cell.host_function_hit:
            here = by_vote.setdefault((cell.vote, cell.repair), {})
            # A guest whose f fails is a guest that fails.
            here.setdefault((cell.voter_hit, cell.failing_guests), []).append(cell)
    nodes = [_node(source, vote, repair, cells) for (vote, repair), cells in by_vote.items()]
    return tuple(sorted(nodes, key=lambda each: (each.repair, each.m, each.n)))


def _node(
    source: Source, vote: str, repair: bool, cells: dict[tuple[bool, int], list[Cell]]
) -> NodeFinding:
    policy = Policy.parse(vote)
    m, n = policy.need, policy.of
    strata = strata_of(source, cells, n)
    known = band(strata, source.alpha)
    points = tuple(
        NodePoint(
            rm=rm, rv=rv, rh=rh, plain=rh * rm,
            measured=triple(known.system(rm, rv, rh)),
            silent=triple(known.silent(1 - rm)),
            model=float(m_of_n(rh, rv, rm, m, n)),
            breakeven=finite(known.bound(rm)),
        )
        for rm, rv, rh in source.store.spec.points.grid()
    )  # fmt: skip
    return NodeFinding(
        vote=vote, m=m, n=n, repair=repair, points=points,
        failed=tuple(share_of(each.failures, each.trials, source.alpha) for each in strata.guests),
        voter=tuple(
            share_of(each.failures, each.trials, source.alpha) if each else None
            for each in strata.voter
        ),
        silent=tuple(share_of(each.silent, each.trials, source.alpha) for each in strata.guests),
        paper=tuple(float(k > n - m) for k in range(n + 1)),
    )  # fmt: skip


def design_verdicts(nodes: Sequence[NodeFinding]) -> list[VerdictFinding]:
    """Does each design do what the paper assumes, bear n - m hit guests, and no more?

    With repair on, which the paper's section 4 does not know: is it better than plain?
    """
    believing = [node for node in nodes if not node.repair and _believed(node)]
    plain = [node for node in nodes if not node.repair and node not in believing]
    repaired = [node for node in nodes if node.repair]
    found = [_as_assumed(plain)] if plain else []
    found += [_believing(believing)] if believing else []
    return found + ([_repaired(repaired)] if repaired else [])


def _believed(node: NodeFinding) -> bool:
    """Whether it was to bear guests that fail, compares nothing, and gave wrong replies out."""
    bears = node.n - node.m
    return node.m == 1 and any(share.count for share in node.silent[: bears + 1])


def _believing(nodes: Sequence[NodeFinding]) -> VerdictFinding:
    words = []
    for node in nodes:
        lied, failed = node.silent[: node.n], node.failed[: node.n]
        words.append(
            f"{node.vote}: "
            + ", ".join(
                f"{share.count} of {share.of} missions failed with {k} hit"
                for k, share in enumerate(failed) if k and share.of
            )
            + f"; {sum(each.count for each in lied)} of these {sum(each.count for each in failed)} "
            "by a wrong reply"
        )  # fmt: skip
    return VerdictFinding(
        tone="bad", tests="model",
        answer="Where guests lie, a node that takes the first reply does not bear them, as the "
        "paper's formula for 1 of n takes it.",
        words=f"{'. '.join(words)}. A failed guest is silent there; one that lies is believed "
        "whenever it answers first. The voter does as it was told: it has nothing to compare.",
    )  # fmt: skip


def _as_assumed(nodes: Sequence[NodeFinding]) -> VerdictFinding:
    shares = [
        (f"{node.vote} with {k} hit: {share.count} of {share.of} failed", share, paper)
        for node in nodes
        for k, (share, paper) in enumerate(zip(node.failed, node.paper, strict=True))
    ]
    off = [words for words, share, paper in shares
           if share.low > paper + MARGIN or share.high < paper - MARGIN]  # fmt: skip
    outside = [
        f"{node.vote} at R_M = {p.rm:g}, R_V = {p.rv:g}"
        for node in nodes for p in node.points
        if p.model < p.measured[0] - MARGIN or p.model > p.measured[2] + MARGIN
    ]  # fmt: skip
    if off or outside:
        words = "; ".join([*off[:6], *outside[:6]])
        return VerdictFinding(
            tone="bad", tests="voter", words=f"Otherwise: {words}.",
            answer="Not every design does what the paper assumes of it.",
        )  # fmt: skip
    wide = [
        words for words, share, paper in shares
        if not (share.of and paper - MARGIN <= share.low and share.high <= paper + MARGIN)
    ]  # fmt: skip
    points = [point for node in nodes for point in node.points]
    inside = sum(p.measured[0] <= p.model <= p.measured[2] for p in points)
    told = f"The paper's R_sys lies within what was measured at {inside} of {len(points)} points."
    if wide:
        designs = f"{len(nodes)} design{'s' * (len(nodes) > 1)}"
        return VerdictFinding(
            tone="open", tests="voter",
            answer=f"Of {designs} nothing speaks against the paper.",
            words=f"{told} But {len(wide)} of {len(shares)} strata are not known to {POINTS}.",
        )  # fmt: skip
    return VerdictFinding(
        tone="good",
        tests="voter",
        answer=f"{', '.join(node.vote for node in nodes)}: what the paper assumes. m of n bears "
        "n - m failed guests, and no more.",
        words=f"Of every stratum within {POINTS}. {told}",
    )


def _repaired(nodes: Sequence[NodeFinding]) -> VerdictFinding:
    points = [point for node in nodes for point in node.points]
    better = sum(point.measured[0] > point.plain for point in points)
    worse = sum(point.measured[2] < point.plain for point in points)
    failed = "; ".join(
        f"{node.vote}: " + ", ".join(
            f"{share.count} of {share.of} with {k} hit"
            for k, share in enumerate(node.failed) if share.of
        ) + "".join(
            f", {share.count} of {share.of} with the voter hit" + (f" and {k}" if k else "")
            for k, share in enumerate(node.voter) if share and share.of
        )
        for node in nodes
    )  # fmt: skip
    return VerdictFinding(
        tone="open", tests="voter",
        answer=f"Repaired in time, {', '.join(node.vote for node in nodes)} is better than plain "
        f"at {better} of {len(points)} points, worse at {worse}.",
        words=f"Missions that failed all the same: {failed}. The paper's section 4 knows no "
        "repair.",
    )  # fmt: skip


def draw_nodes(nodes: Sequence[NodeFinding], m: int) -> Figure:
    """R_sys over n for nodes that need ``m`` replies: measured, and the paper's curves."""
    here = [node for node in nodes if node.m == m and not node.repair]
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


def _panel(axes: Axes, nodes: Sequence[NodeFinding], rv: float, m: int) -> None:
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
        values = [points[n].measured for n in sorted(points)]
        low = [max(0.0, value - below) for below, value, _ in values]
        high = [max(0.0, above - value) for _, value, above in values]
        axes.errorbar(
            sorted(points), [value for _, value, _ in values], yerr=[low, high],
            color=shade, fmt="o", markersize=4, linewidth=1.3, capsize=2, label=f"$R_M$ = {rm:g}",
        )  # fmt: skip
        told = [(n, p.silent[1]) for n, p in sorted(points.items()) if p.silent[1] > 0]
        if told:
            where, shares = zip(*told, strict=True)
            axes.plot(where, shares, color=ALARM, marker="v", linewidth=0.8, markersize=3)
    axes.set(xticks=sizes, ylim=(0, 1.02), xlim=(sizes[0] - 0.4, sizes[-1] + 0.9))
