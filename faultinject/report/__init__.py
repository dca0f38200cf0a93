"""The report of a campaign: one page that a reader of the paper understands without the code.

``gather`` asks the store and the estimators, and makes ``findings`` (pure data); ``charts`` draws
these (``figure7``, ``measured``, ``bars``, ``latency``, in one ``style``); ``page`` writes them
down, with the texts of ``words`` and the template beside it; ``kept`` is what is left for other
programs.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deploy.host.files import write_json, write_whole
from faultinject.plotting import draw, inline, require_drawing, save
from faultinject.report.charts import draw_charts
from faultinject.report.page import Picture, render
from faultinject.results.findings import Findings
from faultinject.results.findings_file import FILE, keep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_findings", "write_report"]

PAGE = "report.html"
FIGURES = "figures"


def write_report(directory: Path) -> Path:
    """Read the campaign in ``directory``, write its page and figures there; return the page's path.

    The page is ``report.html`` and needs nothing beside it; ``figures/`` holds each figure as SVG,
    PNG and PDF.  May be called while the campaign runs (the page says partial).  Raises
    CommandError where a library is missing, StoreError where there is no campaign, OSError.
    """
    require_drawing()
    from faultinject.report.gather import gather  # noqa: PLC0415 - needs an extra

    return write_findings(gather(directory), directory)


def write_findings(findings: Findings, directory: Path) -> Path:
    """Draw ``findings`` and write page and figures into ``directory``; return the page's path."""
    folder = directory / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Picture] = {}
    with draw():
        for chart in draw_charts(findings):
            figure = cast("Figure", chart.figure)
            drawing, *_ = save(figure, folder / chart.name)
            label = html.escape(f"{chart.title} {chart.caption}", quote=True)
            pictures[chart.name] = Picture(
                svg=inline(drawing, chart.name, label), title=chart.title, caption=chart.caption
            )
    page = directory / PAGE
    # A reader may have it open while it is written again: whole or not at all.
    write_whole(page, render(findings, pictures).encode())
    write_json(directory / FILE, keep(findings))
    return page
