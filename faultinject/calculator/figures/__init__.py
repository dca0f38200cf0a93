"""Figures 3, 4, 6(a), 6(b) and 7 of the paper, and a map of designs, with measured points.

The paper's text states the axes, the ranges and most of the curves, but not the n of Figure 6(a)
and of Figure 3: here 3, and 2, 3, 4, 6, 9.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.host.install import require_libraries
from faultinject.calculator.figures.curves import FigureCurve, Plot, plot_of
from faultinject.results.points import AXES, Figure, MeasuredPoints
from voter.commands.terminal import CommandError, ExitCode

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["ENDINGS", "FIGURES", "FigureCurve", "Plot", "plot_of", "write_figure"]

FIGURES: tuple[Figure, ...] = ("3", "4", "6a", "6b", "7", "map")
ENDINGS = (".svg", ".png", ".pdf")


def write_figure(
    figure: Figure, path: Path, measured: MeasuredPoints | None, n: int | None
) -> None:
    """Draw ``figure`` to ``path``, whose suffix selects the format.

    ``n``: of 6a and the map.  Raises CommandError for another suffix, CannotRunHere where
    matplotlib is missing, OSError where the file cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise CommandError(
            f"{path}: a figure is written as {', '.join(ENDINGS)}",
            code=ExitCode.USAGE,
            error_code="TV0607",
        )
    require_libraries("matplotlib", purpose="figures")
    from faultinject.calculator.figures.marks import mark_legend  # noqa: PLC0415
    from faultinject.plotting import UNDATED, draw  # noqa: PLC0415

    points = measured.on(figure) if measured is not None else ()
    with draw():
        drawing = _drawer(figure)(plot_of(figure, n), points)
        if points and measured is not None:
            source = f"{measured.sources(figure)}; intervals of {measured.confidence:.0%}"
            mark_legend(drawing, points, source, filled=figure != "7")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=160, metadata=UNDATED[path.suffix[1:]])


def _drawer(figure: Figure) -> Callable[..., Drawing]:
    from faultinject.calculator.figures import drawing, plane  # noqa: PLC0415 - matplotlib

    drawers: dict[str, Callable[..., Drawing]] = {
        "3": drawing.draw_figure3,
        "4": drawing.draw_figure4,
        "6a": drawing.draw_figure6,
        "6b": drawing.draw_figure6,
        "7": drawing.draw_figure7,
        "map": plane.draw_map,
    }
    assert drawers.keys() == AXES.keys()
    return drawers[figure]
