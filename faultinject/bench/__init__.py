"""``trivisor bench``: what voting costs, as ratios of things measured side by side in one run.

``load`` drives, ``peers`` are the things compared with (a plain proxy, HAProxy), ``rig`` makes
the processes, ``compare`` measures throughput and latency, ``disturb`` what a failing guest does
to the others' latency, ``idle`` what idle connections cost, ``report`` runs all of these;
``host`` and ``usage`` say what it was measured on.

Apart from them, by ``commands``: ``ladder`` (what durability costs, beside ``etcd``), ``memory``
(flat over a million writes, drawn by ``plot``), ``transfer`` (a large state on its way), ``crowd``
(how many guests fit, and what each costs).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from deploy.node.records import PROMISES, Durability
from faultinject.bench.commands import durability as durability_command
from faultinject.bench.commands import guests, memory, transfer
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.bench.report import BenchReport

__all__ = ["bench"]


@click.group(invoke_without_command=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--requests", type=click.IntRange(200, 1_000_000), default=4000, show_default=True,
              help="Requests for each target in each round.")  # fmt: skip
@click.option("--pairs", type=click.IntRange(1, 100), default=3, show_default=True,
              help="Pairs of windows (quiet, faulty) for each kind of fault.")  # fmt: skip
@click.option("--idle", type=click.IntRange(0, 100_000), default=10_000, show_default=True,
              help="Idle HTTP connections to hold; 0 leaves this out.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Seed of the order within a round.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True)  # fmt: skip
@click.option("--durability", type=click.Choice(sorted(PROMISES)), default="none",
              show_default=True, help="Of the voters.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Also store the result as JSON here.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_context
def bench(  # noqa: PLR0913 - a command has its options
    context: click.Context,
    rounds: int,
    requests: int,
    pairs: int,
    idle: int,
    seed: int,
    accel: Literal["auto", "kvm", "tcg"],
    durability: Durability,
    out: Path | None,
    as_json: bool,
) -> int | None:
    """Measure the vote beside its peers, on real guests, in one run; or one of the commands below.

    \b
    a  one guest's bare link            d  a plain aiohttp proxy, one process replica
    b  native client, three guests      e  HAProxy, the same replica
    c  HTTP, three guests               f  native client, three exec: process replicas
    """
    if context.invoked_subcommand is not None:
        return None
    import msgspec  # noqa: PLC0415 - heavy, and only when measuring

    from faultinject.bench.report import BenchPlan, run_all  # noqa: PLC0415
    from faultinject.host_facts import save  # noqa: PLC0415

    quiet_logs()
    plan = BenchPlan(
        rounds=rounds, requests=requests, pairs=pairs, idle=idle, seed=seed, accel=accel,
        durability=durability,
    )  # fmt: skip
    report = run_all(plan, lambda text: None if as_json else warn(f"  {text}"))
    if out is not None:
        save(report, out)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _show(report)
    return ExitCode.OK


for _command in (durability_command, memory, transfer, guests):
    bench.add_command(_command)


def _show(report: BenchReport) -> None:
    from rich.table import Table  # noqa: PLC0415

    from faultinject.bench.compare import RATIOS  # noqa: PLC0415

    out = console()
    table = Table("target", "p50, 1 in flight", "requests/s, 64 in flight")
    for name, p50 in report.comparison.p50.items():
        table.add_row(name, f"{p50 * 1e6:.0f} us", f"{report.comparison.rate[name]:.0f}")
    out.print(table)
    table = Table("ratio", "measured", "to reach", "reached")
    for name, value in report.comparison.ratios.items():
        _, _, _, goal, _ = RATIOS[name]
        at_most = RATIOS[name][0] == "p50"
        reached = "" if not goal else "yes" if (value <= goal) is at_most else "[red]no[/]"
        words = "" if not goal else f"{'at most' if at_most else 'at least'} {goal:g}"
        table.add_row(name, f"{value:.2f}", words, reached)
    out.print(table)
    for each in report.disturbances:
        out.print(
            f"{each.kind} of a guest at {each.rate:.0f} requests/s: p99.9 "
            f"{each.added * 1e3:+.1f} ms (median of {len(each.quiet)} pairs, worst "
            f"{each.worst * 1e3:+.1f} ms), {each.failed} failed  (to reach: +50 ms, 0)"
        )
    for done in report.recoveries:
        goal_seconds = 0.5 if done.kind == "freeze" else 3.0
        tries = ", ".join(f"{value:.2f}" for value in done.seconds)
        out.print(
            f"voting again after {done.kind}, {done.keys} keys: {tries} s  "
            f"(to reach: {goal_seconds:g} s)"
        )
    if report.idle is not None:
        out.print(
            f"{report.idle.connections} idle connections held: {report.idle.each / 1024:.1f} KiB "
            f"each, voter at {report.idle.holding / 2**20:.0f} MiB"
        )
    out.print(f"durability of the voters: {report.plan.durability}")
    out.print(f"[dim]{report.host}[/]")
