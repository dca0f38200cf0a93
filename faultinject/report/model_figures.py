"""Figures of R_sys over R_M, measured or with an assumed frequency of common causes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from faultinject.model.reliability import m_of_n
from faultinject.plotting import (
    ALARM,
    FAINT,
    MEASURED,
    OPEN,
    PAPER,
    PLAIN,
    VOTED,
    new_figure,
    soften,
)
from faultinject.report.data import CauseAtFrequency
from faultinject.report.labels import write_labels
from faultinject.results.findings import DoseFinding
from faultinject.results.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_at_frequency", "draw_at_frequency_over_n", "draw_measured"]

SHADES = ("#1f6f9c", "#5d4a7d", "#3c8c6e", "#a0527d", "#8a949e", "#4a4a4a")
GRID = [i / 200 for i in range(201)]
COLOURS = {"agrees": MEASURED, "departs": PLAIN, "undecided": OPEN}


def _model_rsys(rm: float, m: int, n: int) -> float:
    """R_sys of m-of-n independent guests (paper, section 4: 3 R_M^2 - 2 R_M^3 for 2-of-3)."""
    return float(m_of_n(1.0, 1.0, rm, m, n))


def draw_measured(doses: tuple[DoseFinding, ...], m: int = 2, n: int = 3) -> Figure:
    """Draw R_sys over R_M, one point per dose; below, the difference from the model.

    Points of a common cause get a panel of their own on the right.
    """
    panels = [
        (title, each)
        for title, shared in (("separate faults in each guest", False), ("common causes", True))
        if (each := [dose for dose in doses if dose.shared == shared and _measured(dose)])
    ]
    wide = len(panels) == 1
    figure = new_figure(8.6, 7.6 if wide else 6.4)
    grid = figure.subplots(
        2, len(panels), height_ratios=(3, 1.15), sharex=True, sharey="row", squeeze=False
    )
    for (title, shown), upper, lower in zip(panels, grid[0], grid[1], strict=True):
        _model(upper, m, n)
        for dose in shown:
            _mark(upper, lower, dose)
        write_labels(
            upper,
            [(d.plain.value or 0.0, d.voted.value or 0.0, d.label) for d in shown],
            (0.0095, 0.031) if wide else (0.0205, 0.042),
        )
        if not wide:
            upper.set_title(title)
        lower.axhline(0, color=PAPER, linewidth=1.1, linestyle=(0, (5, 2.5)))
        lower.set_xlabel("measured $R_M$ of one guest" + (", without a voter (NV)" if wide else ""))
        for axes in (upper, lower):
            axes.axvline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
            soften(axes)
    grid[0][0].set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))
    grid[0][0].set_ylabel("measured $R_{sys}$ of the voted node")
    grid[1][0].set_ylabel("$R_{sys} -$ the paper's")
    handles = _legend([dose for _, shown in panels for dose in shown], m, n)
    if wide:
        grid[0][0].legend(handles=handles, loc="upper left")
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _measured(dose: DoseFinding) -> bool:
    return dose.plain.value is not None and dose.voted.value is not None


def _mark(upper: Axes, lower: Axes, dose: DoseFinding) -> None:
    x, y = dose.plain.value or 0.0, dose.voted.value or 0.0
    colour = COLOURS[dose.verdict]
    face = colour if dose.power is None or dose.power.discriminates else "white"
    height = [[y - dose.voted.low], [dose.voted.high - y]]
    upper.errorbar(
        [x], [y], fmt="o", color=colour, markerfacecolor=face, markersize=5.5, elinewidth=1.3,
        capsize=2.5, zorder=4,
        xerr=[[x - dose.plain.low], [dose.plain.high - x]], yerr=height,
    )  # fmt: skip
    if dose.outcomes.get(Outcome.SILENT):
        upper.plot([x], [y], marker="o", markersize=13, markeredgecolor=ALARM, fillstyle="none")
    low, middle, high = dose.model.low, dose.model.value, dose.model.high
    lower.fill_between(
        [x - 0.012, x + 0.012], low - middle, high - middle, color=PAPER, alpha=0.16, linewidth=0
    )
    lower.errorbar(
        [x], [y - middle], fmt="o", color=colour, markerfacecolor=face, markersize=4.5,
        elinewidth=1.3, capsize=2.5, yerr=height,
    )  # fmt: skip


def _model(axes: Axes, m: int, n: int) -> None:
    curve = [_model_rsys(x, m, n) for x in GRID]
    axes.plot(GRID, GRID, color=PLAIN, linewidth=1.0, alpha=0.8)
    axes.plot(GRID, curve, color=PAPER, linewidth=1.2, linestyle=(0, (5, 2.5)))
    axes.fill_between(
        GRID,
        GRID,
        curve,
        where=[y >= x for x, y in zip(GRID, curve, strict=True)],
        color=VOTED,
        alpha=0.07,
        linewidth=0,
    )
    axes.fill_between(
        GRID,
        GRID,
        curve,
        where=[y <= x for x, y in zip(GRID, curve, strict=True)],
        color=PLAIN,
        alpha=0.09,
        linewidth=0,
    )


def _legend(doses: Sequence[DoseFinding], m: int, n: int) -> list[object]:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - slow to load

    formula = "$R_{sys} = 3R_M^2 - 2R_M^3$" if (m, n) == (2, 3) else f"{m} of {n}"
    lines: list[object] = [
        Line2D([], [], color=PAPER, linewidth=1.2, linestyle=(0, (5, 2.5)),
               label=f"the paper: {formula} (independent failures)"),
        Line2D([], [], color=PLAIN, linewidth=1.0, label="the plain node: $R_{sys} = R_M$"),
    ]  # fmt: skip
    seen = {dose.verdict for dose in doses}
    lines += [
        Line2D([], [], color=colour, marker="o", markersize=5.5, linewidth=1.3,
               label=f"measured: {verdict}")
        for verdict, colour in COLOURS.items() if verdict in seen
    ]  # fmt: skip
    if any(dose.outcomes.get(Outcome.SILENT) for dose in doses):
        lines.append(Line2D([], [], color=ALARM, marker="o", markersize=11, fillstyle="none",
                            linestyle="none", label="silent corruption"))  # fmt: skip
    return lines


def draw_at_frequency(causes: tuple[CauseAtFrequency, ...], m: int = 2, n: int = 3) -> Figure:
    """Draw unreliability (log scale) over R_M with a common cause in some missions."""
    figure = new_figure(8.6, 5.0)
    axes = figure.subplots()
    grid = [0.5 + i / 200 for i in range(100)]
    axes.plot(grid, [1 - x for x in grid], color=PLAIN, linewidth=1.0, label="the plain node")
    axes.plot(
        grid, [1 - _model_rsys(x, m, n) for x in grid], color=PAPER, linewidth=1.2,
        linestyle=(0, (5, 2.5)), label="the paper: independent failures only",
    )  # fmt: skip
    for each, shade in zip(causes, cycle(SHADES), strict=False):
        shown = [(x, row) for x, row in zip(each.rm, each.rsys, strict=True) if x >= 0.5]
        xs = [x for x, _ in shown]
        axes.fill_between(
            xs, [1 - row.high for _, row in shown], [1 - row.low for _, row in shown], color=shade,
            alpha=0.18, linewidth=0,
        )  # fmt: skip
        axes.plot(
            xs, [1 - row.value for _, row in shown], color=shade, linewidth=1.4,
            label=f"plus {each.kind} in {each.frequency:.0%} of missions",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set(
        xlim=(0.5, 1.0), ylim=(5e-4, 0.6), xlabel="$R_M$ of one guest, including the common cause"
    )
    axes.set_yticks([0.001, 0.01, 0.1, 0.5], ["0.1 %", "1 %", "10 %", "50 %"])
    axes.minorticks_off()
    axes.set_ylabel("proportion of missions that fail (log scale)")
    axes.legend(loc="lower left")
    soften(axes)
    return figure


def draw_at_frequency_over_n(causes: Sequence[CauseAtFrequency]) -> Figure:
    """Draw unreliability (log scale) over n at R_M = .9 with a common cause in some missions."""
    figure = new_figure(8.6, 4.6)
    axes = figure.subplots()
    alone = {each.n: 1 - each.at_independent for each in causes}
    ns = sorted(alone)
    axes.plot(ns, [alone[n] for n in ns], color=PAPER, linewidth=1.2, linestyle=(0, (5, 2.5)),
              label="the paper: independent failures only")  # fmt: skip
    names = dict.fromkeys(each.cause for each in causes)
    for number, (cause, shade) in enumerate(zip(names, cycle(SHADES), strict=False)):
        here = sorted((each for each in causes if each.cause == cause), key=lambda each: each.n)
        xs = [each.n + 0.12 * number for each in here]
        low, value, high = (
            [1 - getattr(each.at, edge) for each in here] for edge in ("high", "value", "low")
        )
        axes.errorbar(
            xs, value,
            # Rounding may put the value outside its interval by 1e-16.
            yerr=[[max(0.0, v - a) for v, a in zip(value, low, strict=True)],
                  [max(0.0, b - v) for v, b in zip(value, high, strict=True)]],
            color=shade, marker="o", markersize=5, linewidth=1.2, elinewidth=1.2, capsize=2.5,
            label=f"plus {cause} in {here[0].frequency:.0%} of missions",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlabel="guests, $n$", ylim=(min(alone.values()) / 2, 1.0))
    axes.set_xticks(ns)
    axes.set_ylabel("proportion of missions that fail (log scale)")
    axes.legend(loc="lower left")
    soften(axes)
    return figure
