"""``trivisor bench`` and its commands: their options.  ``tables`` prints the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.host.files import write_json
from deploy.node.records import DURABILITY_GUARANTEES, Durability
from faultinject.bench.figures import FIGURES
from faultinject.results.guest_capacity import CrowdPlan
from guests.service import SHIPPED
from voter.commands.parameters import (
    MEMORY,
    SEED,
    Choice,
    Integer,
    Number,
    existing_directory,
    existing_file,
    output_file,
)
from voter.commands.terminal import ExitCode, print_json, quiet_logs, warn

__all__ = ["bench"]

REPLACEMENTS = ("100 %", "50 %", "25 %", "10 %", "lowest weight", "clone", "in place")
"""The settings of `bench rejuvenation`; importing them from there would be slow."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_accel = click.option(
    "--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True,
    help="How guests run.",
)  # fmt: skip
_seed = click.option(
    "--seed",
    type=SEED,
    default=1,
    show_default=True,
    help="Seed of the random order within a round.",
)
_keys = click.option(
    "--keys", type=Integer(1, 10_000), default=1000, show_default=True,
    help="Keys that are written in turn.",
)  # fmt: skip
_data = click.option(
    "--data", type=existing_directory(),
    help="Keep journals below this directory while the run lasts "
    "(default: the one for temporary files).",
)  # fmt: skip


def _durability(default: Durability) -> Decorator:
    return click.option(
        "--durability", type=click.Choice(sorted(DURABILITY_GUARANTEES)), default=default,
        show_default=True, help="Durability of the voters.",
    )  # fmt: skip


def _outputs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the result."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--out", type=output_file(),
                     help="Also store the result as JSON in this file."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def _progress(as_json: bool) -> Callable[[str], None]:
    return lambda text: None if as_json else warn(f"  {text}")


def _finish(report: msgspec.Struct, out: Path | None, as_json: bool) -> ExitCode:
    """Store and print a result."""
    from faultinject.bench.tables import show  # noqa: PLC0415 - slow to import

    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show(report)
    return ExitCode.OK


def _checkout(
    _context: click.Context, _parameter: click.Parameter, value: Path | None
) -> Path | None:
    """Check that a directory is a checkout of this project."""
    wanted = ("faultinject/bench/rig.py", "guests/agent", "voter/client")
    missing = [name for name in wanted if value is not None and not (value / name).exists()]
    if missing:
        raise click.BadParameter(
            f"{str(value)!r} has no {missing[0]}: give the directory of another checkout, for "
            "example of `git worktree add OLD d879bba`"
        )
    return value


@click.group(invoke_without_command=True)
@click.option("--minutes", type=Number(1, 600), default=15, show_default=True,
              help="How long the whole run may take; more minutes give more rounds.")  # fmt: skip
@click.option("--quick", is_flag=True,
              help="Few rounds and a small state: shows that all of it works.")  # fmt: skip
@click.option("--only", type=Choice(sorted(FIGURES)), multiple=True, metavar="FIGURE",
              help=f"Measure only this figure; may be repeated. One of {', '.join(FIGURES)}.",
              )  # fmt: skip
@click.option("--compare", type=existing_directory(), metavar="CHECKOUT", callback=_checkout,
              help="Measure also the build in this checkout, in the same rounds.")  # fmt: skip
