"""The latency figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultinject.plotting import new_figure, soften
from faultinject.report.data import Latencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_latency"]

SHADES = ("#8a949e", "#1f6f9c", "#b8651b", "#5d4a7d", "#3c8c6e", "#a0527d")


def draw_latency(groups: Sequence[Latencies]) -> Figure:
    """Draw latency over the proportion of slower requests: faults show in the tail."""
    figure = new_figure(8.6, 4.7)
    axes = figure.subplots()
    for group, shade in zip(groups, SHADES, strict=False):
        axes.plot(
            [1000 * seconds for seconds, _ in group.tail], [longer for _, longer in group.tail],
            color=shade, linewidth=1.5, label=f"{group.label}  ({group.requests:,} requests)",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("milliseconds until the reply was released (log scale)")
    axes.set_ylabel("proportion of requests that took longer")
    axes.set_yticks([1, 0.1, 0.01, 0.001], ["all", "1 in 10", "1 in 100", "1 in 1,000"])
    axes.minorticks_off()
    axes.set_ylim(top=1.1)
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
             if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]  # fmt: skip
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    soften(axes)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
