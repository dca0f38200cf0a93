"""Which figures a campaign's findings have, and what is written under each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from faultinject.report.bar_figures import (
    Line,
    draw_kinds,
    draw_outcomes,
    draw_shots,
    draw_speed,
    draw_strata,
)
from faultinject.report.figure7 import draw_agreement, draw_breakeven
from faultinject.report.formatting import TIMES
from faultinject.report.latency import draw_latency
from faultinject.report.model_figures import draw_breaks, draw_breaks_over_n, draw_measured
from faultinject.report.nodes import draw_nodes
from faultinject.results.findings import CurveFinding, Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chart", "draw_charts"]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, its files' name, title and caption (plain text, R_M for a subscript)."""

    name: str
    figure: object  # a matplotlib Figure: msgspec would import matplotlib to look at it
    title: str
    caption: str


def draw_charts(findings: Findings) -> Iterator[Chart]:
    """All figures that there are data for, the most telling first."""
    yield from _doses(findings)
    for curve in findings.curves:
        yield from _curve(findings, curve)
    for m in sorted({node.m for node in findings.nodes if not node.repair}):
        yield _chart(
            f"nodes-{m}",
            draw_nodes(findings.nodes, m),
            f"R_sys of nodes that release what {m} of n guests say, over n.",
            "Points: measured, with intervals. Dashed: the paper's formula. Dotted: R_V, which no "
            "number of guests can beat. Red, where there is any: wrong replies released.",
        )
    over_n = sorted({each.cause for each in findings.breaks if _many_n(findings, each.cause)})
    if over_n:
        yield _chart(
            "breaks-n",
            draw_breaks_over_n([each for each in findings.breaks if each.cause in over_n]),
            "What more guests are worth when one cause strikes all of them now and then.",
            "A guest's R_M is .9, the shared cause included; how often that comes is assumed, what "
            "it does is measured, with its interval. Dashed: what guests that fail independently "
            "would make of it. Where one cause fells all, no number of guests bears it.",
        )
    elif findings.shots:
        yield _chart(
            "shots",
            draw_shots(findings.shots),
            "How many guests one cause takes down.",
            "Solid: measured. Dashed: what the same guests would have done, each failing as "
            "often, independently of the others. Two or three failed guests are more than "
            "2-of-3 can bear.",
        )
    if findings.breaks and not over_n:
        yield _chart(
            "breaks",
            draw_breaks(findings.breaks, findings.head.m, findings.head.n),
            "What a shared cause does to the paper's curve.",
            "Here R_M holds both: a guest's own failures, independent, and the shared cause. "
            "How often the shared cause comes is assumed; what it does when it comes is "
            "measured, with its interval. Where guests hardly fail by themselves, the shared "
            "cause is all that is left, and no vote helps against it. A line ends where R_M "
            "cannot be better, for the cause.",
        )
    if not findings.nodes and any(each.paper is not None for each in findings.strata):
        yield _chart(
            "strata",
            draw_strata(findings.strata),
            "How far each stratum is from what the paper assumes of it.",
            "Blue: missions that did not end as the paper has it (f_0, f_1 should all succeed; "
            "f_2, f_3 and, voter hit, g_k all fail). An arrow: there was none at all, and the "
            "bar's end is what the number of missions can exclude. Thin, below: wrong replies "
            "released, grey if none, red otherwise.",
        )
    for repair in sorted({each.repair for each in findings.kinds}):
        yield _chart(
            "kinds-repair" if repair else "kinds",
            draw_kinds([each for each in findings.kinds if each.repair == repair]),
            f"What became of missions, by what struck (repair {'on' if repair else 'off'}).",
            "Left: missions with this one hit and no other. Right: missions with other hits "
            "too, of any kind; they stand under each of their kinds. Beside the bars: how many "
            "missions.",
        )
    if findings.doses:
        yield _chart(
            "outcomes",
            draw_outcomes(_lines(findings), ("one guest alone (NV)", "the voted node")),
            "What became of missions.",
            "The same faults, past the voter and through it. Beside the bars: how many missions.",
        )
    if findings.latencies:
        yield _chart(
            "latency",
            draw_latency([each for each in findings.latencies if each.drawn]),
            "How long clients waited.",
            "Share of answered requests that took longer than the time below."
            + (
                " A client of a 2-of-3 node waits for the second reply, not the third, so one slow "
                "guest should not show; what shows is a guest's death, which the voter must notice."
                if (findings.head.m, findings.head.n) == (2, 3)
                else ""
            ),
        )
    if findings.speeds:
        yield _chart(
            "speed",
            draw_speed(findings.speeds),
            "Where a mission's time goes.",
            "Means; missions an hour of all workers together, from the time they took.",
        )


def _many_n(findings: Findings, cause: str) -> bool:
    return len({each.n for each in findings.breaks if each.cause == cause}) > 2


def _doses(findings: Findings) -> Iterator[Chart]:
    head, shared = findings.head, tuple(each for each in findings.doses if each.shared)
    kinds = dict.fromkeys(each.kind for each in findings.doses if not each.shared)
    for number, kind in enumerate(kinds or [""] if findings.doses else []):
        doses = tuple(each for each in findings.doses if each.kind == kind and not each.shared)
        beside = (
            " One cause for all: the same, but what strikes one guest strikes all with "
            "the same bits, the same request, the same moment."
            if shared
            else ""
        )
        yield _chart(
            f"measured-{kind}" if number else "measured",
            draw_measured(doses + (() if number else shared), head.m, head.n),
            "Measured R_sys over measured R_M.",
            "A point is one kind and dose of faults (beside it), with its interval on both "
            "axes; the two are measured in different missions. Dashed: the paper's formula for "
            "independent failures. Shaded: where the formula has voting help, and where harm. "
            "Below: the distance from the formula; the grey bar is where the formula may be, "
            f"R_M being known only within its interval.{beside} {findings.crossing.get(kind, '')}",
        )


def _lines(findings: Findings) -> list[Line]:
    return [
        Line(
            label=each.kind if each.shared else f"{each.kind} {TIMES} {each.flips:,}",
            left=each.plain_outcomes,
            right=each.outcomes,
        )
        for each in findings.doses
    ]


def _curve(findings: Findings, curve: CurveFinding) -> Iterator[Chart]:
    ending = "-repair" if curve.repair else ""
    points = tuple(each for each in findings.points if each.repair == curve.repair)
    state = "repair on" if curve.repair else "repair off, as in the paper"
    undecided = "undecided" in {each.verdict for each in points}
    yield _chart(
        f"figure7{ending}",
        draw_breakeven(curve, points),
        f"The paper's Figure 7, measured ({state}).",
        "Above the line a voted node is more reliable than a plain one. Dashed: Inequality (4). "
        "Band: where the line can be, from what was measured of f_k and g_k, for all R_M at once."
        + (
            " Marks: the campaign's operating points, by what the data say of each."
            if points
            else ""
        )
        + (" Undecided: the difference may be 0." if undecided else ""),
    )
    dark = (
        " Light: with f_0 as far as it was measured; dark: given f_0 = 0."
        if curve.relative_given
        else ""
    )
    yield _chart(
        f"agreement{ending}",
        draw_agreement(curve),
        f"The same, as distance from the paper ({state}).",
        "Equivalence is claimed only if the whole band lies between the dotted margins, which the "
        "campaign's file set beforehand." + dark,
    )


def _chart(name: str, figure: Figure, title: str, caption: str) -> Chart:
    return Chart(name=name, figure=figure, title=title, caption=caption.strip())
