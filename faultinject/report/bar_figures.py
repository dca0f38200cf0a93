"""Bar figures: strata, kinds of faults, outcomes, common causes, the phases of a mission."""

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
from faultinject.report.data import FaultKindResult, MissionTimes
from faultinject.results.findings import CommonCauseFinding, Proportion, StratumFinding
from faultinject.results.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "OutcomeRow", "describe", "draw_common_causes", "draw_kinds", "draw_outcomes", "draw_strata",
    "draw_times",
]  # fmt: skip

OUTCOMES = {
    Outcome.CORRECT: "#cfdbe4",
    Outcome.DETECTED: "#1f6f9c",
    Outcome.DECLARED: "#7fb0cc",
    Outcome.TIMEOUT: "#e0a93b",
    Outcome.VOTER_LOST: "#5d4a7d",
    Outcome.UNCLEAR: "#e58a8d",
    Outcome.SILENT: ALARM,
}
WORDS = {
    Outcome.CORRECT: "correct",
    Outcome.DETECTED: "detected (the voter's or link's error)",
    Outcome.DECLARED: "wrong reply that declares an error",
    Outcome.TIMEOUT: "timeout",
    Outcome.VOTER_LOST: "voter lost",
    Outcome.UNCLEAR: "wrong reply, belief unknown (old rows)",
    Outcome.SILENT: "silent corruption (wrong reply, believed)",
}
LOWEST = 1e-4


def describe(stratum: StratumFinding, repair: bool) -> str:
    """Describe what was hit; with ``repair`` also whether repair was on."""
    if stratum.design == "nv":
        hit_guests = stratum.k + stratum.function_k
        return f"plain node (NV), {'its guest' if hit_guests else 'nothing'} hit"
    hit = [
        "voter" if stratum.voter_hit else "",
        "F" if stratum.host_function_hit else "",
        _guests(stratum.k),
        f"f in {_guests(stratum.function_k)}" if stratum.function_k else "",
    ]
    what = f"{' and '.join(filter(None, hit)) or 'nothing'} hit"
    if stratum.alike is not None:
        return f"of these, with {'equal' if stratum.alike else 'different'} lies"
    if repair:
        what += f", repair {'on' if stratum.repair else 'off'}"
    return f"{stratum.vote}: {what}" if stratum.vote else what


def _guests(count: int) -> str:
    return "" if not count else "1 guest" if count == 1 else f"{count} guests"


