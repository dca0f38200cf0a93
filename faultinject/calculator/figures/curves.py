"""The figures' curves as numbers, for drawing or for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from faultinject.model.bounds import (
    breakeven_rf,
    breakeven_rv_1ofn,
    breakeven_rv_2of3,
    guests_needed,
    rm_range_2of3,
)
from faultinject.model.paired import ModelError, count
from faultinject.results.points import Figure

__all__ = ["FIGURE3_NS", "FIGURE4_RS", "FIGURE4_RV", "FigureCurve", "Plot", "plot_of"]

FIGURE3_NS = (2, 3, 4, 6, 9)
FIGURE4_RS = (0.98, 0.998)
FIGURE4_RV = 0.999
FIGURE6_RESTS = (0.1, 0.25, 0.5, 0.75, 0.9)
FIGURE6_NS = (1, 3, 6, 9)
FIGURE6_REST = 0.75
FIGURE6A_N = 3
FIGURE7_RVS = (0.98, 0.9)
MAP_N = 5
LYING = (0.0, 0.1, 1.0)


class FigureCurve(msgspec.Struct, frozen=True, kw_only=True):
    """One curve: ``name`` (``n`` or ``R_M'`` or ``R``) has ``value`` on it."""

    name: str
    value: float
    x: tuple[float, ...]
    y: tuple[float, ...]


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """A figure's axes, and its curves; ``n`` where all of it is for one n."""

    figure: Figure
    x_axis: str
    y_axis: str
    curves: tuple[FigureCurve, ...]
    n: int | None = None


def _grid(low: float, high: float, steps: int) -> tuple[float, ...]:
    return tuple(low + (high - low) * i / steps for i in range(steps + 1))


def _curve(
    name: str, value: float, xs: Sequence[float], law: Callable[[float], float]
) -> FigureCurve:
    return FigureCurve(name=name, value=value, x=tuple(xs), y=tuple(float(law(x)) for x in xs))


def plot_of(figure: Figure, n: int | None = None) -> Plot:
    """Return the curves of ``figure``.  ``n``: of 6a (default 3) and the map (default 5; 2 to 9).

    Raises ModelError for an n out of range, or a figure without a choice of n.
    """
    if n is not None and figure not in {"6a", "map"}:
        raise ModelError(
            f"figure {figure} has no n to choose: --n is for 6a and map", error_code="TV0602"
        )
    made: dict[str, Callable[[], Plot]] = {
        "3": _figure3, "4": _figure4, "6a": lambda: _figure6a(n), "6b": _figure6b, "7": _figure7,
        "map": lambda: _map(n),
    }  # fmt: skip
    return made[figure]()


def _figure3() -> Plot:
    xs = _grid(0.005, 1.0, 199)
    return Plot(
        figure="3",
        x_axis="R_M",
        y_axis="R_V",
        curves=tuple(
            _curve("n", n, xs, lambda x, n=n: breakeven_rv_1ofn(x, n))  # type: ignore[misc]
            for n in FIGURE3_NS
        ),
    )


def _figure4() -> Plot:
    """The bound of Inequality (2) as R_M goes from .1 to 1; at 1 itself it is undefined."""
    xs = (*_grid(0.1, 0.99, 178), 0.992, 0.994, 0.996, 0.998, 0.999)
    return Plot(
        figure="4",
        x_axis="R_M",
        y_axis="n",
        curves=tuple(
            _curve("R", r, xs, lambda x, r=r: guests_needed(r, FIGURE4_RV, x).bound)  # type: ignore[misc]
            for r in FIGURE4_RS
        ),
    )


def _figure6a(n: int | None) -> Plot:
    size = count("the number of VMs n", FIGURE6A_N if n is None else n)
    xs = _grid(0.1, 1.0, 180)
    return Plot(
        figure="6a",
        x_axis="R_f",
        y_axis="R_F",
        n=size,
        curves=tuple(
            _curve("R_M'", rest, xs, lambda x, rest=rest: breakeven_rf(x, rest, size))  # type: ignore[misc]
            for rest in FIGURE6_RESTS
        ),
    )


def _figure6b() -> Plot:
    xs = _grid(0.1, 1.0, 180)
    return Plot(
        figure="6b",
        x_axis="R_f",
        y_axis="R_F",
        curves=tuple(
            _curve("n", n, xs, lambda x, n=n: breakeven_rf(x, FIGURE6_REST, n))  # type: ignore[misc]
            for n in FIGURE6_NS
        ),
    )


def _figure7() -> Plot:
    """The bound of Inequality (4), and the ranges of R_M that the text names as two more curves."""
    xs = _grid(0.4, 1.0, 240)
    ranges = []
    for rv in FIGURE7_RVS:
        found = rm_range_2of3(rv)
        assert found is not None  # both are above 8/9
        ends = (float(found[0]), float(found[1]))
        ranges.append(FigureCurve(name="R_V", value=rv, x=ends, y=(rv, rv)))
    return Plot(
        figure="7",
        x_axis="R_M",
        y_axis="R_V",
        curves=(_curve("n", 3, xs, breakeven_rv_2of3), *ranges),
    )


def _map(n: int | None) -> Plot:
    """Inequalities (1) and (4) as lines in the plane; the regions are ``plane``'s."""
    size = count("the map's number of VMs n", MAP_N if n is None else n, 2, 9)
    xs = _grid(0.005, 0.999, 300)
    assert all(one < other for one, other in pairwise(xs))
    return Plot(
        figure="map",
        x_axis="R_M",
        y_axis="R_V",
        n=size,
        curves=(
            _curve("1-of-n", size, xs, lambda x: breakeven_rv_1ofn(x, size)),
            _curve("2-of-3", 3, xs, breakeven_rv_2of3),
        ),
    )