@_seed
@_accel
@_data
@_outputs
@click.pass_context
def bench(
    context: click.Context,
    /,
    compare: Path | None,
    data: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> ExitCode | None:
    """Measure the speed of voting, compared with its peers and with what is to reach.

    All figures are measured side by side in one run, on this host.  After Ctrl-C, what is finished
    is printed and stored.  Or run one of the commands below.
    """
    if context.invoked_subcommand is not None:
        return None
    from faultinject.bench.bench_report import BenchPlan  # noqa: PLC0415 - slow
    from faultinject.bench.comparison import run_bench  # noqa: PLC0415

    quiet_logs()
    report = run_bench(BenchPlan(**options), _progress(as_json), compare=compare, scratch=data)
    _finish(report, out, as_json)
    if report.interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED if report.missing else ExitCode.OK


@bench.command()
@click.argument("file", type=existing_file())
@click.option("--out", type=output_file(".svg", ".png"), required=True,
              help="The picture to write (.svg or .png).")  # fmt: skip
def draw(file: Path, out: Path) -> ExitCode:
    """Draw the ratios in FILE, a result of `trivisor bench`, with what is to reach as marks."""
    from faultinject.bench.drawing import draw_report  # noqa: PLC0415 - slow to import

    draw_report(file, out)
    return ExitCode.OK


@bench.command()
@click.option("--requests", type=Integer(100, 100_000_000), default=1_000_000,
              show_default=True, help="Writes to make.")  # fmt: skip
@click.option("--every", type=Integer(10, 10_000_000), default=10_000, show_default=True,
              help="Writes between two samples.")  # fmt: skip
@_keys
@click.option("--sessions", type=Integer(1, 1000), default=8, show_default=True,
              help="Sessions, each on its own connection.")  # fmt: skip
@_durability("fsync")
@click.option("--plot", type=output_file(".png", ".svg"),
              help="Draw the samples (.png or .svg).")  # fmt: skip
@_data
@_outputs
def memory(
    plot: Path | None, data: Path | None, out: Path | None, as_json: bool, **options: Any
) -> ExitCode:
    """Check that the voter's memory stays flat over very many writes."""
    from faultinject.bench.memory import (  # noqa: PLC0415
        MemoryPlan,
        plot_memory,
        require_plotting,
        run_memory,
    )

    quiet_logs()
    if plot is not None:
        require_plotting()
    report = run_memory(MemoryPlan(in_flight=64, **options), _progress(as_json), data)
    if plot is not None:
        plot_memory(report, plot)
    return _finish(report, out, as_json)


@bench.command()
@click.option("--size", type=Integer(1, 128), default=100, show_default=True,
              help="Size of the state, MiB.")  # fmt: skip
@click.option("--rate", type=Integer(1, 1000), default=8, show_default=True,
              help="The voter's limit transfer_rate, MiB/s.")  # fmt: skip
@click.option("--load", type=Number(0.01, 1), default=0.5, show_default=True,
              help="Load, as a part of the measured throughput.")  # fmt: skip
@click.option("--passages", type=Integer(1, 100), default=3, show_default=True,
              help="How often a guest leaves and returns.")  # fmt: skip
@click.option("--memory", type=Integer(128, 65536), default=768, show_default=True,
              help="Memory of a guest, MiB.")  # fmt: skip
@_durability("fsync")
@_accel
@_data
@_outputs
def transfer(data: Path | None, out: Path | None, as_json: bool, **options: Any) -> ExitCode:
    """Measure what clients notice of a large state that is sent to a returning guest."""
    from faultinject.bench.transfer import TransferPlan, run_transfer  # noqa: PLC0415

    quiet_logs()
    report = run_transfer(TransferPlan(**options), _progress(as_json), data)
    return _finish(report, out, as_json)


@bench.command()
@click.option("--rounds", type=Integer(1, 1000), default=10, show_default=True,
              help="Histories to make and to replay.")  # fmt: skip
@click.option("--writes", type=Integer(100, 1_000_000), default=5000, show_default=True,
              help="Writes of a history.")  # fmt: skip
@click.option("--in-flight", type=Integer(1, 1024), default=64, show_default=True,
              help="Requests at the same time, live.")  # fmt: skip
@_keys
@_accel
@_data
@_outputs
def replay(data: Path | None, out: Path | None, as_json: bool, **options: Any) -> ExitCode:
    """Measure the speed of a replay, compared with the live execution that it repeats."""
    from faultinject.bench.replay import ReplayPlan, run_replay  # noqa: PLC0415

    quiet_logs()
    return _finish(run_replay(ReplayPlan(**options), _progress(as_json), data), out, as_json)


@bench.command()
@click.option("--rounds", type=Integer(1, 1000), default=40, show_default=True,
              help="Pairs of windows for each setting.")  # fmt: skip
@click.option("--window", type=Number(1, 600, "seconds"), default=5, show_default=True,
              help="Seconds of a quiet window; one with a replacement may be longer.")  # fmt: skip
@click.option("--rate", type=Number(1, 100_000, "requests a second"), default=150,
              show_default=True, help="Requests a second.")  # fmt: skip
@click.option("--only", type=Choice(list(REPLACEMENTS)), multiple=True, metavar="SETTING",
              help=f"Measure only this setting; may be repeated. One of {', '.join(REPLACEMENTS)}.",
              )  # fmt: skip
@click.option("--quick", is_flag=True,
              help="One round of short windows: shows that all of it works.")  # fmt: skip
@click.option("--plot", type=output_file(".png", ".svg"),
              help="Draw the settings (.png or .svg).")  # fmt: skip
@_seed
@_accel
@_data
@_outputs
def rejuvenation(
    only: tuple[str, ...],
    quick: bool,
    plot: Path | None,
    data: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> ExitCode:
    """Measure what clients notice while a guest is replaced, by each way to start the new one."""
    from faultinject.bench.rejuvenation import (  # noqa: PLC0415
        SETTINGS,
        RejuvenationPlan,
        plot_rejuvenation,
        run_rejuvenation,
    )

    quiet_logs()
    if quick:
        options |= {"rounds": 1, "window": 2.0}
    plan = RejuvenationPlan(settings=only or tuple(SETTINGS), **options)
    report = run_rejuvenation(plan, _progress(as_json), data)
    if plot is not None:
        plot_rejuvenation(report, plot)
    return _finish(report, out, as_json)


@bench.command()
@click.option("--most", type=Integer(1, 64), default=9, show_default=True,
              help="Boot nodes of 1, 2, ... up to so many guests.")  # fmt: skip
@click.option("--memory", type=MEMORY, default=128, show_default=True,
              help="Memory of a guest, MiB.")  # fmt: skip
@click.option("--service", type=click.Choice(sorted(SHIPPED)), default="static",
              show_default=True, help="Service in the guests.")  # fmt: skip
@_accel
@_outputs
def guests(out: Path | None, as_json: bool, **options: Any) -> ExitCode:
    """Measure how many guests fit here, and what each costs: memory, boot time, processor."""
    from faultinject.bench.capacity import run_capacity  # noqa: PLC0415

    quiet_logs()
    report = run_capacity(CrowdPlan(**options), _progress(as_json))
    return _finish(report, out, as_json)


@bench.command()
@click.option("--seconds", type=Number(10, 3600), default=150, show_default=True,
              help="How long all rounds may take, without the guest's boot.")  # fmt: skip
@click.option("--quick", is_flag=True, help="One short round: shows that all of it works.")
@_seed
@_accel
@_outputs
def link(out: Path | None, as_json: bool, **options: Any) -> ExitCode:
    """Measure what a message to a guest costs over each kind of link."""
    from faultinject.bench.link import LinkPlan, run_link  # noqa: PLC0415

    quiet_logs()
    return _finish(run_link(LinkPlan(**options), _progress(as_json)), out, as_json)


@bench.command()
@click.option("--seconds", type=Number(5, 3600), default=300, show_default=True,
              help="How long all rounds may take, without the node's start.")  # fmt: skip
@click.option("--window", type=Number(1, 600), default=4, show_default=True,
              help="Seconds of one window; a round has two.")  # fmt: skip
@click.option("--load", type=Number(0.01, 1), default=0.3, show_default=True,
              help="Load, as a part of the measured throughput.")  # fmt: skip
@click.option("--stand-in", is_flag=True, help="Processes stand in for the guests.")
@click.option("--yields/--no-yields", default=True, show_default=True,
              help="Give the fourth guest's QEMU the lowest priority.")  # fmt: skip
@_seed
@_accel
@_data
@_outputs
def roles(data: Path | None, out: Path | None, as_json: bool, **options: Any) -> ExitCode:
    """Measure what an observer in quarantine adds to the latency of clients' requests."""
    from faultinject.bench.roles import RolesPlan, run_roles  # noqa: PLC0415

    quiet_logs()
    return _finish(run_roles(RolesPlan(**options), _progress(as_json), data), out, as_json)


@bench.command()
@click.option("--seconds", type=Number(10, 3600), default=300, show_default=True,
              help="How long all rounds may take, without the node's start.")  # fmt: skip
@click.option("--window", type=Number(1, 600), default=10, show_default=True,
              help="Seconds of one window; a round has three.")  # fmt: skip
@click.option("--load", type=Number(0.01, 1), default=0.4, show_default=True,
              help="Load, as a part of the measured throughput.")  # fmt: skip
@_seed
@_accel
@_data
@_outputs
def dashboards(data: Path | None, out: Path | None, as_json: bool, **options: Any) -> ExitCode:
    """Measure what 20 and 1,000 open dashboards cost those who send requests."""
    from faultinject.bench.dashboards import DashboardsPlan, run_dashboards  # noqa: PLC0415

    quiet_logs()
    return _finish(
        run_dashboards(DashboardsPlan(**options), _progress(as_json), data), out, as_json
    )
