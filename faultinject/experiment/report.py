"""The report of an experiment: a table for the terminal, ``experiment.json``, and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.host.files import write_json
from faultinject.plotting import FAINT, INK, MEASURED, PLAIN, draw, new_figure, save
from faultinject.results import accelerator
from faultinject.results.experiment import EXPERIMENT_FILE, ArmResult, ExperimentResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["result_table", "summary_lines", "write_report"]

STAND_IN = (
    "The agents were processes of the host (exec:), not virtual machines: this shows the mechanism "
    "and the voter, not guests."
)


def result_table(result: ExperimentResult) -> Table:
    """Return a table with one row for each arm."""
    from rich.table import Table  # noqa: PLC0415 - slow to load

    table = Table(title=f"{result.title} (seed {result.seed})", title_justify="left")
    for name in ("arm", "event", "count", "share", "interval", "predicted", "verdict"):
        right = name in ("count", "share", "predicted")
        table.add_column(name, justify="right" if right else "left")
    for arm in result.arms:
        seen = arm.observed
        table.add_row(
            arm.label,
            arm.event,
            f"{seen.count} of {seen.of}",
            f"{seen.value:.3f}" if seen.value is not None else "-",
            f"{seen.low:.3f} to {seen.high:.3f}",
            f"{arm.predicted:.3f}" if arm.predicted is not None else "-",
            arm.fitness if arm.fitness != "measured" else "-",
        )
    return table


def summary_lines(result: ExperimentResult) -> list[str]:
    """Return what a reader of the table must know: quantities, tests, limits."""
    lines = []
    for arm in result.arms:
        for name, found in arm.quantities.items():
            lines.append(
                f"{arm.label}: {result.quantities.get(name, name)} ({name}): "
                f"mean {found.mean:.4g}, median {found.median:.4g}, "
                f"largest {found.largest:.4g}, total {found.total:.6g} in {found.trials:,} trials"
            )
    if result.joint_p is not None:
        lines.append(f"all predictions together: likelihood-ratio test, p = {result.joint_p:.2g}")
    lines.append(
        f"intervals: {result.confidence:.0%} for all arms at once (Clopper-Pearson, Bonferroni)"
    )
    if result.excluded:
        lines.append(f"{result.excluded} trials were excluded: {result.excluded / result.done:.1%}")
    if result.partial:
        lines.append(f"partial: {result.done:,} of {result.planned:,} trials")
    if "exec" in result.accel:
        lines.append(STAND_IN)
    elif limits := accelerator.limits(result.accel, flips=False):
        lines.append(limits)
    return lines


def write_report(result: ExperimentResult, directory: Path) -> list[Path]:
    """Write the result and its figure; return their paths.  Raises OSError."""
    path = directory / EXPERIMENT_FILE
    write_json(path, msgspec.to_builtins(result))
    with draw():
        figure = _draw(result)
        return [path, *save(figure, directory / "experiment")]


def _draw(result: ExperimentResult) -> Figure:
    """Draw each arm's share with its interval, and its prediction."""
    figure = new_figure(8.6, 1.6 + 0.4 * len(result.arms))
    axes = figure.subplots()
    for place, arm in enumerate(reversed(result.arms)):
        _draw_arm(axes, place, arm)
    axes.set_yticks(range(len(result.arms)), [arm.label for arm in reversed(result.arms)])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(result.arms) - 0.4)
    axes.set_xlabel("share of trials with the event")
    axes.set_title(result.title)
    handles = [
        axes.plot([], [], "o", color=MEASURED, markersize=5)[0],
        axes.plot([], [], "|", color=INK, markersize=11, markeredgewidth=1.6)[0],
    ]
    figure.legend(
        handles, ["measured, with interval", "predicted"], loc="outside lower right", ncols=2
    )
    return figure


def _draw_arm(axes: Axes, place: int, arm: ArmResult) -> None:
    seen = arm.observed
    if seen.value is None:
        return
    colour = PLAIN if arm.fitness == "departs" else MEASURED
    axes.plot([seen.low, seen.high], [place, place], color=colour, linewidth=1.6)
    axes.plot([seen.value], [place], "o", color=colour, markersize=5)
    if arm.predicted is not None:
        axes.plot([arm.predicted], [place], "|", color=INK, markersize=11, markeredgewidth=1.6)
        low, high = max(arm.predicted - arm.margin, 0), min(arm.predicted + arm.margin, 1)
        axes.plot([low, high], [place - 0.22] * 2, color=FAINT, linewidth=0.8)
