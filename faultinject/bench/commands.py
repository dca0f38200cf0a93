"""``trivisor bench durability``, ``memory``, ``transfer``, ``guests``: options and tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy.node.records import PROMISES, Durability
from guests.service import SHIPPED
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    import msgspec

    from faultinject.bench.crowd import CrowdReport
    from faultinject.bench.ladder import LadderReport
    from faultinject.bench.memory import MemoryReport
    from faultinject.bench.transfer import TransferReport
    from faultinject.host_facts import DiskFacts

__all__ = ["durability", "guests", "memory", "transfer"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
MIB = 1 << 20


def _outputs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all have."""
    file = click.Path(dir_okay=False, path_type=Path)
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="The result as JSON."),
        click.option("--out", type=file, help="Also store the result as JSON here."),
        click.option(
            "--data",
            type=folder,
            help="Journals and the like go below this directory "
            "(default: that for temporary files).",
        ),
    ):
        function = decorate(function)
    return function


def _durability_option(default: Durability) -> Decorator:
    choice = click.Choice(sorted(PROMISES))
    return click.option("--durability", type=choice, default=default, show_default=True,
                        help="Of the voter.")  # fmt: skip


def _progress(as_json: bool) -> Callable[[str], None]:
    return lambda text: None if as_json else warn(f"  {text}")


def _give(
    report: msgspec.Struct, out: Path | None, as_json: bool, show: Callable[[], None]
) -> ExitCode:
    import msgspec  # noqa: PLC0415 - heavy, and only when measuring

    from faultinject.host_facts import save  # noqa: PLC0415

    if out is not None:
        save(report, out)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show()
    return ExitCode.OK


def _tell_disk(disk: DiskFacts) -> None:
    console().print(f"[dim]{disk}[/]")
    if disk.volatile:
        warn(f"the data lay on {disk.filesystem}, where a sync means nothing: give --data DIR")


@click.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--requests", type=click.IntRange(200, 1_000_000), default=6000, show_default=True,
              help="For each target in each round, 64 under way; a quarter with one.")  # fmt: skip
