"""The picture of a memory run.  Needs matplotlib (the extra ``plot``)."""

from __future__ import annotations

from pathlib import Path

from faultinject.bench.memory import MemoryReport
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["plot_memory", "require_plotting"]

MIB = 1 << 20


def require_plotting() -> None:
    """Raise CommandError where there is no matplotlib: before a long run, not after it."""
    try:
        import matplotlib  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise CommandError(
            "a picture needs matplotlib",
            remedy="pip install 'trivisor[plot]', or leave --plot out",
            code=ExitCode.CANNOT_RUN_HERE,
        ) from error


def plot_memory(report: MemoryReport, path: Path) -> None:
    """Draw resident memory over requests; the file's ending says which format.  Raises OSError."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    plan, samples = report.plan, report.samples
    requests = [each.requests for each in samples]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(requests, [each.voter / MIB for each in samples], label="voter")
    axes.plot(
        requests, [each.replicas / MIB / 3 for each in samples],
        label="replica (mean of three processes)", linestyle="--",
    )  # fmt: skip
    axes.set_xlabel("writes done")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"{plan.requests:,} writes to {plan.keys:,} keys, {plan.sessions} sessions, durability "
        f"{plan.durability}: voter {report.growth:+.1%} after its first fifth",
        fontsize="medium",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
