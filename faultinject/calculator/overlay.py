"""From the findings of campaigns to points drawn over the paper's figures.

- Figure 3: at each R_M of a campaign on 1 of n, the R_V above which its nodes of n guests were
  better than plain.  Of several campaigns it is the one that has every n, if there is one.
- Figure 4: at each R_M, the smallest n whose R_sys reaches R (at the figure's R_V).
- Figure 7: the same break-even for 2-of-3, from forced faults.  From soft errors: the measured R_M
  of a dose, with the R_V that its measured R_sys implies, R_M / R_sys.
- The map: the design to choose, by the map's own rule, among those that one campaign measured.
- Figure 6: points written by ``trivisor campaign moved``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deploy.strict_toml import SpecError
from faultinject.calculator.figures.curves import FIGURE3_NS, FIGURE4_RS, FIGURE4_RV
from faultinject.estimate.equivalence import PointComparison
from faultinject.estimate.intervals import Interval
from faultinject.model.designs import WITHIN
from faultinject.results.findings import (
    FILE,
    DesignFinding,
    DesignPoint,
    DoseFinding,
    Findings,
    read_findings,
)
from faultinject.results.points import (
    FORMAT,
    Count,
    Estimate,
    Figure,
    MeasuredPoint,
    MeasuredPoints,
    Verdict,
    read,
)

__all__ = ["POINTS", "collect", "points_of"]

POINTS = "points.json"
"""Name of a file of measured points in a folder of results."""


def _set(value: float) -> Estimate:
    """Return a quantity that was set, not measured."""
    return Estimate(value=value, low=value, high=value)


def _estimate(found: Interval) -> Estimate | None:
    """Clip the interval to [0, 1]; None where the value itself exceeds 1."""
    if found.value > 1.0:
        return None
    return Estimate(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high))


def _beyond(found: Interval) -> Estimate:
    """Represent a value above 1: drawn at 1, with the part of its interval below."""
    return Estimate(value=1.0, low=min(1.0, max(0.0, found.low)), high=1.0)


def points_of(kept: Findings) -> Iterator[MeasuredPoint]:
    """Yield the points of one campaign, repair off: the paper does not model repair."""
    nodes = [node for node in kept.designs if not node.repair]
    # In the paper, failed guests of 1-of-n are silent.
    mute = kept.campaign.lying == 0.0
    first = sorted((node for node in nodes if node.m == 1 and mute), key=lambda node: node.n)
    for node in first:
        if node.n in FIGURE3_NS:
            yield from _breakeven("3", node.points, node.n)
    yield from _needed(first)
    # 2-of-3 strata of the node itself have points of their own; other policies are designs.
    yield from _breakeven("7", [point for point in kept.points if not point.repair])
    for node in nodes:
        if (node.m, node.n) == (2, 3):
            yield from _breakeven("7", node.points)
    for dose in kept.doses:
        yield from _dose(dose)
    if _compares(nodes):
        yield from _best(nodes, kept.campaign.lying)


def _recombined(**values: Any) -> MeasuredPoint:
    """Return a point that was computed from strata."""
    return MeasuredPoint(basis="recombined", **values)


def _breakeven(
    figure: Figure, points: Iterable[PointComparison | DesignPoint], n: int | None = None
) -> Iterator[MeasuredPoint]:
    seen: set[float] = set()
    for point in points:
        rm, span = point.rm, point.breakeven
        if rm in seen or span is None:
            continue  # the break-even does not depend on the point's R_V
        seen.add(rm)
        if (rv := _estimate(span)) is not None:
            yield _recombined(figures=(figure,), rm=_set(rm), rv=rv, n=n)
        elif figure == "7":
            yield MeasuredPoint(
                basis="recombined", figures=("7",), rm=_set(rm), rv=_beyond(span), beyond=True
            )


def _needed(nodes: Sequence[DesignFinding]) -> Iterator[MeasuredPoint]:
    """Yield the smallest n that reaches R; its interval is open where no n certainly does."""
    if {node.n for node in nodes} != set(range(1, len(nodes) + 1)):
        return  # the smallest one may not have been measured
    reached: dict[float, list[tuple[int, Interval]]] = {}
    for node in nodes:
        for point in node.points:
            if point.rv == FIGURE4_RV:
                reached.setdefault(point.rm, []).append((node.n, point.recombined))
    for rm, spans in reached.items():
        for r in FIGURE4_RS:
            high, value, low = (
                next((n for n, span in spans if getattr(span, end) >= r), None)
                for end in ("low", "value", "high")
            )
            if low is not None and value is not None:
                count = Count(value=value, low=low, high=high)
                yield MeasuredPoint(
                    basis="recombined", figures=("4",), rm=_set(rm), guests=count, r=r
                )


def _dose(dose: DoseFinding) -> Iterator[MeasuredPoint]:
    plain, voted = dose.plain, dose.voted
    if dose.shared or plain.value is None or not voted.value:
        return
    span = Interval(
        value=plain.value / voted.value,
        low=plain.low / voted.high,
        high=plain.high / max(voted.low, 1e-9),
    )
    rv = _estimate(span)
    yield MeasuredPoint(
        figures=("7",), rm=Estimate(value=plain.value, low=plain.low, high=plain.high),
        rv=rv or _beyond(span), beyond=rv is None, label=f"{dose.label} flips",
        missions=plain.of + voted.of,
    )  # fmt: skip


def _best(nodes: Sequence[DesignFinding], lying: float) -> Iterator[MeasuredPoint]:
    """Yield, by operating point, the design with fewest guests that has nine tenths of the gain."""
    names = tuple(sorted({f"{node.m}-of-{node.n}" for node in nodes if node.n > 1}))
    by_point: dict[tuple[float, float], list[tuple[DesignFinding, DesignPoint]]] = {}
    for node in nodes:
        for point in node.points:
            if point.rh == 1.0:
                by_point.setdefault((point.rm, point.rv), []).append((node, point))
    for (rm, rv), found in by_point.items():
        greatest = max(point.recombined.value - point.plain for _, point in found)
        if greatest <= 0.0:
            certain = all(point.recombined.high < point.plain for _, point in found)
            name = "NV"
            verdict: Verdict = "worse" if certain else "undecided"
        else:
            node, point = min(
                (each for each in found if each[1].recombined.value - each[1].plain
                 >= (1.0 - WITHIN) * greatest),
                key=lambda each: (each[0].n, -each[1].recombined.value),
            )  # fmt: skip
            name = f"{node.m}-of-{node.n}"
            verdict = "better" if point.recombined.low > point.plain else "undecided"
        yield _recombined(figures=("map",), rm=_set(rm), rv=_set(rv), label=name,
                            verdict=verdict, lying=lying, designs=names)  # fmt: skip


def _compares(nodes: Sequence[DesignFinding]) -> bool:
    """Whether there are several designs with a vote to choose from."""
    return len({(node.m, node.n) for node in nodes if node.m > 1}) > 1


def collect(path: Path) -> MeasuredPoints:
    """Read points from a points file, a campaign's ``findings.json``, or a folder of results.

    A folder contributes each campaign's findings and each ``points.json``.  Raises SpecError,
    FindingsFileError, OSError.
    """
    if not path.is_dir():
        return _of_campaigns([path]) if path.name == FILE else read(path)
    findings = sorted([*path.glob(FILE), *path.glob(f"*/{FILE}")])
    files = sorted([*path.glob(POINTS), *path.glob(f"*/{POINTS}")])
    if not findings and not files:
        raise SpecError(
            f"{path}: contains neither a campaign's {FILE} nor {POINTS}; `trivisor campaign "
            "report` writes the former, `trivisor campaign moved --points` the latter",
            error_code="TV0608",
        )
    parts = [_of_campaigns(findings)] if findings else []
    parts += [read(file) for file in files]
    confidences = {part.confidence for part in parts}
    if len(confidences) > 1:
        raise SpecError(
            f"{path}: the confidence levels differ "
            f"({', '.join(f'{c:g}' for c in sorted(confidences))}); use one of the files at a time",
            error_code="TV0608",
        )
    return MeasuredPoints(
        format=FORMAT,
        source="; ".join(part.source for part in parts),
        confidence=parts[0].confidence,
        points=tuple(_sourced(point, part.source) for part in parts for point in part.points),
    )


def _sourced(point: MeasuredPoint, source: str) -> MeasuredPoint:
    return point if point.source else msgspec.structs.replace(point, source=source)


def _of_campaigns(paths: Sequence[Path]) -> MeasuredPoints:
    known = {path: read_findings(path) for path in paths}
    confidences = {round(kept.campaign.confidence, 9) for kept in known.values()}
    if len(confidences) > 1:
        raise SpecError(
            f"{', '.join(map(str, known))}: the confidence levels differ", error_code="TV0608"
        )
    points = tuple(
        _sourced(point, f"{path.resolve().parent.name} (seed {c.seed}, {c.used:,} missions)")
        for path, kept in known.items() for c in [kept.campaign] for point in points_of(kept)
    )  # fmt: skip
    whole = {point.source for point in points if "4" in point.figures}
    points = tuple(
        point for point in points
        if not whole or "3" not in point.figures or point.source in whole
    )  # fmt: skip
    return MeasuredPoints(
        format=FORMAT,
        source="; ".join(dict.fromkeys(point.source for point in points)),
        confidence=confidences.pop(),
        points=points,
    )
