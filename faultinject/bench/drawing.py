"""The figure of a benchmark: each value over what it has to reach.

Values of any unit share the axis: 1 is what is to reach, and larger is better.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from deploy.host.install import require_libraries
from faultinject.bench.figures import Value, number
from faultinject.host_facts import Host
from faultinject.plotting import FAINT, INK, MEASURED, PLAIN, draw, new_figure, soften
from faultinject.results.findings import FindingsFileError

__all__ = ["draw_report", "read_values"]


MOST_GAIN = 20.0
"""The largest gain that is drawn: also of a latency that a failure has not raised at all."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a kept report that is drawn."""

    host: Host
    build: str
    values: list[Value]


def read_values(path: Path) -> _Kept:
    """Return the values of a kept report.  Raises OSError, FindingsFileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FindingsFileError(
            f"{path} is no result of `trivisor bench --out`: {error}", error_code="TV0805"
        ) from error


def _gain(value: Value, measured: float) -> float:
    """Return how many times better than needed a figure is: below 1, it is not reached."""
    assert value.reach
    if value.at_most:
        return value.reach / max(measured, value.reach / MOST_GAIN)
    return min(MOST_GAIN, measured / value.reach)


def draw_report(source: Path, out: Path) -> None:
    """Draw what has a value to reach.  Raises OSError, FindingsFileError, CannotRunHere."""
    kept = read_values(source)
    shown = [each for each in reversed(kept.values) if each.reach]
    if not shown:
        raise FindingsFileError(
            f"{source} has no figure with a value to reach", error_code="TV0805"
        )
    require_libraries("matplotlib", purpose="pictures")
    with draw():
        figure = new_figure(9.6, 1.5 + 0.36 * len(shown))
        axes = figure.subplots()
        axes.axvline(1, color=INK, linewidth=1.2)
        for place, each in enumerate(shown):
            ends = sorted(_gain(each, end) for end in (each.low, each.high))
            axes.plot(ends, [place, place], color=FAINT, linewidth=4, solid_capstyle="round")
            color = MEASURED if each.reached else PLAIN
            axes.plot(_gain(each, each.value), place, "o", color=color, markersize=8)
            if each.aim:
                axes.plot(_gain(each, each.aim), place, "|", color=INK, markersize=13)
            unit = f" {each.unit}" if each.unit else ""
            axes.annotate(
                f"{number(each.value)}{unit}  (to reach {number(each.reach or 0)})", (1.01, place),
                xycoords=("axes fraction", "data"), va="center", fontsize=10, color=INK,
            )  # fmt: skip
        axes.set_yticks(range(len(shown)), [f"{each.figure}: {each.name}" for each in shown])
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("times better than to reach: median and quartiles (the bar is the aim)")
        axes.set_title(
            f"Speed, {kept.host.cores} x {kept.host.cpu}, {kept.host.accel or 'no guests'}"
        )
        soften(axes, "x")
        figure.savefig(out, dpi=120, metadata={"Date": None} if out.suffix == ".svg" else {})
