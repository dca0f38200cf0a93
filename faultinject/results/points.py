"""Measured points to draw on the paper's figures: a small strict JSON format.

    {
      "format": "trivisor-measured-1",
      "source": "campaign inequality4, seed 1",
      "confidence": 0.95,
      "points": [
        {"figures": ["7"], "label": "crash",
         "rm": {"value": 0.75, "low": 0.74, "high": 0.76},
         "rv": {"value": 0.889, "low": 0.885, "high": 0.893}},
        {"figures": ["6b"], "n": 6, "rf": {...}, "r_moved": {...}}
      ]
    }

Each point has the quantities of its figures' axes, each with its interval.  A quantity that was
set, not measured, has three equal numbers.  ``verdict`` (of an operating point): whether the design
was better there than the plain node.  On the map, ``lying`` selects the panel by the share of
failures that are wrong replies (not given: all panels); ``designs`` are the measured candidates.
``beyond`` (Figure 7): even R_V = 1 is not enough.  ``basis``: "recombined" if the point was
computed from measured strata with assumed binomial weights.  ``source``: of one point, if not the
file's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import msgspec

from deploy.strict_toml import SpecError, suggest

__all__ = [
    "AXES", "FORMAT", "Count", "Estimate", "Figure", "MeasuredPoints", "MeasuredPoint",
    "Verdict", "read",
]  # fmt: skip

FORMAT = "trivisor-measured-1"

Figure = Literal["3", "4", "6a", "6b", "7", "map"]
Verdict = Literal["better", "worse", "undecided"]

AXES: dict[str, tuple[str, ...]] = {
    "3": ("rm", "rv", "n"),
    "4": ("rm", "guests", "r"),
    "6a": ("rf", "r_moved", "rm_rest"),
    "6b": ("rf", "r_moved", "n"),
    "7": ("rm", "rv"),
    "map": ("rm", "rv"),
}
"""The quantities of a point on each figure: x, y, and the curve it belongs to."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A probability with its interval: 0 <= low <= value <= high <= 1."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.value <= self.high <= 1.0:
            raise ValueError("0 <= low <= value <= high <= 1 does not hold")


class Count(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number of VMs with its interval: 1 <= low <= value <= high.

    Without ``high`` no measured number is certainly enough.
    """

    value: int
    low: int
    high: int | None = None

    def __post_init__(self) -> None:
        high = self.value if self.high is None else self.high
        if not 1 <= self.low <= self.value <= high:
            raise ValueError("1 <= low <= value <= high does not hold")


class MeasuredPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point: ``n``, ``r`` and ``rm_rest`` name the curve; the rest are axes (``AXES``)."""

    figures: tuple[Figure, ...]
    label: str = ""
    verdict: Verdict | None = None
    missions: int | None = None
    rm: Estimate | None = None
    rv: Estimate | None = None
    rf: Estimate | None = None
    r_moved: Estimate | None = None
    guests: Count | None = None
    n: int | None = None
    r: float | None = None
    rm_rest: float | None = None
    lying: float | None = None
    designs: tuple[str, ...] = ()
    beyond: bool = False
    basis: Literal["measured", "recombined"] = "measured"
    source: str = ""

    def __post_init__(self) -> None:
        if not self.figures:
            raise ValueError(f"figures is empty: name some of {', '.join(AXES)}")
        for figure in self.figures:
            missing = [name for name in AXES[figure] if getattr(self, name) is None]
            if missing:
                raise ValueError(
                    f"a point of figure {figure} has {', '.join(AXES[figure])}; "
                    f"{', '.join(missing)} is missing"
                )
        if self.n is not None and self.n < 1:
            raise ValueError(f"n is {self.n}: a node has one VM or more")
        for name in ("r", "rm_rest", "lying"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value:g}: a probability is from 0 to 1")

    def axes(self, figure: Figure) -> tuple[Estimate | Count, Estimate | Count]:
        """Return x and y on ``figure``."""
        x, y = (getattr(self, name) for name in AXES[figure][:2])
        if not isinstance(x, Estimate | Count) or not isinstance(y, Estimate | Count):
            raise ValueError(f"this is no point of figure {figure}")
        return x, y


class MeasuredPoints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of points; ``source`` describes the data they come from."""

    format: str
    source: str
    confidence: float
    points: tuple[MeasuredPoint, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format!r}: this reads {FORMAT!r}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence is {self.confidence:g}: it is between 0 and 1")

    def on(self, figure: Figure) -> tuple[MeasuredPoint, ...]:
        """Return the points of ``figure``."""
        return tuple(each for each in self.points if figure in each.figures)

    def sources(self, figure: Figure) -> str:
        """Return the sources of the points of ``figure``."""
        return "; ".join(dict.fromkeys(each.source or self.source for each in self.on(figure)))


def read(path: Path) -> MeasuredPoints:
    """Read a file of measured points.  Raises SpecError and OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=MeasuredPoints)
    except msgspec.ValidationError as error:
        message = str(error)
        if "unknown field" in message:
            known = sorted({*MeasuredPoints.__struct_fields__, *MeasuredPoint.__struct_fields__})
            unknown = message.split("`")[1]
            message += f"; {suggest(unknown, [*known, 'value', 'low', 'high'])}"
        elif "Invalid enum value" in message:
            message += f"; figures are {', '.join(get_args(Figure))}"
        raise SpecError(f"{path}: {message}", error_code="TV0608") from error
    except msgspec.DecodeError as error:
        raise SpecError(f"{path}: not JSON: {error}", error_code="TV0608") from error
