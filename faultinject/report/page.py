"""Findings to one HTML page that needs nothing outside itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from faultinject.report.bar_figures import describe
from faultinject.report.formatting import (
    DASH,
    MINUS,
    NOTHING,
    around,
    milliseconds,
    number,
    percent,
    reliability,
    rest,
    share,
    when,
    whole,
)
from faultinject.report.texts import GLOSSARY, OUTCOME_WORDS, QUESTIONS
from faultinject.report.voter_verdicts import explain_silence
from faultinject.results.findings import FaultKindFinding, Findings, Point
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


def render(findings: Findings, pictures: dict[str, Picture]) -> str:
    """The page's text."""
    from markupsafe import Markup  # noqa: PLC0415 - an extra

    environment = _environment()
    shown = {
        name: {"svg": Markup(each.svg), "title": maths(each.title), "caption": maths(each.caption)}
        for name, each in pictures.items()
    }
    return environment.get_template("page.html.j2").render(
        f=findings,
        figures=shown,
        words=QUESTIONS[findings.head.question],
        glossary=GLOSSARY,
        outcome_order=list(Outcome)[::-1],
        outcome_words=OUTCOME_WORDS,
        both_repairs=len({each.repair for each in findings.strata}) > 1,
        silence_words=explain_silence(findings.silence),
        grids=_grids(findings),
        kind_groups=_kind_groups(findings.kinds),
        departed=any(each.verdict not in ("undecided", each.paper) for each in findings.points),
        law="3R_M^2 - 2R_M^3" if findings.head.vote == "2/3" else "the paper's R_sys",
        # Of several designs a kind's share says more of how many were 1 of 1 than of the kind.
        worst=None if findings.nodes else _worst(findings.kinds),
    )


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """Operating points with one R_H and repair: a row an R_M, a column an R_V."""

    title: str
    columns: tuple[float, ...]
    rows: tuple[PageRow, ...]


class PageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Operating points with one R_M too; None where the campaign has no such point."""

    rm: float
    plain: float
    cells: tuple[Point | None, ...]


def _grids(findings: Findings) -> list[Grid]:
    groups = sorted({(each.repair, each.rh) for each in findings.points})
    grids = []
    for repair, rh in groups:
        here = {(p.rm, p.rv): p for p in findings.points if (p.repair, p.rh) == (repair, rh)}
        columns = tuple(sorted({rv for _, rv in here}))
        rows = tuple(
            PageRow(rm=rm, plain=rh * rm, cells=tuple(here.get((rm, rv)) for rv in columns))
            for rm in sorted({rm for rm, _ in here})
        )
        title = f"R_H = {number(rh)}, repair {'on' if repair else 'off'}" if len(groups) > 1 else ""
        grids.append(Grid(title=title, columns=columns, rows=rows))
    return grids


class KindGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Kinds that hit the same, with the same repair."""

    title: str
    kinds: tuple[FaultKindFinding, ...]


def _kind_groups(kinds: tuple[FaultKindFinding, ...]) -> list[KindGroup]:
    titles = {
        "1 guest": "One guest hit, nothing else",
        "2 guests or more": "Two guests or more hit, one of them at least so",
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
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - an extra

    environment = Environment(
        loader=PackageLoader("faultinject.report"),
        autoescape=lambda name: name is None or not name.endswith(".css"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "count": whole, "whole": whole,
        "many": lambda n: whole(n) if 0 < n < 10**11 else NOTHING,
        "num": number, "pct": percent, "share": share, "rest": rest, "r4": reliability,
        "span3": lambda each: around(*each),
        "rspan": _four_places,
        "ms": milliseconds, "when": when, "maths": maths, "describe": describe,
        "slug": lambda text: text.replace(" ", "-"),
    }  # fmt: skip
    environment.filters.update(filters)
    return environment


def _four_places(each: tuple[float, float, float]) -> str:
    low, value, high = map(reliability, each)
    return f"{value}  ({low} {DASH} {high})"


def _worst(kinds: tuple[FaultKindFinding, ...]) -> FaultKindFinding | None:
    """The kind with most failures among the single guest hits: these a voter should outvote."""
    single = [each for each in kinds if each.alone and each.hit == "1 guest" and each.failed.of]
    worst = max(single, key=lambda each: each.failed.high, default=None)
    return worst if worst and worst.failed.count else None


def maths(text: str) -> Markup:
    """R_M to <var>R</var><sub>M</sub>, q^k to a superscript; the rest is escaped."""
    from markupsafe import Markup, escape  # noqa: PLC0415 - an extra

    marked = str(escape(text)).replace(" - ", f" {MINUS} ").replace("(1-q)", f"(1{MINUS}q)")
    marked = re.sub(r"([A-Za-z])_([A-Za-z0-9]+)", r"<var>\1</var><sub>\2</sub>", marked)
    marked = re.sub(
        r"\^(?:\{([^}]*)\}|(\w))",
        lambda found: f"<sup>{(found[1] or found[2]).replace('-', MINUS)}</sup>",
        marked,
    )
    # Single letters that stand for a quantity, outside of tags and entities.
    marked = re.sub(r"(?<![\w<>/&'])([qUSGk])(?![\w>;'])", r"<var>\1</var>", marked)
    return Markup(marked)
