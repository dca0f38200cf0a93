"""The paper's Figure 7 with the recombined break-even band: where does voting help?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from faultinject.estimate.equivalence import PointComparison
from faultinject.estimate.intervals import Interval
from faultinject.plotting import (
    FAINT,
    MEASURED,
    OPEN,
    PAPER,
    PLAIN,
    VOTED,
    new_figure,
    soften,
)
from faultinject.report.data import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["draw_agreement", "draw_breakeven"]

MARKS: dict[str, dict[str, Any]] = {
    "voted better": {"marker": "o", "color": VOTED},
    "plain better": {"marker": "s", "color": PLAIN},
    "undecided": {"marker": "D", "color": OPEN},
}
BEYOND = 1e3
TOP = 1.012  # of the R_V axis

Rows = Sequence[Interval]


def draw_breakeven(curve: Curve, points: tuple[PointComparison, ...]) -> Figure:
    """Draw Figure 7: the paper's bound, the recombined break-even band, operating points."""
    figure = new_figure(8.6, 5.6)
    axes = figure.subplots()
    floor = min(curve.paper) - 0.03  # a little below the lowest bound, 8/9 for 2-of-3
    low, middle, high = _columns(curve.breakeven)
    axes.fill_between(
        curve.rm, [min(y, TOP) for y in middle], TOP, color=VOTED, alpha=0.07, linewidth=0
    )
    axes.fill_between(
        curve.rm, low, high, color=MEASURED, alpha=0.38, linewidth=0,
        label="recombined break-even $R_V^*$",
    )  # fmt: skip
    axes.plot(curve.rm, middle, color=MEASURED, linewidth=1.4)
    axes.plot(
        curve.rm, curve.paper, color=PAPER, linewidth=1.1, linestyle=(0, (5, 2.5)),
        label="the paper, Inequality (4)",
    )  # fmt: skip
    axes.axhline(1.0, color=FAINT, linewidth=0.8)
    lowest = min(range(len(curve.rm)), key=lambda i: curve.paper[i])
    axes.annotate(
        f"lowest: {curve.paper[lowest]:.3f} at $R_M$ = {curve.rm[lowest]:.2g}",
        (curve.rm[lowest], curve.paper[lowest]), (0, -17), textcoords="offset points",
        ha="center", fontsize=10.5,
    )  # fmt: skip
    left = max(0.0, min(x for x, y in zip(curve.rm, curve.paper, strict=True) if y < 1) - 0.08)
    helpless = [x for x, y in zip(curve.rm, curve.paper, strict=True) if y >= 1 and x < 0.9]
    if helpless and not curve.repair:  # the paper does not model repair
        axes.axvline(max(helpless), color=FAINT, linewidth=0.8, linestyle=":")
        axes.text(left + 0.006, floor + 0.004, "no $R_V < 1$\nhelps", color=FAINT, fontsize=10.5)
    _mark(axes, [each for each in points if each.rm >= left], floor)
    place = curve.rm[lowest]
    names = [(place, 0.967, "voting helps", VOTED)]
    if not curve.repair:
        names.append((0.5 * (left + place) + 0.01, floor + 0.025, "voting harms", PLAIN))
    for x, y, text, colour in names:
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=13, alpha=0.9)
    axes.set(xlim=(left, 1.0), ylim=(floor, TOP), xlabel="reliability of a guest, $R_M$")
    axes.set_ylabel("reliability of the voting layer, $R_V$")
    soften(axes)
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(
        handles=[*handles, *_legend(points)], loc="outside upper left", ncols=5, columnspacing=1.4,
        handletextpad=0.5,
    )  # fmt: skip
    return figure


def _legend(points: Sequence[PointComparison]) -> list[Line2D]:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - slow to load

    seen = {point.choice for point in points}
    return [
        Line2D([], [], linestyle="none", markersize=7.5, markeredgecolor="white", label=verdict,
               **mark)
        for verdict, mark in MARKS.items() if verdict in seen
    ]  # fmt: skip


def _mark(axes: Axes, points: Sequence[PointComparison], floor: float) -> None:
    for point in points:
        mark = MARKS[point.choice]
        below = point.rv < floor  # shown at the edge, pointing to where it is
        axes.plot(
            [point.rm], [max(point.rv, floor + 0.003)], marker=7 if below else mark["marker"],
            color=mark["color"], markersize=7.5, linestyle="none", markeredgecolor="white",
            markeredgewidth=0.9, zorder=5, clip_on=False,
        )  # fmt: skip


def draw_agreement(curve: Curve) -> Figure:
    """Draw the distance from the paper: the two equivalence tests of the spec."""
    figure = new_figure(8.6, 4.0)
    left, right = figure.subplots(1, 2)
    inside = [
        i for i, x in enumerate(curve.rm)
        if curve.margin_from - 1e-9 <= x <= curve.margin_to + 1e-9
    ]  # fmt: skip
    _compare(left, curve, inside, (1.0,) * len(curve.rm), "relative", curve.relative_margin)
    left.set_title("unreliability: $U/U_{paper} - 1$")
    _compare(right, curve, inside, curve.paper, "breakeven", curve.breakeven_margin)
    right.set_title("break-even: $R_V^* -$ bound")
    for axes in (left, right):
        axes.set_xlabel("reliability of a guest, $R_M$")
        soften(axes)
    return figure


def _compare(
    axes: Axes,
    curve: Curve,
    inside: list[int],
    zero: Sequence[float],
    name: str,
    margin: float,
) -> None:
    """Draw the rows ``name`` of the curve minus ``zero`` where margins apply."""
    rows: Rows = getattr(curve, name)
    given: Rows = getattr(curve, f"{name}_given")
    xs = [curve.rm[i] for i in inside]
    low, middle, high = ([y - zero[i] for i, y in zip(inside, each, strict=True)]
                         for each in _columns([rows[i] for i in inside]))  # fmt: skip
    far = max(abs(y) for y in (*low, *high) if math.isfinite(y))
    reach = max(margin * 1.7, min(4 * margin, far * 1.1))
    axes.axhspan(-margin, margin, color=MEASURED, alpha=0.07, linewidth=0)
    for edge in (-margin, margin):
        axes.axhline(edge, color=MEASURED, linewidth=0.8, linestyle=":")
    axes.fill_between(xs, low, high, color=MEASURED, alpha=0.25, linewidth=0)
    if given:
        inner = [[y - zero[i] for i, y in zip(inside, each, strict=True)]
                 for each in _columns([given[i] for i in inside])]  # fmt: skip
        axes.fill_between(xs, inner[0], inner[2], color=MEASURED, alpha=0.45, linewidth=0)
    axes.plot(xs, middle, color=MEASURED, linewidth=1.4)
    axes.axhline(0, color=PAPER, linewidth=1.1, linestyle=(0, (5, 2.5)))
    axes.set(xlim=(min(xs), max(xs)), ylim=(-reach, reach))
    axes.annotate(
        "margin", (min(xs), margin), (4, 3), textcoords="offset points", color=MEASURED, fontsize=10
    )


def _columns(rows: Rows) -> tuple[list[float], list[float], list[float]]:
    # Where no R_V is enough the break-even is infinite: it is drawn far above every axis.
    return (
        [each.low for each in rows],
        [min(each.value, BEYOND) for each in rows],
        [min(each.high, BEYOND) for each in rows],
    )
