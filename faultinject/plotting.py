"""The common style of all figures, and their files.

Red is reserved for released wrong replies.  Colours are distinguishable with red-green colour
blindness, and by lightness in print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.host.install import require_libraries

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
PAPER = "#1c2733"  # the paper's curves: thin dark lines
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
    "svg.fonttype": "path",  # identical glyphs on every machine, no font to load
    "svg.hashsalt": "trivisor",  # reproducible identifiers
}
FORMATS = ("svg", "png", "pdf")
# Without a date, two drawings of the same data are identical.
UNDATED = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}


def require_drawing() -> None:
    """Raise CannotRunHere before any work if the libraries of a report are missing."""
    require_libraries("matplotlib", "jinja2", "scipy", purpose="reports")


@contextmanager
def draw() -> Iterator[None]:
    """Draw in the common style; matplotlib's settings are restored afterwards."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to load

    with mpl.rc_context(SETTINGS):  # type: ignore[arg-type]  # its keys are a Literal of hundreds
        yield


def new_figure(width: float = 8.6, height: float = 4.8) -> Figure:
    """Return an empty figure (inches), without pyplot and its global state."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

    return Figure(figsize=(width, height), layout="constrained")


def soften(axes: Axes, axis: str = "both") -> None:
    """Add a light grid."""
    axes.grid(visible=True, axis=axis, color="#e4e8ec", linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(length=3)


def save(figure: Figure, stem: Path) -> tuple[Path, ...]:
    """Write ``stem``.svg, .png and .pdf; return their paths in this order.  Raises OSError."""
    paths = []
    for ending in FORMATS:
        path = stem.with_suffix(f".{ending}")
        figure.savefig(path, dpi=160, metadata=UNDATED[ending])
        paths.append(path)
    return tuple(paths)


def inline(path: Path, name: str, label: str) -> str:
    """Return a saved SVG as a self-contained ``<svg>`` element of a page.

    ``name`` prefixes its identifiers, since several figures share a page.  ``label`` is the text
    for screen readers; it must be safe inside an attribute's double quotes.
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