@click.option("--keys", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Seed of the order within a round.")
@_outputs
def durability(
    rounds: int, requests: int, keys: int, seed: int, data: Path | None, out: Path | None,
    as_json: bool,
) -> ExitCode:  # fmt: skip
    """What durability costs: none, os and fsync before process replicas, and an etcd beside them.

    etcd has three members on loopback that sync each write; it is left out where it is not
    installed.
    """
    from faultinject.bench.ladder import LadderPlan, run_ladder  # noqa: PLC0415

    quiet_logs()
    plan = LadderPlan(rounds=rounds, requests=requests, keys=keys, seed=seed)
    report = run_ladder(plan, _progress(as_json), data)
    return _give(report, out, as_json, lambda: _show_ladder(report))


def _show_ladder(report: LadderReport) -> None:
    from rich.table import Table  # noqa: PLC0415

    from faultinject.bench.ladder import GOALS, summary  # noqa: PLC0415

    out = console()
    table = Table("target", "durability", "1: /s", "p50", "p99", "64: /s", "p50", "p99",
                  "busy at 64, us a request", title="medians over rounds")  # fmt: skip
    for line in summary(report.rounds):
        cells = [f"{line.one.rate:.0f}", *(f"{v * 1e6:.0f} us" for v in line.one.latency[:2])]
        cells += [f"{line.many.rate:.0f}", *(f"{v * 1e3:.1f} ms" for v in line.many.latency[:2])]
        cost = ", ".join(
            f"{name} {busy / line.many.rate * 1e6:.0f}" for name, busy in line.many_busy.items()
        )
        table.add_row(line.target, line.durability, *cells, cost)
    out.print(table)
    table = Table("ratio", "measured", "to reach", "reached")
    for name, value in report.ratios.items():
        goal = GOALS[name]
        reached = "" if not goal.reach else "yes" if goal.reached(value) else "[red]no[/]"
        words = f"{'at most' if goal.at_most else 'at least'} {goal.reach:g}" if goal.reach else ""
        table.add_row(name, f"{value:.2f}", words, reached)
    out.print(table)
    out.print(f"etcd: {report.etcd}")
    for name, promise in PROMISES.items():
        out.print(f"[dim]{name}: {promise}[/]")
    out.print(f"[dim]{report.host}[/]")
    _tell_disk(report.disk)


@click.command()
@click.option("--requests", type=click.IntRange(100, 100_000_000), default=1_000_000,
              show_default=True)  # fmt: skip
@click.option("--every", type=click.IntRange(10), default=10_000, show_default=True,
              help="Requests between two looks.")  # fmt: skip
@click.option("--keys", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.option("--sessions", type=click.IntRange(1, 1000), default=8, show_default=True)
@_durability_option("fsync")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw it here (.png or .svg; needs the extra `plot`).")  # fmt: skip
@_outputs
def memory(  # noqa: PLR0913 - a command has its options
    requests: int, every: int, keys: int, sessions: int, durability: Durability,
    plot: Path | None, data: Path | None, out: Path | None, as_json: bool,
) -> ExitCode:  # fmt: skip
    """Whether the voter's memory stays flat over very many writes to a bounded set of keys."""
    from faultinject.bench.memory import MemoryPlan, run_memory  # noqa: PLC0415
    from faultinject.bench.plot import plot_memory, require_plotting  # noqa: PLC0415

    quiet_logs()
    if plot is not None:
        require_plotting()
    plan = MemoryPlan(
        requests=requests, every=every, keys=keys, sessions=sessions, in_flight=64,
        durability=durability,
    )  # fmt: skip
    report = run_memory(plan, _progress(as_json), data)
    if plot is not None:
        plot_memory(report, plot)
    return _give(report, out, as_json, lambda: _show_memory(report))


def _show_memory(report: MemoryReport) -> None:
    out, plan, last = console(), report.plan, report.samples[-1]
    out.print(
        f"{last.requests} writes to {plan.keys} keys in {plan.sessions} sessions, durability "
        f"{plan.durability}, {last.requests / last.seconds:.0f}/s"
    )
    first, top = report.samples[0].voter, max(each.voter for each in report.samples)
    out.print(
        f"voter: {first / MIB:.1f} MiB at first, {last.voter / MIB:.1f} at the end, "
        f"{top / MIB:.1f} at most; after its first fifth {report.growth:+.1%}  "
        f"(to reach: +5 %: {'yes' if report.flat else '[red]no[/]'})"
    )
    out.print(f"[dim]{report.host}[/]")
    _tell_disk(report.disk)


@click.command()
@click.option("--size", type=click.IntRange(1, 128), default=100, show_default=True,
              help="The state, MiB.")  # fmt: skip
@click.option("--rate", type=click.IntRange(1, 1000), default=8, show_default=True,
              help="The voter's limit transfer_rate, MiB/s.")  # fmt: skip
@click.option("--load", type=click.FloatRange(0.01, 1.0), default=0.5, show_default=True,
              help="Part of the measured throughput.")  # fmt: skip
@click.option("--passages", type=click.IntRange(1, 100), default=3, show_default=True,
              help="How often a guest goes and comes back.")  # fmt: skip
@click.option("--memory", "guest_memory", type=click.IntRange(128, 65536), default=768,
              show_default=True, help="Of a guest, MiB.")  # fmt: skip
@_durability_option("fsync")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True)  # fmt: skip
@_outputs
def transfer(  # noqa: PLR0913 - a command has its options
    size: int, rate: int, load: float, passages: int, guest_memory: int, durability: Durability,
    accel: Literal["auto", "kvm", "tcg"], data: Path | None, out: Path | None, as_json: bool,
) -> ExitCode:  # fmt: skip
    """A large state going into a real guest that comes back, and what clients feel of it."""
    from faultinject.bench.transfer import TransferPlan, run_transfer  # noqa: PLC0415

    quiet_logs()
    plan = TransferPlan(
        size=size, rate=rate, load=load, passages=passages, memory=guest_memory,
        durability=durability, accel=accel,
    )  # fmt: skip
    report = run_transfer(plan, _progress(as_json), data)
    return _give(report, out, as_json, lambda: _show_transfer(report))


def _show_transfer(report: TransferReport) -> None:
    from rich.table import Table  # noqa: PLC0415

    out, plan = console(), report.plan
    out.print(
        f"{report.state / MIB:.0f} MiB of state at {plan.rate} MiB/s, {plan.load:.0%} of "
        f"{report.throughput:.0f} requests/s, durability {plan.durability}"
    )
    table = Table("guest", "p99 before", "one gone", "during", "during/before",
                  "voting again after", "failed", "busy")  # fmt: skip
    for each in report.passages:
        cells = [f"{part.p99 * 1e3:.0f} ms" for part in (each.before, each.gone, each.during)]
        busy = ", ".join(f"{name} {share:.2f}" for name, share in each.busy.items())
        cells += [f"{each.ratio:.2f}", f"{each.seconds:.1f} s", str(sum(each.failures.values()))]
        table.add_row(each.guest, *cells, busy)
    out.print(table)
    reached = "yes" if report.ratio <= 2 else "[red]no[/]"
    out.print(f"median of during/before: {report.ratio:.2f}  (to reach: at most 2: {reached})")
    out.print(f"[dim]{report.host}[/]")


@click.command()
@click.option("--most", type=click.IntRange(1, 64), default=9, show_default=True,
              help="Nodes of 1, 2, ... up to so many guests are booted.")  # fmt: skip
@click.option("--memory", "guest_memory", type=click.IntRange(64, 65536), default=128,
              show_default=True, help="Of a guest, MiB.")  # fmt: skip
@click.option("--service", type=click.Choice(sorted(SHIPPED)), default="static",
              show_default=True)  # fmt: skip
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Also store the result as JSON here.")  # fmt: skip
def guests(
    most: int, guest_memory: int, service: str, accel: Literal["auto", "kvm", "tcg"],
    as_json: bool, out: Path | None,
) -> ExitCode:  # fmt: skip
    """How many guests fit here, and what each costs: memory, boot time, an idle processor."""
    from deploy.node.records import cache_directory  # noqa: PLC0415
    from faultinject.bench.crowd import CrowdPlan, run_crowd  # noqa: PLC0415

    quiet_logs()
    plan = CrowdPlan(most=most, memory=guest_memory, service=service, accel=accel)
    report = run_crowd(plan, cache_directory() / "images", _progress(as_json))
    return _give(report, out, as_json, lambda: _show_crowd(report))


def _show_crowd(report: CrowdReport) -> None:
    from rich.table import Table  # noqa: PLC0415

    out = console()
    table = Table("guests", "all ready after", "first, last", "PSS each", "RSS each",
                  "shared", "swapped", "idle, processors")  # fmt: skip
    for crowd in report.crowds:
        memory, n = crowd.memory, crowd.guests
        table.add_row(
            str(n), f"{crowd.seconds:.1f} s", f"{min(crowd.ready):.1f}, {max(crowd.ready):.1f} s",
            f"{memory.pss / n / MIB:.0f} MiB", f"{memory.rss / n / MIB:.0f} MiB",
            f"{memory.shared / MIB:.0f} MiB", f"{memory.swapped / MIB:.0f} MiB",
            f"{crowd.idle:.2f}",
        )  # fmt: skip
    out.print(table)
    out.print(
        f"one guest more takes {report.each / MIB:.0f} MiB; {report.fit} fit in the "
        f"{report.available / MIB / 1024:.1f} GiB that were available, without swap, a tenth of "
        f"the host's {report.total / MIB / 1024:.1f} GiB left free"
    )
    out.print(f"equal pages of guests are {'' if report.ksm else 'not '}merged by the kernel (KSM)")
    out.print(f"[dim]{report.host}[/]")
