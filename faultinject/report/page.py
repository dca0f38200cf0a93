"""Render the report data as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from faultinject.estimate.equivalence import Choice, PointComparison
from faultinject.estimate.intervals import Interval
from faultinject.report.bar_figures import describe
from faultinject.report.data import FaultKindResult, ReportData
from faultinject.report.formatting import (
    DASH,
    MINUS,
    NOTHING,
    integer,
    milliseconds,
    number,
    percent,
    proportion,
    reliability,
    signed_percent,
    when,
    with_interval,
)
from faultinject.report.texts import GLOSSARY, OUTCOME_NAMES, QUESTIONS
from faultinject.results.outcome import Outcome

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["Picture", "render"]


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A figure for the page: ``svg`` is markup, ``title`` and ``caption`` plain text."""

    svg: str
    title: str
    caption: str


def render(data: ReportData, pictures: dict[str, Picture]) -> str:
    """Return the page's HTML."""
    from markupsafe import Markup  # noqa: PLC0415 - slow to load

    environment = _environment()
    shown = {
        name: {"svg": Markup(each.svg), "title": maths(each.title), "caption": maths(each.caption)}
        for name, each in pictures.items()
    }
    return environment.get_template("page.html.j2").render(
        f=data,
        figures=shown,
        texts=QUESTIONS[data.campaign.question],
        glossary=GLOSSARY,
        outcome_order=list(Outcome)[::-1],
        outcome_names=OUTCOME_NAMES,
        both_repairs=len({each.repair for each in data.strata}) > 1,
        grids=_grids(data),
        kind_groups=_kind_groups(data.kinds),
        contrary=any(p.choice not in (Choice.UNDECIDED, p.paper) for p in data.points),
        law="3R_M^2 - 2R_M^3" if data.campaign.vote == "2/3" else "the paper's R_sys",
        # With several designs, a kind's proportion reflects the share of 1-of-1 missions in it.
        worst=None if data.designs else _worst(data.kinds),
    )


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """Operating points with one R_H and repair setting: a row per R_M, a column per R_V."""

    title: str
    columns: tuple[float, ...]
    rows: tuple[PageRow, ...]


class PageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Operating points with one R_M; None where the campaign has no such point."""

    rm: float
    plain: float
    cells: tuple[PointComparison | None, ...]


def _grids(data: ReportData) -> list[Grid]:
    groups = sorted({(each.repair, each.rh) for each in data.points})
    grids = []
    for repair, rh in groups:
        here = {(p.rm, p.rv): p for p in data.points if (p.repair, p.rh) == (repair, rh)}
        columns = tuple(sorted({rv for _, rv in here}))
        rows = tuple(
            PageRow(rm=rm, plain=rh * rm, cells=tuple(here.get((rm, rv)) for rv in columns))
            for rm in sorted({rm for rm, _ in here})
        )
        title = f"R_H = {number(rh)}, repair {'on' if repair else 'off'}" if len(groups) > 1 else ""
        grids.append(Grid(title=title, columns=columns, rows=rows))
    return grids


class KindGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Kinds with the same targets and the same repair setting."""

    title: str
    kinds: tuple[FaultKindResult, ...]


def _kind_groups(kinds: tuple[FaultKindResult, ...]) -> list[KindGroup]:
    titles = {
        "1 guest": "One guest hit, nothing else",
        "2 guests or more": "Two guests or more hit, at least one of them by this kind",
        "voter": "The voter (or F) hit, nothing else",
        "voter and guests": "The voter (or F) hit, and guests",
    }
    both = len({each.repair for each in kinds}) > 1
    found = []
    for repair, hit in dict.fromkeys((each.repair, each.hit) for each in kinds):
        title = titles[hit] + (f", repair {'on' if repair else 'off'}" if both else "")
        here = tuple(each for each in kinds if (each.repair, each.hit) == (repair, hit))
        found.append(KindGroup(title=title, kinds=here))
    return found


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - slow to load

    environment = Environment(
        loader=PackageLoader("faultinject.report"),
        autoescape=lambda name: name is None or not name.endswith(".css"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "count": integer, "signed": signed_percent,
        "many": lambda n: integer(n) if 0 < n < 10**11 else NOTHING,
        "num": number, "pct": percent, "share": proportion, "r4": reliability,
        "span3": with_interval, "rspan": _four_places,
        "ms": milliseconds, "when": when, "maths": maths, "describe": describe,
        "slug": lambda text: text.replace(" ", "-"),
    }  # fmt: skip
    environment.filters.update(filters)
    return environment


def _four_places(each: Interval) -> str:
    low, value, high = map(reliability, (each.low, each.value, each.high))
    return f"{value}  ({low} {DASH} {high})"


def _worst(kinds: tuple[FaultKindResult, ...]) -> FaultKindResult | None:
    """Return the kind with most failures among single hits on guests, which a vote should mask."""
    single = [each for each in kinds if each.alone and each.hit == "1 guest" and each.failed.of]
    worst = max(single, key=lambda each: each.failed.high, default=None)
    return worst if worst and worst.failed.count else None


def maths(text: str) -> Markup:
    """Turn R_M into <var>R</var><sub>M</sub> and q^k into a superscript; escape the rest."""
    from markupsafe import Markup, escape  # noqa: PLC0415 - slow to load

    marked = str(escape(text)).replace(" - ", f" {MINUS} ").replace("(1-q)", f"(1{MINUS}q)")
    marked = re.sub(r"([A-Za-z])_([A-Za-z0-9]+)", r"<var>\1</var><sub>\2</sub>", marked)
    marked = re.sub(
        r"\^(?:\{([^}]*)\}|(\w))",
        lambda found: f"<sup>{(found[1] or found[2]).replace('-', MINUS)}</sup>",
        marked,
    )
    # Single letters that denote a quantity, outside of tags and entities.
    marked = re.sub(r"(?<![\w<>/&'])([qUSGk])(?![\w>;'])", r"<var>\1</var>", marked)
    return Markup(marked)
