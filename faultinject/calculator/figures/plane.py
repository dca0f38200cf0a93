"""A map that is not in the paper: the recommended design at each (R_M, R_V), up to n VMs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from faultinject.calculator.figures.curves import LYING, Plot
from faultinject.calculator.figures.marks import draw_points
from faultinject.model.designs import WITHIN, Design, designs
from faultinject.model.outcomes import FailureMode, guest_outcomes
from faultinject.plotting import FAINT, INK, new_figure
from faultinject.results.points import MeasuredPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["best_designs", "draw_map", "place", "value_at"]

STEPS = 260
FAR_X, FAR_Y = 3.0, 4.0  # to R_M = .999, R_V = .9999
TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
PLAIN_COLOUR = "#eceae6"
FIRST = ("#cfe3f1", "#9cc6e2", "#64a2cc", "#3b7fae", "#256490", "#1a4d72", "#123852", "#0b2537")
VOTES = ("#fbe0b8", "#f3b562", "#dd8b2c", "#b8651b", "#8a4614", "#63310e", "#41200a", "#2a1506")
ENDS = {0.0: "every failure is a stop", 1.0: "every failure is a wrong reply"}


def place(reliability: float) -> float:
    """Return the position of a reliability on the axes: the number of nines, -log10(1 - R)."""
    return -math.log10(max(1.0 - reliability, 1e-9))


def value_at(position: float) -> float:
    """Return the reliability at a position."""
    return float(1.0 - 10.0**-position)


def best_designs(
    rms: Sequence[float], rvs: Sequence[float], n: int, lying: float, among: Sequence[str] = ()
) -> tuple[list[Design], Any]:
    """Return the designs, and for each (R_V, R_M) the index of the one ``best_design`` chooses.

    The index is a numpy array, a row for each of ``rvs``.  ``among``: the names of the candidates
    (NV is always one); empty: all.
    """
    import numpy as np  # noqa: PLC0415 - comes with matplotlib

    known = [each for each in designs(n) if each.plain or not among or each.name in among]
    how = FailureMode(lying=lying)
    plain = np.array(rms)
    layer = np.array(rvs)[:, None]
    gains = np.zeros((len(known), len(rvs), len(rms)))
    for index, design in enumerate(known):
        if not design.plain:
            parts = [float(guest_outcomes(rm, design.m, design.n, how).correct) for rm in rms]
            gains[index] = layer * np.array(parts)[None, :] - plain[None, :]
    greatest = gains.max(axis=0)
    enough = gains >= (1.0 - WITHIN) * greatest
    enough[:, greatest <= 0.0] = False
    enough[0] |= greatest <= 0.0
    # Fewest guests first, and of those with as many the one that gains most.
    best = np.zeros(greatest.shape, dtype=int)
    found = np.zeros(greatest.shape, dtype=bool)
    for size in sorted({each.n for each in known}):
        members = [i for i, each in enumerate(known) if each.n == size]
        score = np.where(enough[members], gains[members], -np.inf)
        fresh = ~found & enough[members].any(axis=0)
        best[fresh] = np.array(members)[score.argmax(axis=0)][fresh]
        found |= fresh
    return known, best


def _colour(design: Design) -> str:
    if design.plain:
        return PLAIN_COLOUR
    shades = FIRST if design.m == 1 else VOTES
    return shades[min(design.n - 2, len(shades) - 1)]


def draw_map(plot: Plot, points: Sequence[MeasuredPoint]) -> Figure:
    """Draw a panel for each share of lying failures: three, or those of the points."""
    from matplotlib.patches import Patch  # noqa: PLC0415 - slow to load

    n = plot.n or 0
    seen: set[Design] = set()
    named = {each.name: _colour(each) for each in designs(n)}
    ways = tuple(sorted({each.lying for each in points if each.lying is not None})) or LYING
    figure = new_figure(4.2 * max(len(ways), 2), 5.4)
    panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    for axes, lying in zip(panels, ways, strict=True):
        here = [each for each in points if each.lying is None or each.lying == lying]
        seen |= _panel(axes, n, lying, sorted({name for each in here for name in each.designs}))
        axes.set_title(ENDS.get(lying, f"{lying:.0%} of failures are wrong replies"))
        draw_points(axes, here, "map", place=place, fill=lambda point: named.get(point.label))
        axes.set_xlabel("reliability of a VM, $R_M$")
    panels[0].set_ylabel("reliability of the layer under the VMs, $R_V$")
    measured = " of those measured" if any(each.designs for each in points) else ""
    title = (
        f"Recommended design with up to {n} VMs{measured}:",
        "the fewest VMs with nine tenths of the greatest gain over one VM on the bare node (NV)",
    )
    glue = " " if len(ways) > 2 else "\n"
    figure.suptitle(glue.join(title), fontsize=12.5, x=0.01, ha="left")
    figure.legend(
        handles=[
            Patch(facecolor=_colour(each), edgecolor=FAINT, linewidth=0.5, label=each.name)
            for each in sorted(seen)
        ],
        loc="outside right center", handlelength=1.2,
    )  # fmt: skip
    return figure


def _panel(axes: Axes, n: int, lying: float, among: Sequence[str]) -> set[Design]:
    """Draw one panel; return the designs in it."""
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 - slow to load

    xs = [FAR_X * (i + 0.5) / STEPS for i in range(STEPS)]
    ys = [FAR_Y * (i + 0.5) / STEPS for i in range(STEPS)]
    known, best = best_designs(
        [value_at(x) for x in xs], [value_at(y) for y in ys], n, lying, among
    )
    axes.imshow(
        best, origin="lower", extent=(0, FAR_X, 0, FAR_Y), aspect="auto", interpolation="nearest",
        cmap=ListedColormap([_colour(each) for each in known]), vmin=-0.5, vmax=len(known) - 0.5,
    )  # fmt: skip
    for index, design in enumerate(known):
        mask = best == index
        if not mask.any():
            continue
        axes.contour(xs, ys, mask.astype(float), levels=[0.5], colors="white", linewidths=1.1)
        _name(axes, design, mask)
    axes.plot([0, FAR_X], [0, FAR_X], color=INK, linewidth=0.8, linestyle=":")
    for set_ticks, far in ((axes.set_xticks, FAR_X), (axes.set_yticks, FAR_Y)):
        shown = [each for each in TICKS if place(each) <= far + 1e-9]
        set_ticks(
            [place(each) for each in shown], [f"{each:g}".lstrip("0") or "0" for each in shown]
        )
    axes.text(1.5, 1.42, "$R_V = R_M$", color=INK, fontsize=9.5, ha="center", va="top", rotation=45,
              rotation_mode="anchor", transform_rotates_text=True)  # fmt: skip
    axes.set(xlim=(0, FAR_X), ylim=(0, FAR_Y))
    return {design for index, design in enumerate(known) if (best == index).any()}


WORD = (30, 11)
"""Width and height of a design's name, in steps."""


