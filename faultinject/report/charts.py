"""Which figures a campaign's findings have, with their titles and captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from faultinject.report.bar_figures import (
    OutcomeRow,
    draw_common_causes,
    draw_kinds,
    draw_outcomes,
    draw_strata,
    draw_times,
)
from faultinject.report.data import Curve, ReportData
from faultinject.report.designs import draw_designs
from faultinject.report.dose_verdicts import crossing_sentence
from faultinject.report.figure7 import draw_agreement, draw_breakeven
from faultinject.report.formatting import TIMES
from faultinject.report.latency import draw_latency
from faultinject.report.model_figures import (
    draw_at_frequency,
    draw_at_frequency_over_n,
    draw_measured,
)
from faultinject.report.verdicts import REPAIR
from faultinject.results import accelerator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chart", "draw_charts"]

TIMED = ("latency", "speed")
"""Figures whose values are times."""
ON_DOSE = ("measured", "outcomes", "common-causes", "breaks", "kinds")
"""Figures whose values depend on how many flips act."""


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, its file name, title and caption (plain text, R_M for a subscript)."""

    name: str
    figure: object  # a matplotlib Figure; msgspec would import matplotlib to inspect the type
    title: str
    caption: str


def draw_charts(data: ReportData) -> Iterator[Chart]:
    """Draw all figures that there are data for, the most informative first.

    The caption of a figure whose values depend on the accelerator says so.
    """
    of = data.campaign
    for chart in _charts(data):
        limits = ""
        if chart.name.startswith(TIMED):
            limits = accelerator.limits(of.accel, flips=False)
        elif of.flips and chart.name.startswith(ON_DOSE):
            limits = of.limits
        yield msgspec.structs.replace(chart, caption=f"{chart.caption} {limits}".strip())


def _charts(data: ReportData) -> Iterator[Chart]:
    m, n = data.campaign.policy
    yield from _doses(data)
    for curve in data.curves:
        yield from _curve(data, curve)
    for need in sorted({each.m for each in data.designs if not each.repair}):
        yield _chart(
            f"nodes-{need}",
            draw_designs(data.designs, need),
            f"R_sys of nodes that require {need} equal replies of n guests.",
            "Points: R_sys recombined from the measured strata, with confidence intervals. Dashed: "
            "the paper's formula, computed. Dotted: R_V, an upper bound for every n. Red, where "
            "present: probability of silent corruption, recombined.",
        )
    several_n = {each.cause for each in data.at_frequency if _many_n(data, each.cause)}
    if several_n:
        yield _chart(
            "breaks-n",
            draw_at_frequency_over_n([e for e in data.at_frequency if e.cause in several_n]),
            "Unreliability over n with a common cause in some missions.",
            "R_M of a guest is .9, including the common cause. Its frequency is assumed; its "
            "effect was measured (bars: confidence intervals). Dashed: computed for independent "
            "failures. Where one event fails all guests, more guests do not help.",
        )
    elif data.common_causes:
        yield _chart(
            "common-causes",
            draw_common_causes(data.common_causes),
            "Number of guests that failed after one common-cause event.",
            "Solid: measured, with confidence intervals; the cause is by construction. Dashed: "
            "computed for independent guests that fail equally often. 2-of-3 does not tolerate two "
            "or three failed guests.",
        )
    if data.at_frequency and not several_n:
        yield _chart(
            "breaks",
            draw_at_frequency(data.at_frequency, m, n),
            "Unreliability with a common cause in some missions.",
            "R_M includes both a guest's own, independent failures and the common cause. The "
            "frequency of the cause is assumed; its effect was measured (bands: confidence "
            "intervals). Where guests rarely fail on their own, the common cause dominates, and "
            "voting does not reduce it. A line ends at the highest R_M that the cause allows.",
        )
    if not data.designs and any(each.paper is not None for each in data.strata):
        yield _chart(
            "strata",
            draw_strata(data.strata),
            "Distance of each stratum from the paper's assumption.",
            "Blue: proportion of missions that did not end as the paper assumes (success in f_0 "
            "and f_1; failure in f_2, f_3 and, with the voter hit, g_k). Arrow: none was observed; "
            "the bar ends at the upper confidence limit. Thin bar below: silent corruption, grey "
            "if none. All are measured; that guests which are hit fail is by construction.",
        )
    for repair in sorted({each.repair for each in data.kinds}):
        yield _chart(
            "kinds-repair" if repair else "kinds",
            draw_kinds([each for each in data.kinds if each.repair == repair]),
            f"Outcomes of missions by kind of fault (repair {'on' if repair else 'off'}).",
            "Measured. Left: missions with this hit only. Right: missions with further hits of any "
            "kind; each counts under all of its kinds. Numbers: missions.",
        )
    if data.doses:
        yield _chart(
            "outcomes",
            draw_outcomes(_rows(data), ("one guest alone (NV)", "the voted node")),
            "Outcomes of missions.",
            "Measured: the same faults without and with the voter. Numbers: missions.",
        )
    if data.latencies:
        yield _chart(
            "latency",
            draw_latency([each for each in data.latencies if each.drawn]),
            "Latency of answered requests.",
            "Measured: proportion of answered requests that took longer than the time on the "
            "horizontal axis."
            + (
                " A client of a 2-of-3 node waits for the second reply only, so one slow guest has "
                "no effect. The failure of a guest has, until the voter detects it."
                if (m, n) == (2, 3)
                else ""
            ),
        )
    if data.times:
        yield _chart(
            "speed",
            draw_times(data.times),
            "Duration of a mission by phase.",
            "Means. Numbers: missions per hour of all workers together, from the measured times.",
        )


