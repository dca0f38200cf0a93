"""Drawings of the paper's figures: its axes and its curves, each labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultinject.calculator.figures.curves import (
    FIGURE4_RV,
    FIGURE6_REST,
    FIGURE7_RVS,
    Plot,
)
from faultinject.calculator.figures.marks import INK_BLUES, draw_points, name_line
from faultinject.model.bounds import breakeven_rf
from faultinject.model.inversions import rm_needed
from faultinject.plotting import (
    FAINT,
    INK,
    PAPER,
    PLAIN,
    VOTED,
    new_figure,
    soften,
)
from faultinject.results.points import MeasuredPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure3", "draw_figure4", "draw_figure6", "draw_figure7"]

Points = Sequence[MeasuredPoint]
NARROW = 9  # VMs: about what one host holds


def draw_figure3(plot: Plot, points: Points) -> Figure:
    """Lower bound on R_V over R_M, a curve for each n (Inequality 1)."""
    figure = new_figure(7.6, 5.6)
    axes = figure.subplots()
    for curve, colour in zip(plot.curves, INK_BLUES, strict=False):
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.6)
    for curve, colour, at in zip(
        plot.curves, INK_BLUES, (0.20, 0.20, 0.20, 0.22, 0.18), strict=False
    ):
        name_line(axes, curve, at, f"$n = {curve.value:g}$", colour)
    axes.axhline(1.0, color=FAINT, linewidth=0.9)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, linestyle=":")
    axes.text(0.80, 0.765, "$R_V = R_M$: never enough", color=FAINT, fontsize=10.5, rotation=36,
              ha="center", va="center", rotation_mode="anchor")  # fmt: skip
    axes.plot([0.1], [0.3], marker="x", color=PLAIN, markersize=8, markeredgewidth=1.8)
    axes.annotate(
        "the paper's example, $R_M = 0.1$, $R_V = 0.3$:\nabove $n = 4$, below $n = 3$",
        (0.1, 0.3), (0.42, 0.17), color=PLAIN, fontsize=10.5, va="center",
        arrowprops={"arrowstyle": "-", "color": PLAIN, "linewidth": 0.8, "shrinkB": 5},
    )  # fmt: skip
    axes.text(
        0.55, 1.012, "$n = 1$: no $R_V < 1$ is enough", color=FAINT, fontsize=10.5, va="bottom"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.06), xlabel="reliability of a VM, $R_M$")
    axes.set_ylabel("lower bound on the hypervisor's reliability, $R_V$")
    axes.set_title("Figure 3: 1-of-n is better than one VM above its line")
    soften(axes)
    shades = {curve.value: colour for curve, colour in zip(plot.curves, INK_BLUES, strict=True)}
    draw_points(axes, points, "3", fill=lambda point: shades.get(point.n or 0), spread=True)
    return figure


def draw_figure4(plot: Plot, points: Points) -> Figure:
    """Lower bound on n over R_M for two R (Inequality 2)."""
    figure = new_figure(7.6, 5.6)
    axes = figure.subplots()
    least = []
    shades = {plot.curves[0].value: INK_BLUES[1], plot.curves[1].value: INK_BLUES[4]}
    for curve, style in zip(plot.curves, ("-", (0, (6, 2))), strict=True):
        colour = shades[curve.value]
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.7, linestyle=style)
        name_line(axes, curve, 0.16, f"$R = {curve.value:g}$", colour)
        least.append(float(rm_needed(curve.value, FIGURE4_RV, 1, NARROW)))
        axes.plot([least[-1]], [NARROW], marker="o", markersize=5, color=colour, zorder=4)
    axes.axhline(NARROW, color=FAINT, linewidth=0.9, linestyle=":")
    axes.text(0.985, NARROW + 0.8, "nine VMs", color=FAINT, fontsize=10.5, ha="right")
    axes.annotate(
        f"nine VMs are enough from\n$R_M = {least[0]:.3f}$ and ${least[1]:.3f}$",
        (least[1], NARROW),
        (0.58, 24), fontsize=10.5,
        arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkB": 5},
    )  # fmt: skip
    axes.set(xlim=(0.1, 1.0), ylim=(0, 70), xlabel="reliability of a VM, $R_M$")
    axes.set_ylabel("lower bound on the number of VMs, $n$")
    axes.set_title(f"Figure 4: VMs needed for a node reliability R, $R_V = {FIGURE4_RV}$")
    soften(axes)
    draw_points(axes, points, "4", fill=lambda point: shades.get(point.r or 0.0), spread=True)
    return figure


def draw_figure6(plot: Plot, points: Points) -> Figure:
    """Lower bound on R_F over R_f (Inequality 3): (a) for several R_M', (b) for several n."""
    figure = new_figure(7.6, 5.6)
    axes = figure.subplots()
    several_n = plot.figure == "6b"
    shades = INK_BLUES[1:] if several_n else INK_BLUES
    places = (0.55, 0.42, 0.30, 0.23) if several_n else (0.70, 0.62, 0.54, 0.43, 0.35)
    for curve, colour, at in zip(plot.curves, shades, places, strict=False):
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.6)
        if curve.value == 1:
            continue  # it lies on the diagonal, which is named
        name = f"$n = {curve.value:g}$" if several_n else f"$R_M' = {curve.value:g}$"
        name_line(axes, curve, at, name, colour)
    if not several_n:
        axes.plot([0.1, 1], [0.1, 1], color=FAINT, linewidth=0.9, linestyle=":")
    axes.text(
        0.40, 0.365, "$n = 1$: $R_F = R_f$" if several_n else "$R_F = R_f$",
        color=shades[0] if several_n else FAINT,
        fontsize=10.5, ha="center", va="center", rotation=37, rotation_mode="anchor",
    )  # fmt: skip
    if several_n:
        spots = [(n, float(breakeven_rf(0.75, FIGURE6_REST, n))) for n in (6, 9)]
        for _, y in spots:
            axes.plot([0.75], [y], marker="x", color=PLAIN, markersize=7, markeredgewidth=1.7)
        values = ", ".join(f".{y * 10_000:.0f} at $n = {n}$" for n, y in spots)
        axes.annotate(
            f"the paper's values at $R_f = 0.75$:\n{values}", (0.75, 0.985), (0.66, 0.33),
            color=PLAIN, fontsize=10.5, ha="left",
            arrowprops={"arrowstyle": "-", "color": PLAIN, "linewidth": 0.8, "shrinkB": 6},
        )  # fmt: skip
    axes.set(xlim=(0.1, 1.0), ylim=(0.1, 1.03), xlabel="reliability of f inside a VM, $R_f$")
    axes.set_ylabel("lower bound on the reliability of F, $R_F$")
    axes.set_title(
        f"Figure 6(b): F next to the hypervisor, $R_M' = {FIGURE6_REST}$"
        if several_n
        else f"Figure 6(a): F next to the hypervisor, $n = {plot.n}$"
    )
    soften(axes)
    known = {curve.value: colour for curve, colour in zip(plot.curves, shades, strict=False)}
    draw_points(
        axes, points, plot.figure,
        fill=lambda point: known.get(point.n or 0 if several_n else point.rm_rest or 0.0),
    )  # fmt: skip
    return figure