def _name(axes: Axes, design: Design, mask: Any) -> None:
    """Write the design's name where its region has most room; vertically if necessary."""
    for upright in (False, True):
        wide, high = reversed(WORD) if upright else WORD
        if (found := _roomiest(mask, wide, high)) is not None:
            row, column = found
            dark = _colour(design) in {*FIRST[3:], *VOTES[3:]}
            axes.text(
                FAR_X * (column + 0.5) / STEPS, FAR_Y * (row + 0.5) / STEPS, design.name,
                ha="center", va="center", fontsize=11, color="white" if dark else INK,
                rotation=90 if upright else 0,
            )  # fmt: skip
            return


def _roomiest(mask: Any, wide: int, high: int) -> tuple[int, int] | None:
    """Return (row, column) of the centre of the largest such rectangle that fits, or None."""
    import numpy as np  # noqa: PLC0415 - comes with matplotlib

    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=int)
    sums[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    for scale in (4.0, 3.0, 2.2, 1.6, 1.2, 1.0):
        rows, columns = int(high * scale), int(wide * scale)
        if rows > mask.shape[0] or columns > mask.shape[1]:
            continue
        inside = (
            sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
            + sums[:-rows, :-columns]
        )  # fmt: skip
        fits = np.argwhere(inside == rows * columns)
        if len(fits):
            row, column = fits[len(fits) // 2]
            return int(row) + rows // 2, int(column) + columns // 2
    return None
