"""Labels on curves, and measured points with their intervals."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from faultinject.calculator.figures.curves import FigureCurve
from faultinject.plotting import ALARM, INK, OPEN, PLAIN, VOTED
from faultinject.results.points import AXES, Figure, MeasuredPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["INK_BLUES", "draw_points", "mark_legend", "name_line"]

INK_BLUES = ("#7fb2d5", "#4a90bf", "#1f6f9c", "#174f75", "#0e2f4a")
"""From light to dark, distinguishable by lightness alone."""

POINT = "#b3541e"
SPREAD = 0.007
"""Distance of points at one x, as a fraction of the axis."""
WIDE = 90  # characters of a source line
MARKS: dict[str | None, dict[str, Any]] = {
    None: {"marker": "o", "color": POINT},
    "better": {"marker": "o", "color": VOTED},
    "worse": {"marker": "s", "color": PLAIN},
    "undecided": {"marker": "D", "color": OPEN},
}
assert ALARM not in {mark["color"] for mark in MARKS.values()}  # red is for wrong replies alone


def name_line(axes: Axes, curve: FigureCurve, at: float, text: str, colour: str) -> None:
    """Write a curve's name on it, along it, near x = ``at``, instead of a legend."""
    here = min(range(1, len(curve.x) - 1), key=lambda i: abs(curve.x[i] - at))
    rise = curve.y[here + 1] - curve.y[here - 1]
    run = curve.x[here + 1] - curve.x[here - 1]
    axes.text(
        curve.x[here], curve.y[here], text, color=colour, fontsize=10.5, ha="center", va="center",
        zorder=3, rotation=math.degrees(math.atan2(rise, run)), rotation_mode="anchor",
        transform_rotates_text=True,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip


Place = Callable[[float], float]
Fill = Callable[[MeasuredPoint], str | None]


def draw_points(
    axes: Axes,
    points: Sequence[MeasuredPoint],
    figure: Figure,
    *,
    place: Place = float,
    fill: Fill = lambda _: None,
    spread: bool = False,
) -> None:
    """Draw the points with their intervals, label and curve.

    ``place``: from a value to its position on the axes.  ``fill``: the colour, if it identifies the
    point's curve or region.  ``spread``: points at one x are drawn next to each other.
    """
    stacks = Counter(point.axes(figure)[0].value for point in points)
    placed: Counter[float] = Counter()
    for point in points:
        x, y = point.axes(figure)
        at = place(x.value), place(y.value)
        high = [at[i] if end is None else place(end) for i, end in enumerate((x.high, y.high))]
        mark, inside = MARKS[point.verdict], fill(point)
        left, right = at[0] - place(x.low), high[0] - at[0]
        if spread:
            first, last = axes.get_xlim()
            at = (
                at[0] + SPREAD * (last - first) * (placed[x.value] - (stacks[x.value] - 1) / 2),
                at[1],
            )
            placed[x.value] += 1
        axes.errorbar(
            [at[0]], [at[1]],
            xerr=[[left], [right]],
            yerr=[[at[1] - place(y.low)], [high[1] - at[1]]],
            fmt=mark["marker"], color=inside or mark["color"],
            markerfacecolor=inside or mark["color"], markersize=6.5,
            markeredgecolor="white" if inside is None else INK, markeredgewidth=0.9,
            elinewidth=1.3 if inside is None else 1.0, capsize=2.5, zorder=6,
        )  # fmt: skip
        if y.high is None or point.beyond:
            arrow = {"arrowstyle": "<-", "color": INK, "linewidth": 1.0}
            up = (0, 15 if point.beyond else 26)
            axes.annotate("", at, up, textcoords="offset points", zorder=5, arrowprops=arrow)
        text = ", ".join(each for each in (point.label, _curve(point, figure)) if each)
        if text and inside is None:
            _label(axes, text, at, mark["color"])


def _label(axes: Axes, text: str, at: tuple[float, float], colour: str) -> None:
    right = at[0] > sum(axes.get_xlim()) / 2
    axes.annotate(
        text, at, (-8 if right else 8, -5), textcoords="offset points",
        ha="right" if right else "left", va="top", fontsize=9, color=colour, zorder=7,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )  # fmt: skip


def _curve(point: MeasuredPoint, figure: Figure) -> str:
    names = {"n": "n = {:d}", "r": "R = {:g}", "rm_rest": "R_M' = {:g}"}
    return ", ".join(names[name].format(getattr(point, name)) for name in AXES[figure][2:])


def mark_legend(
    drawing: Drawing, points: Sequence[MeasuredPoint], source: str, *, filled: bool
) -> None:
    """Add a legend of the marks and their source below the axes, if there are any.

    ``filled``: their colour identifies a curve or design, so only the shape shows the verdict.
    """
    from matplotlib.lines import Line2D  # noqa: PLC0415 - slow to load

    seen = {point.verdict for point in points}
    basis = " or ".join(sorted({point.basis for point in points}))
    ring = {"color": "white", "markeredgecolor": INK}
    handles = [
        Line2D([], [], linestyle="none", markersize=7,
               label=f"{basis}: {verdict}" if verdict else basis,
               **{**mark, **(ring if filled else {"markeredgecolor": "white"})})
        for verdict, mark in MARKS.items() if verdict in seen
    ]  # fmt: skip
    if handles:
        drawing.legend(
            handles=handles, loc="outside lower left", ncols=len(handles),
            title=textwrap.fill(source, WIDE),
            alignment="left", title_fontsize=9.5,
        )  # fmt: skip