def draw_figure7(plot: Plot, points: Points) -> Figure:
    """Where 2-of-3 is better: the bound on R_V over R_M (Inequality 4)."""
    figure = new_figure(7.6, 5.6)
    axes = figure.subplots()
    bound, *ranges = plot.curves
    floor = 0.84
    below = [(x, y) for x, y in zip(bound.x, bound.y, strict=True) if y <= 1.0]
    axes.fill_between(
        [x for x, _ in below], [y for _, y in below], 1.0, color=VOTED, alpha=0.12, linewidth=0
    )
    axes.plot(bound.x, bound.y, color=PAPER, linewidth=1.7)
    axes.axhline(1.0, color=FAINT, linewidth=0.9)
    axes.axvline(0.5, color=FAINT, linewidth=0.9, linestyle=":")
    axes.text(0.493, floor + 0.006, "no $R_V < 1$\nhelps", color=INK, fontsize=10.5, ha="right")
    wide, narrow = ranges
    for each, colour, at, across, up in (
        (wide, INK_BLUES[1], (0.75, wide.y[0] + 0.002), "center", "bottom"),
        (narrow, INK_BLUES[4], (0.845, 0.896), "left", "top"),  # next to it: no room inside
    ):
        axes.plot(each.x, each.y, color=colour, linewidth=1.3, marker="|", markersize=11)
        axes.text(
            *at, f"$R_V = {each.value:g}$: {each.x[0]:.4f} to {each.x[1]:.4f}",
            color=colour, fontsize=10.5, ha=across, va=up,
        )  # fmt: skip
    lowest = 8 / 9
    axes.plot([0.75], [lowest], marker="o", color=PAPER, markersize=5)
    axes.annotate("lowest: 8/9 at $R_M = 0.75$", (0.75, lowest), (0, -16),
                  textcoords="offset points", ha="center", fontsize=10.5)  # fmt: skip
    axes.text(0.75, 0.945, "voting helps", color=VOTED, fontsize=13, ha="center", va="center")
    axes.text(0.57, 0.865, "voting harms", color=PLAIN, fontsize=13, ha="left", va="center")
    axes.set(xlim=(0.4, 1.0), ylim=(floor, 1.008), xlabel="reliability of a VM, $R_M$")
    axes.set_ylabel("reliability of the voting layer, $R_V$")
    axes.set_title("Figure 7: $1/(3R_M - 2R_M^2) < R_V < 1$")
    assert tuple(each.value for each in ranges) == FIGURE7_RVS
    soften(axes)
    draw_points(axes, points, "7")
    return figure
