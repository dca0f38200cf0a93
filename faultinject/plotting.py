"""How the figures look: one palette, one face, and how they are written down.

Red is kept for wrong replies that were released, and used for nothing else.  Colours are told
apart by people who see red and green alike, and by their lightness in print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from voter.commands.terminal import CommandError, ExitCode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ALARM",
    "FAINT",
    "INK",
    "MEASURED",
    "OPEN",
    "PAPER",
    "PLAIN",
    "VOTED",
    "draw",
    "inline",
    "new_figure",
    "require_drawing",
    "save",
    "soften",
]

INK = "#1c2733"
FAINT = "#8a949e"
PAPER = "#1c2733"  # what the paper says: a thin dark line
MEASURED = "#1f6f9c"
VOTED = "#1f6f9c"
PLAIN = "#b8651b"
OPEN = "#8a949e"
ALARM = "#c4161c"

SETTINGS: dict[str, object] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 11.5,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 11.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # the same letters on every machine, and nothing to fetch
    "svg.hashsalt": "trivisor",  # the same names inside, run after run
}
FORMATS = ("svg", "png", "pdf")
# A date inside would make two drawings of the same data differ.
UNDATED = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}


def require_drawing() -> None:
    """Raise CommandError where the libraries of a report are missing: before, not halfway."""
    for name in ("matplotlib", "jinja2", "scipy"):
        try:
            __import__(name)
        except ImportError as error:
            raise CommandError(
                f"a report needs {name}",
                remedy="pip install 'trivisor[campaign]'",
                code=ExitCode.CANNOT_RUN_HERE,
            ) from error


@contextmanager
def draw() -> Iterator[None]:
    """Draw in the house's style, and leave matplotlib's settings as they were."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    with mpl.rc_context(SETTINGS):  # type: ignore[arg-type]  # its keys are a Literal of hundreds
        yield


def new_figure(width: float = 8.6, height: float = 4.8) -> Figure:
    """An empty figure, inches, without pyplot: nothing global is left behind."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    return Figure(figsize=(width, height), layout="constrained")


def soften(axes: Axes, axis: str = "both") -> None:
    """A grid that does not compete with the data."""
    axes.grid(visible=True, axis=axis, color="#e4e8ec", linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(length=3)


def save(figure: Figure, stem: Path) -> tuple[Path, ...]:
    """Write ``stem``.svg, .png and .pdf; return their paths, in this order.  Raises OSError."""
    paths = []
    for ending in FORMATS:
        path = stem.with_suffix(f".{ending}")
        figure.savefig(path, dpi=160, metadata=UNDATED[ending])
        paths.append(path)
    return tuple(paths)


def inline(path: Path, name: str, label: str) -> str:
    """A saved SVG as an ``<svg>`` element to stand inside a page, in need of nothing outside it.

    ``name`` makes its inner names its own (several figures share a page); ``label`` is read out to
    those who do not see it, and must be safe inside an attribute's double quotes.
    """
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    head = re.search(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', text)
    if head is None:
        raise ValueError(f"{path} is no SVG with a viewBox")
    text = f'<svg {head[1]} role="img" aria-label="{label}">' + text[head.end() :]
    return re.sub(r"\n\s*", "\n", text).strip()
