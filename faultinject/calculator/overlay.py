"""From what campaigns found to points for the paper's figures.

- Figure 3: at each R_M of a campaign over 1 of n, the R_V from which on its nodes of n guests were
  better than plain; of several campaigns that which has every n, if one has.
- Figure 4: at each R_M, the smallest n whose measured R_sys reaches R (at the figure's R_V).
- Figure 7: the same break-even for 2-of-3, from forced faults; and, from soft errors, the measured
  R_M of a dose with the R_V that its measured R_sys asks for, R_M / R_sys.
- The map: the design to take, by the map's own rule, among those that one campaign measured.
- Figure 6: points that ``trivisor campaign moved`` has made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from faultinject.calculator.figures.curves import FIGURE3_NS, FIGURE4_RS, FIGURE4_RV
from faultinject.model.designs import WITHIN
from faultinject.results.findings import DoseFinding, NodeFinding, NodePoint, Point
from faultinject.results.findings_file import FILE, FindingsFile, read_kept
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
from faultinject.strict_toml import SpecError

__all__ = ["POINTS", "collect", "points_of"]

POINTS = "points.json"
"""Name of a file of measured points in a folder of results."""

Span = tuple[float, float, float]


def _set(value: float) -> Estimate:
    """A quantity that was set, not measured."""
    return Estimate(value=value, low=value, high=value)


def _estimate(span: Span) -> Estimate | None:
    """The interval as far as it is one of reliabilities; None where the value itself is not."""
    low, value, high = span
    return Estimate(value=value, low=max(0.0, low), high=min(1.0, high)) if value <= 1.0 else None


def _beyond(span: Span) -> Estimate:
    """One whose value is above 1: drawn at 1, as far as its interval goes below."""
    return Estimate(value=1.0, low=min(1.0, max(0.0, span[0])), high=1.0)


def points_of(kept: FindingsFile) -> Iterator[MeasuredPoint]:
    """The points that one campaign gives.  Repair was off: the model knows none."""
    nodes = [node for node in kept.nodes if not node.repair]
    # The paper's guests of 1-of-n stop when they fail.
    mute = kept.lying == 0.0
    first = sorted((node for node in nodes if node.m == 1 and mute), key=lambda node: node.n)
    for node in first:
        if node.n in FIGURE3_NS:
            yield from _breakeven("3", node.points, node.n)
    yield from _needed(first)
    # The shipped strata of 2-of-3 are points of the campaign itself; other designs' are nodes.
    yield from _breakeven("7", [point for point in kept.points if not point.repair])
    for node in nodes:
        if (node.m, node.n) == (2, 3):
            yield from _breakeven("7", node.points)
    for dose in kept.doses:
        yield from _dose(dose)
    if _compares(nodes):
        yield from _best(nodes, kept.lying)


def _breakeven(
    figure: Figure, points: Iterable[Point | NodePoint], n: int | None = None
) -> Iterator[MeasuredPoint]:
    seen: set[float] = set()
    for point in points:
        rm, span = point.rm, point.breakeven
        if rm in seen or span is None:
            continue  # it does not depend on the point's R_V
        seen.add(rm)
        if (rv := _estimate(span)) is not None:
            yield MeasuredPoint(figures=(figure,), rm=_set(rm), rv=rv, n=n)
        elif figure == "7":
            yield MeasuredPoint(figures=("7",), rm=_set(rm), rv=_beyond(span), beyond=True)


def _needed(nodes: Sequence[NodeFinding]) -> Iterator[MeasuredPoint]:
    """The smallest n that reaches R, where one does; an open interval where none surely does."""
    if {node.n for node in nodes} != set(range(1, len(nodes) + 1)):
        return  # the smallest may be one that was not measured
    reached: dict[float, list[tuple[int, Span]]] = {}
    for node in nodes:
        for point in node.points:
            if point.rv == FIGURE4_RV:
                reached.setdefault(point.rm, []).append((node.n, point.measured))
    for rm, spans in reached.items():
        for r in FIGURE4_RS:
            high, value, low = (
                next((n for n, span in spans if span[edge] >= r), None) for edge in (0, 1, 2)
            )
            if low is not None and value is not None:
                count = Count(value=value, low=low, high=high)
                yield MeasuredPoint(figures=("4",), rm=_set(rm), guests=count, r=r)


def _dose(dose: DoseFinding) -> Iterator[MeasuredPoint]:
    plain, voted = dose.plain, dose.voted
    if dose.shared or plain.point is None or not voted.point:
        return
    span = (plain.low / voted.high, plain.point / voted.point, plain.high / max(voted.low, 1e-9))
    rv = _estimate(span)
    yield MeasuredPoint(
        figures=("7",), rm=Estimate(value=plain.point, low=plain.low, high=plain.high),
        rv=rv or _beyond(span), beyond=rv is None, label=f"{dose.label} flips",
        missions=plain.of + voted.of,
    )  # fmt: skip


def _best(nodes: Sequence[NodeFinding], lying: float) -> Iterator[MeasuredPoint]:
    """At each operating point the fewest guests that bring the gain but for a tenth of it."""
    names = tuple(sorted({f"{node.m}-of-{node.n}" for node in nodes if node.n > 1}))
    by_point: dict[tuple[float, float], list[tuple[NodeFinding, NodePoint]]] = {}
    for node in nodes:
        for point in node.points:
            if point.rh == 1.0:
                by_point.setdefault((point.rm, point.rv), []).append((node, point))
    for (rm, rv), found in by_point.items():
        greatest = max(point.measured[1] - point.plain for _, point in found)
        if greatest <= 0.0:
            sure = all(point.measured[2] < point.plain for _, point in found)
            name = "NV"
            verdict: Verdict = "worse" if sure else "undecided"
        else:
            node, point = min(
                (each for each in found if each[1].measured[1] - each[1].plain
                 >= (1.0 - WITHIN) * greatest),
                key=lambda each: (each[0].n, -each[1].measured[1]),
            )  # fmt: skip
            name = f"{node.m}-of-{node.n}"
            verdict = "better" if point.measured[0] > point.plain else "undecided"
        yield MeasuredPoint(figures=("map",), rm=_set(rm), rv=_set(rv), label=name,
                            verdict=verdict, lying=lying, designs=names)  # fmt: skip


def _compares(nodes: Sequence[NodeFinding]) -> bool:
    """Whether designs that vote are among which one may be chosen."""
    return len({(node.m, node.n) for node in nodes if node.m > 1}) > 1


def collect(path: Path) -> MeasuredPoints:
    """Points from a file of them, from a campaign's ``findings.json``, or from a folder of results.

    Of a folder: each campaign's findings in it, and each ``points.json``.  Raises SpecError that
    names what is wrong, FindingsFileError, OSError.
    """
    if not path.is_dir():
        return _of_campaigns([path]) if path.name == FILE else read(path)
    findings = sorted([*path.glob(FILE), *path.glob(f"*/{FILE}")])
    files = sorted([*path.glob(POINTS), *path.glob(f"*/{POINTS}")])
    if not findings and not files:
        raise SpecError(
            f"{path}: neither a campaign's {FILE} nor {POINTS} is in it; `trivisor campaign "
            "report` writes the first, `trivisor campaign moved --points` the other"
        )
    parts = [_of_campaigns(findings)] if findings else []
    parts += [read(file) for file in files]
    confidences = {part.confidence for part in parts}
    if len(confidences) > 1:
        raise SpecError(
            f"{path}: the intervals are of {', '.join(f'{c:g}' for c in sorted(confidences))}: "
            "lay over one of them at a time"
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
    known = {path: read_kept(path) for path in paths}
    confidences = {round(kept.confidence, 9) for kept in known.values()}
    if len(confidences) > 1:
        raise SpecError(f"{', '.join(map(str, known))}: their intervals are of several levels")
    points = tuple(
        _sourced(point, f"{path.resolve().parent.name} (seed {kept.seed}, {kept.used:,} missions)")
        for path, kept in known.items() for point in points_of(kept)
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
