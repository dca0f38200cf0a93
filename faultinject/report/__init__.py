"""The report of a campaign: one page that a reader of the paper understands without the code.

``gather`` reads the store, calls the estimators and makes the report's data (``data``).  ``charts``
draws them, ``verdicts`` and ``texts`` hold the sentences, and ``page`` renders the template.  The
findings are stored as ``findings.json`` for other programs.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deploy.host.files import write_json, write_whole
from faultinject.plotting import draw, inline, require_drawing, save
from faultinject.report.charts import draw_charts
from faultinject.report.page import Picture, render
from faultinject.results.findings import FILE, storable_findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from faultinject.report.data import ReportData

__all__ = ["draw_report", "write_report"]

PAGE = "report.html"
FIGURES = "figures"


def write_report(directory: Path, out: Path | None = None) -> Path:
    """Write page and figures of the campaign in ``directory``; return the page's path.

    They are written to ``out``, or to ``directory`` itself.

    The page, ``report.html``, is self-contained; ``figures/`` holds each figure as SVG, PNG and
    PDF.  Works while the campaign runs: the page then says partial.  Raises CommandError where a
    library is missing, StoreError where there is no campaign, OSError.
    """
    require_drawing()
    from faultinject.report.gather import gather  # noqa: PLC0415 - needs an extra

    return draw_report(gather(directory), out or directory)


def draw_report(data: ReportData, directory: Path) -> Path:
    """Draw ``data``; write page, figures and findings to ``directory``; return the page's path."""
    folder = directory / FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Picture] = {}
    with draw():
        for chart in draw_charts(data):
            figure = cast("Figure", chart.figure)
            drawing, *_ = save(figure, folder / chart.name)
            label = html.escape(f"{chart.title} {chart.caption}", quote=True)
            pictures[chart.name] = Picture(
                svg=inline(drawing, chart.name, label), title=chart.title, caption=chart.caption
            )
    page = directory / PAGE
    # Atomic: a browser may read the page while it is written again.
    write_whole(page, render(data, pictures).encode())
    write_json(directory / FILE, storable_findings(data))
    return page
