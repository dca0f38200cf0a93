"""Shares by stratum, by kind of fault, by shared cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from faultinject.plotting import (
    ALARM,
    FAINT,
    INK,
    MEASURED,
    PAPER,
    PLAIN,
    new_figure,
    soften,
)
from faultinject.report.formatting import rest
from faultinject.results.findings import (
    CommonCauseFinding,
    FaultKindFinding,
    Share,
    SpeedFinding,
    StratumFinding,
)
from faultinject.results.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Line",
    "describe",
    "draw_kinds",
    "draw_outcomes",
    "draw_shots",
    "draw_speed",
    "draw_strata",
]

OUTCOMES = {
    Outcome.CORRECT: "#cfdbe4",
    Outcome.DETECTED: "#1f6f9c",
    Outcome.TIMEOUT: "#e0a93b",
    Outcome.VOTER_LOST: "#5d4a7d",
    Outcome.SILENT: ALARM,
}
WORDS = {
    Outcome.CORRECT: "correct",
    Outcome.DETECTED: "refused",
    Outcome.TIMEOUT: "no verdict in time",
    Outcome.VOTER_LOST: "voter lost",
    Outcome.SILENT: "wrong reply released",
}
LOWEST = 1e-4


def describe(stratum: StratumFinding, repair: bool) -> str:
    """What was hit, in words; with ``repair`` also whether it was on."""
    if stratum.design == "nv":
        struck = stratum.k + stratum.function_k
        return f"plain node (NV), {'its guest' if struck else 'nothing'} hit"
    hit = [
        "voter" if stratum.voter_hit else "",
        "F" if stratum.host_function_hit else "",
        _guests(stratum.k),
        f"f in {_guests(stratum.function_k)}" if stratum.function_k else "",
    ]
    what = f"{' and '.join(filter(None, hit)) or 'nothing'} hit"
    if stratum.alike is not None:
        return f"of these, liars that lie {'alike' if stratum.alike else 'apart'}"
    if repair:
        what += f", repair {'on' if stratum.repair else 'off'}"
    return f"{stratum.vote}: {what}" if stratum.vote else what


def _guests(count: int) -> str:
    return "" if not count else "1 guest" if count == 1 else f"{count} guests"


def draw_strata(strata: Sequence[StratumFinding]) -> Figure:
    """How far each stratum is from what the paper assumes of it, and its wrong replies, on a log
    scale.  Strata of which the paper assumes nothing are left out.
    """
    rows = [each for each in strata if each.paper is not None and each.trials]
    both = len({each.repair for each in rows}) > 1
    figure = new_figure(8.6, 1.25 + 0.52 * len(rows))
    axes = figure.subplots()
    for place, each in enumerate(rows):
        off = each.failed if each.paper == 0 else rest(each.failed)
        _distance(axes, place - 0.12, off, MEASURED, 2.0, 6)
        _distance(axes, place + 0.22, each.silent, ALARM if each.silent.count else FAINT, 1.1, 3.5)
    axes.set_yticks(range(len(rows)), [f"${each.label}$   {describe(each, both)}" for each in rows])
    axes.set_ylim(len(rows) - 0.45, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(LOWEST, 1.25)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    axes.set_xlabel("share of missions that did not end as the paper assumes (log scale)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    soften(axes, "x")
    return figure


def _distance(axes: Axes, y: float, share: Share, colour: str, line: float, mark: float) -> None:
    """An interval; where the count is 0 an arrow from its upper end, for 0 is off a log scale."""
    low = max(share.low, LOWEST)
    axes.plot(
        [low, max(share.high, LOWEST)], [y, y], color=colour, linewidth=line, solid_capstyle="butt"
    )
    if share.count:
        axes.plot([(share.point or 0)], [y], "o", color=colour, markersize=mark)
        return
    axes.plot(
        [max(share.high, LOWEST)], [y], "|", color=colour, markersize=mark + 4, markeredgewidth=line
    )
    axes.plot([LOWEST * 1.04], [y], "<", color=colour, markersize=mark, clip_on=False)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``draw_outcomes``: missions by outcome in its left and its right panel."""

    label: str
    left: dict[Outcome, int]
    right: dict[Outcome, int]


