"""The results of ``trivisor bench`` as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

from rich.markup import escape
from rich.table import Table

from deploy.node.records import DURABILITY_GUARANTEES
from faultinject.bench import comparison, durability
from faultinject.bench.comparison import BenchReport
from faultinject.bench.durability import DurabilityReport
from faultinject.bench.memory import MemoryReport
from faultinject.bench.rounds import Goal
from faultinject.bench.transfer import TransferReport
from faultinject.host_facts import DiskFacts
from faultinject.results.guest_capacity import CrowdReport
from voter.commands.terminal import console, warn

__all__ = ["show"]

MIB = 1 << 20
RECOVERY_GOALS = {"freeze": 0.5, "kill": 3.0}
"""Seconds until a guest votes again, by kind of failure."""
DURING_GOAL = 2.0
"""How many times larger p99 may be during a transfer."""


def _yes(reached: bool) -> str:
    return "yes" if reached else "[red]no[/]"


@singledispatch
def show(report: object) -> None:
    """Print a result."""
    raise TypeError(f"no table for {type(report).__name__}")


def _show_ratios(goals: Mapping[str, Goal], measured: Mapping[str, float]) -> None:
    table = Table("ratio", "measured", "to reach", "reached")
    for name, value in measured.items():
        goal = goals[name]
        reached = _yes(goal.reached(value)) if goal.reach else ""
        table.add_row(name, f"{value:.2f}", goal.describe(), reached)
    console().print(table)


def _show_disk(disk: DiskFacts) -> None:
    console().print(f"[dim]{disk}[/]")
    if disk.volatile:
        warn(f"the data were on {disk.filesystem}, where a sync stores nothing: give --data DIR")


@show.register
def _(report: BenchReport) -> None:
    out, found = console(), report.comparison
    table = Table("target", "p50, 1 in flight", "requests/s, 64 in flight")
    for name, p50 in found.p50.items():
        table.add_row(name, f"{p50 * 1e6:.0f} us", f"{found.rate[name]:.0f}")
    out.print(table)
    _show_ratios(comparison.GOALS, found.ratios)
    for each in report.disturbances:
        out.print(
            f"{each.kind} of a guest at {each.rate:.0f} requests/s: p99.9 "
            f"{each.added * 1e3:+.1f} ms (median of {len(each.quiet)} pairs, worst "
            f"{each.worst * 1e3:+.1f} ms), {each.failed} failed  (to reach: +50 ms, 0)"
        )
        for failures in each.failures:
            out.print(f"[red]  {escape(str(failures))}[/]")
    for done in report.recoveries:
        tries = ", ".join(f"{value:.2f}" for value in done.seconds)
        out.print(
            f"voting again after {done.kind}, {done.keys} keys: {tries} s  "
            f"(to reach: {RECOVERY_GOALS[done.kind]:g} s)"
        )
    if report.idle is not None:
        out.print(
            f"{report.idle.connections} idle connections: {report.idle.each / 1024:.1f} KiB "
            f"each, voter at {report.idle.holding / MIB:.0f} MiB"
        )
    out.print(f"durability of the voters: {report.plan.durability}")
    out.print(f"[dim]{report.host}[/]")


@show.register
def _(report: DurabilityReport) -> None:
    out = console()
    table = Table("target", "1: /s", "p50", "p99", "64: /s", "p50", "p99",
                  title="medians over rounds, with 1 and with 64 in flight")  # fmt: skip
    cost = Table("target", "voter or etcd", "replicas", "driver",
                 title="processor time with 64 in flight, us a request")  # fmt: skip
    driver = {}
    for line in durability.summary(report.rounds):
        cells = [f"{line.one.rate:.0f}", *(f"{v * 1e6:.0f} us" for v in line.one.latency[:2])]
        cells += [f"{line.rate:.0f}", *(f"{v * 1e3:.1f} ms" for v in line.many.latency[:2])]
        table.add_row(line.target, *cells)
        busy = {name: share / line.rate * 1e6 for name, share in line.many_busy.items()}
        driver[line.target] = busy.pop("driver")
        costs = [f"{each:.0f}" for each in busy.values()]
        cost.add_row(line.target, *costs, *[""] * (2 - len(costs)), f"{driver[line.target]:.0f}")
    out.print(table)
    out.print(cost)
    _show_ratios(durability.GOALS, report.ratios)
    out.print(f"etcd: {report.etcd}")
    if durability.ETCD in driver:
        out.print(
            f"etcd's client takes {driver[durability.ETCD]:.0f} us of processor time a write, "
            f"Trivisor's {driver['fsync']:.0f} us: with few processors this lowers etcd's rate"
        )
    for name, promise in DURABILITY_GUARANTEES.items():
        out.print(f"[dim]{name}: {promise}[/]")
    out.print(f"[dim]{report.host}[/]")
    _show_disk(report.disk)


@show.register
def _(report: MemoryReport) -> None:
    out, plan, last = console(), report.plan, report.samples[-1]
    out.print(
        f"{last.requests} writes to {plan.keys} keys in {plan.sessions} sessions, durability "
        f"{plan.durability}, {last.requests / last.seconds:.0f}/s"
    )
    first, top = report.samples[0].voter, max(each.voter for each in report.samples)
    out.print(
        f"voter: {first / MIB:.1f} MiB at first, {last.voter / MIB:.1f} at the end, "
        f"{top / MIB:.1f} at most; {report.growth:+.1%} after the warm-up  "
        f"(to reach: +5 %: {_yes(report.flat)})"
    )
    out.print(f"[dim]{report.host}[/]")
    _show_disk(report.disk)


@show.register
def _(report: TransferReport) -> None:
    out, plan = console(), report.plan
    out.print(
        f"{report.state / MIB:.0f} MiB of state at {plan.rate} MiB/s, {plan.load:.0%} of "
        f"{report.throughput:.0f} requests/s, durability {plan.durability}"
    )
    table = Table("guest", "p99 before", "one absent", "during", "during/before",
                  "voting again after", "failed", "processors")  # fmt: skip
    for each in report.passages:
        cells = [f"{part.p99 * 1e3:.0f} ms" for part in (each.before, each.gone, each.during)]
        busy = ", ".join(f"{name} {share:.2f}" for name, share in each.busy.items())
        cells += [f"{each.ratio:.2f}", f"{each.seconds:.1f} s", str(sum(each.failures.values()))]
        table.add_row(each.guest, *cells, busy)
    out.print(table)
    out.print(
        f"median of during/before: {report.ratio:.2f}  "
        f"(to reach: at most {DURING_GOAL:g}: {_yes(report.ratio <= DURING_GOAL)})"
    )
    out.print(f"[dim]{report.host}[/]")


@show.register
def _(report: CrowdReport) -> None:
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
        f"one more guest takes {report.each / MIB:.0f} MiB; {report.fit} fit into the "
        f"{report.available / MIB / 1024:.1f} GiB that were available, without swap and with a "
        f"tenth of the host's {report.total / MIB / 1024:.1f} GiB left free"
    )
    out.print(f"the kernel {'merges' if report.ksm else 'does not merge'} equal pages (KSM)")
    out.print(f"[dim]{report.host}[/]")