def draw_strata(strata: Sequence[StratumFinding]) -> Figure:
    """Draw the distance of each stratum from the paper's assumption, and its wrong replies.

    The scale is logarithmic.  Strata about which the paper assumes nothing are omitted.
    """
    rows = [each for each in strata if each.paper is not None and each.failed.of]
    both = len({each.repair for each in rows}) > 1
    figure = new_figure(8.6, 1.25 + 0.52 * len(rows))
    axes = figure.subplots()
    for place, each in enumerate(rows):
        off = each.failed if each.paper == 0 else each.failed.complement()
        _distance(axes, place - 0.12, off, MEASURED, 2.0, 6)
        _distance(axes, place + 0.22, each.silent, ALARM if each.silent.count else FAINT, 1.1, 3.5)
    axes.set_yticks(range(len(rows)), [f"${each.label}$   {describe(each, both)}" for each in rows])
    axes.set_ylim(len(rows) - 0.45, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(LOWEST, 1.25)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    axes.set_xlabel("proportion of missions that did not end as the paper assumes (log scale)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    soften(axes, "x")
    return figure


def _distance(
    axes: Axes, y: float, share: Proportion, colour: str, line: float, mark: float
) -> None:
    """Draw an interval.  A log scale cannot show a count of 0: draw an arrow from its upper end."""
    low = max(share.low, LOWEST)
    axes.plot(
        [low, max(share.high, LOWEST)], [y, y], color=colour, linewidth=line, solid_capstyle="butt"
    )
    if share.count:
        axes.plot([(share.value or 0)], [y], "o", color=colour, markersize=mark)
        return
    axes.plot(
        [max(share.high, LOWEST)], [y], "|", color=colour, markersize=mark + 4, markeredgewidth=line
    )
    axes.plot([LOWEST * 1.04], [y], "<", color=colour, markersize=mark, clip_on=False)


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``draw_outcomes``: missions by outcome in its left and its right panel."""

    label: str
    left: dict[Outcome, int]
    right: dict[Outcome, int]


def draw_outcomes(lines: Sequence[OutcomeRow], titles: tuple[str, str]) -> Figure:
    """Draw outcomes of missions in two panels, one bar per row, with the number of trials."""
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


def draw_kinds(kinds: Sequence[FaultKindResult]) -> Figure:
    """Draw outcomes by kind of fault: alone, and with others in the same mission."""
    alone = {each.kind: each.outcomes for each in kinds if each.alone}
    among = {each.kind: each.outcomes for each in kinds if not each.alone}
    return draw_outcomes(
        [
            OutcomeRow(label=kind, left=alone.get(kind, {}), right=among.get(kind, {}))
            for kind in dict.fromkeys(each.kind for each in kinds)
        ],
        ("the only hit of the mission", "with other hits in the mission"),
    )


def _outcome_legend(figure: Figure, seen: set[Outcome]) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415 - slow to load

    handles = [
        Patch(facecolor=colour, label=WORDS[outcome])
        for outcome, colour in OUTCOMES.items() if outcome in seen
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def draw_common_causes(causes: Sequence[CommonCauseFinding]) -> Figure:
    """Draw how many guests a common cause made fail, measured and for independent failures."""
    columns = min(3, len(causes))
    rows = -(-len(causes) // columns)
    figure = new_figure(8.6, 0.6 + 3.0 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes in panels[len(causes) :]:
        axes.set_visible(False)
    for axes, each in zip(panels, causes, strict=False):
        for j, share in enumerate(each.failed):
            point = share.value or 0.0
            axes.bar(j - 0.17, point, width=0.34, color=MEASURED, linewidth=0,
                     label="measured, $c_j$" if j == 0 else None)  # fmt: skip
            axes.errorbar(
                [j - 0.17], [point], yerr=[[point - share.low], [share.high - point]], fmt="none",
                ecolor=INK, elinewidth=1.1, capsize=2.5,
            )  # fmt: skip
            axes.bar(j + 0.19, each.independent[j], width=0.30, facecolor="none", edgecolor=PAPER,
                     linewidth=1.0, linestyle=(0, (3, 1.5)),
                     label="independent guests (computed)" if j == 0 else None)  # fmt: skip
        axes.set_title(each.kind)
        axes.set_xticks(range(len(each.failed)))
        axes.set_xlabel(f"guests that failed ({each.failed[0].of:,} trials)")
        soften(axes, "y")
    panels[0].set_ylim(0, 1)
    for row in grid:
        row[0].set_ylabel("proportion of trials")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def draw_times(times: Sequence[MissionTimes]) -> Figure:
    """Draw the mean seconds of each phase of a mission."""
    figure = new_figure(8.6, 1.3 + 0.42 * len(times))
    axes = figure.subplots()
    parts = (
        ("reset", "reset to a clean start", "#1c4e6e"), ("inject", "inject", PLAIN),
        ("workload", "workload", "#7fb0cc"), ("settle", "inspect", "#c9ced4"),
    )  # fmt: skip
    for place, each in enumerate(times):
        left = 0.0
        for name, label, colour in parts:
            seconds = float(getattr(each, name))
            axes.barh(place, seconds, left=left, height=0.62, color=colour, linewidth=0,
                      label=label if place == 0 else None)  # fmt: skip
            left += seconds
        axes.text(
            left, place, f"  {each.per_hour:,.0f} per hour", va="center", fontsize=10.5, color=INK
        )
    axes.set_yticks(range(len(times)), [each.label for each in times])
    axes.set_ylim(len(times) - 0.4, -0.6)
    axes.set_xlim(
        0, 1.3 * max(each.reset + each.inject + each.workload + each.settle for each in times)
    )
    axes.set_xlabel("seconds per mission (mean)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    soften(axes, "x")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