def draw_outcomes(lines: Sequence[Line], titles: tuple[str, str]) -> Figure:
    """What became of missions, a bar a line, in two panels; trials stand beside the bars."""
    figure = new_figure(8.6, 1.5 + 0.34 * len(lines))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, right in zip(panels, titles, (False, True), strict=True):
        for place, each in enumerate(lines):
            _bar(axes, place, each.right if right else each.left)
        axes.set_title(title)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(lines)), [each.label for each in lines])
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    every = [found for each in lines for found in (each.left, each.right)]
    _outcome_legend(figure, {o for found in every for o, count in found.items() if count})
    return figure


def _bar(axes: Axes, place: int, found: dict[Outcome, int]) -> None:
    trials = sum(found.values())
    left = 0.0
    for outcome, colour in OUTCOMES.items():
        share = found.get(outcome, 0) / trials if trials else 0.0
        axes.barh(place, share, left=left, height=0.66, color=colour, linewidth=0)
        left += share
    if trials:
        axes.text(1.015, place, f"{trials:,}", va="center", fontsize=9.5, color=FAINT)


def draw_kinds(kinds: Sequence[FaultKindFinding]) -> Figure:
    """What became of missions by kind of fault: it alone, and with others in the same mission."""
    alone = {each.kind: each.outcomes for each in kinds if each.alone}
    among = {each.kind: each.outcomes for each in kinds if not each.alone}
    return draw_outcomes(
        [
            Line(label=kind, left=alone.get(kind, {}), right=among.get(kind, {}))
            for kind in dict.fromkeys(each.kind for each in kinds)
        ],
        ("the only hit of the mission", "with other hits in the mission"),
    )


def _outcome_legend(figure: Figure, seen: set[Outcome]) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415 - an extra

    handles = [
        Patch(facecolor=colour, label=WORDS[outcome])
        for outcome, colour in OUTCOMES.items() if outcome in seen
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=5)


def draw_shots(shots: Sequence[CommonCauseFinding]) -> Figure:
    """How many guests a shared cause made fail, beside what independence would have it."""
    columns = min(3, len(shots))
    rows = -(-len(shots) // columns)
    figure = new_figure(8.6, 0.6 + 3.0 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes in panels[len(shots) :]:
        axes.set_visible(False)
    for axes, each in zip(panels, shots, strict=False):
        for j, share in enumerate(each.fell):
            point = share.point or 0.0
            axes.bar(j - 0.17, point, width=0.34, color=MEASURED, linewidth=0,
                     label="measured, $c_j$" if j == 0 else None)  # fmt: skip
            axes.errorbar(
                [j - 0.17], [point], yerr=[[point - share.low], [share.high - point]], fmt="none",
                ecolor=INK, elinewidth=1.1, capsize=2.5,
            )  # fmt: skip
            axes.bar(j + 0.19, each.independent[j], width=0.30, facecolor="none", edgecolor=PAPER,
                     linewidth=1.0, linestyle=(0, (3, 1.5)),
                     label="if guests fell independently" if j == 0 else None)  # fmt: skip
        axes.set_title(each.kind)
        axes.set_xticks(range(len(each.fell)))
        axes.set_xlabel(f"guests that failed ({each.fell[0].of:,} shots)")
        soften(axes, "y")
    panels[0].set_ylim(0, 1)
    for row in grid:
        row[0].set_ylabel("share of shots")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def draw_speed(speeds: Sequence[SpeedFinding]) -> Figure:
    """Where a mission's seconds went."""
    figure = new_figure(8.6, 1.3 + 0.42 * len(speeds))
    axes = figure.subplots()
    parts = (
        ("reset", "reset to a clean start", "#1c4e6e"), ("inject", "inject", PLAIN),
        ("workload", "workload", "#7fb0cc"), ("settle", "look", "#c9ced4"),
    )  # fmt: skip
    for place, each in enumerate(speeds):
        left = 0.0
        for name, label, colour in parts:
            seconds = float(getattr(each, name))
            axes.barh(place, seconds, left=left, height=0.62, color=colour, linewidth=0,
                      label=label if place == 0 else None)  # fmt: skip
            left += seconds
        axes.text(
            left, place, f"  {each.an_hour:,.0f} an hour", va="center", fontsize=10.5, color=INK
        )
    axes.set_yticks(range(len(speeds)), [each.label for each in speeds])
    axes.set_ylim(len(speeds) - 0.4, -0.6)
    axes.set_xlim(
        0, 1.3 * max(each.reset + each.inject + each.workload + each.settle for each in speeds)
    )
    axes.set_xlabel("seconds of a mission (mean)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    soften(axes, "x")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