def _many_n(data: ReportData, cause: str) -> bool:
    return len({each.n for each in data.at_frequency if each.cause == cause}) > 2


def _doses(data: ReportData) -> Iterator[Chart]:
    m, n = data.campaign.policy
    shared = tuple(each for each in data.doses if each.shared)
    kinds = dict.fromkeys(each.kind for each in data.doses if not each.shared)
    for number, kind in enumerate(kinds or [""] if data.doses else []):
        doses = tuple(each for each in data.doses if each.kind == kind and not each.shared)
        common = (
            " Right, common causes: one event affects all guests in the same way at the same time."
            if shared and doses
            else " A common cause affects all guests in the same way at the same time."
            if shared
            else ""
        )
        crossing = data.crossings.get(kind)
        yield _chart(
            f"measured-{kind}" if number else "measured",
            draw_measured(doses + (() if number else shared), m, n),
            "Measured R_sys over measured R_M.",
            "Each point is one kind and dose of faults, with confidence intervals on both axes; "
            "the two quantities were measured in separate missions. Hollow: a dose that cannot "
            "discriminate, so that its agreement is no evidence. Dashed: the paper's formula "
            "for independent failures. Shading: where the formula predicts that voting helps "
            "(blue) or harms (brown). Below: difference from the formula; the grey bar is the "
            f"formula's value over the interval of R_M.{common} "
            f"{crossing_sentence(crossing) if crossing else ''}",
        )


def _rows(data: ReportData) -> list[OutcomeRow]:
    return [
        OutcomeRow(
            label=each.kind if each.shared else f"{each.kind} {TIMES} {each.flips:,}",
            left=each.plain_outcomes,
            right=each.outcomes,
        )
        for each in data.doses
    ]


def _curve(data: ReportData, curve: Curve) -> Iterator[Chart]:
    ending = "-repair" if curve.repair else ""
    points = tuple(each for each in data.points if each.repair == curve.repair)
    state = "repair on" if curve.repair else "repair off, as in the paper"
    undecided = "undecided" in {each.choice for each in points}
    yield _chart(
        f"figure7{ending}",
        draw_breakeven(curve, points),
        f"The paper's Figure 7, recombined from measured strata ({state}).",
        "Above the line the voted node is more reliable than the plain one. Dashed: Inequality "
        "(4). Band: simultaneous confidence band of the break-even R_V for all R_M, from the "
        "measured f_k and g_k."
        + (" Marks: the operating points, by which node is better." if points else "")
        + (" Undecided: the interval of the difference contains 0." if undecided else "")
        + (f" {REPAIR}" if curve.repair else ""),
    )
    given = " Light: with f_0 as measured; dark: given f_0 = 0." if curve.relative_given else ""
    yield _chart(
        f"agreement{ending}",
        draw_agreement(curve),
        f"Distance from the paper ({state}).",
        "Recombined. Equivalence holds only if the whole band lies between the dotted margins, "
        "which the campaign's file set beforehand."
        + given
        + (f" {REPAIR}" if curve.repair else ""),
    )


def _chart(name: str, figure: Figure, title: str, caption: str) -> Chart:
    return Chart(name=name, figure=figure, title=title, caption=caption.strip())
