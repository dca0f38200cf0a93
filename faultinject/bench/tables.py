"""The results of ``trivisor bench`` as tables on the terminal."""

from __future__ import annotations

from functools import singledispatch
from itertools import groupby
from statistics import median

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

from faultinject.bench.bench_report import BenchReport
from faultinject.bench.dashboards import CROWD, FEW, DashboardsReport
from faultinject.bench.figures import FIGURES, number
from faultinject.bench.link import LinkReport
from faultinject.bench.memory import MemoryReport
from faultinject.bench.rejuvenation import SETTINGS, RejuvenationReport
from faultinject.bench.replay import ReplayBenchReport
from faultinject.bench.roles import RolesReport
from faultinject.bench.transfer import TransferReport
from faultinject.host_facts import DiskFacts
from faultinject.results.guest_capacity import CrowdReport
from voter.commands.terminal import console, warn

__all__ = ["show"]

MIB = 1 << 20
BUSY = 0.1
"""Share of the processors from which on other programs are reported: they change ratios, too."""
SHOWN_GOAL = 1.1
"""How many times larger p99 may be with 20 open dashboards than without."""
OBSERVED_GOAL = 1.05
"""How many times larger p50 may be with an observer than without."""
CLONE_GOAL = 1.5
"""How long a clone may take until it votes, in boots with a whole processor."""
DURING_GOAL = 2.0
"""How many times larger p99 may be during a transfer."""


def _yes(reached: bool) -> str:
    return "yes" if reached else "[red]no[/]"


@singledispatch
def show(report: object) -> None:
    """Print a result."""
    raise TypeError(f"no table for {type(report).__name__}")


def _show_disk(disk: DiskFacts) -> None:
    console().print(f"[dim]{disk}[/]")
    if disk.volatile:
        warn(
            f"warning TV0804: the data were on {disk.filesystem}, where a sync stores nothing: "
            "give --data DIR"
        )


def _show_others(share: float, stage: str = "") -> None:
    if share > BUSY:
        console().print(f"[red]other programs used {share:.0%} of the processors{stage}[/]")


@show.register
def _(report: BenchReport) -> None:
    out, measured = console(), report.measured
    columns = (Column(name, no_wrap=True) for name in ("measured", "to reach (aim)", "reached"))
    table = Table(
        "figure", *columns,
        caption="at 64: 64 requests in flight; p50: 1 in flight; (quartiles of rounds or tries)",
    )  # fmt: skip
    for figure in FIGURES:
        chosen = [each for each in report.values if each.figure == figure]
        if chosen:
            table.add_row(f"[bold]{figure}[/]")
        for each in chosen:
            quartiles = f" ({number(each.low)} to {number(each.high)})" if each.count > 1 else ""
            bound = ""
            if each.reach is not None:
                aim = f" ({number(each.aim)})" if each.aim is not None else ""
                bound = f"{'<=' if each.at_most else '>='} {number(each.reach)}{aim}"
            table.add_row(
                f"  {escape(each.name)}",
                f"{number(each.value)}{' ' if each.unit else ''}{each.unit}{quartiles}",
                bound,
                "" if each.reached is None else _yes(each.reached),
            )
        if chosen:
            table.add_section()
    out.print(table)
    rates = Table("target", "/s at 64", "p50", "8 ms pauses", "processor, us a request",
                  title="medians over rounds")  # fmt: skip
    for rounds in (measured.processes, measured.guests):
        for target in rounds[0] if rounds else ():
            loads = {load: [each[target][load] for each in rounds] for load in rounds[0][target]}
            p50s = [
                f"{median(each.p50 for each in loads[load]) * 1e6:.0f} us" if load in loads else ""
                for load in ("one", "paused")
            ]
            costs = [
                f"{role} {median(each.processor[role] for each in loads['many']) * 1e6:.0f}"
                for role in loads["many"][0].processor
            ]
            rate = median(each.rate for each in loads["many"])
            rates.add_row(target, f"{rate:.0f}", *p50s, ", ".join(costs))
    if rates.row_count:
        out.print(rates)
    for disturbance in measured.disturbances:
        for failures in disturbance.failures:
            out.print(f"[red]  {escape(str(failures))}[/]")
    if measured.arrivals:
        out.print(f"unpipelined arrivals sustain {measured.arrivals:.0f} requests/s")
    if (idle := measured.idle) is not None:
        held = "all answer" if idle.answered else "[red]not all answer[/]"
        out.print(
            f"{idle.connections} idle connections: {held}, voter at {idle.holding / MIB:.0f} MiB"
        )
    for name, reason in report.missing.items():
        out.print(f"[red]not measured: {name}: {escape(reason)}[/]")
    for stage, share in report.others.items():
        _show_others(share, f" ({stage})")
    old = f", compared with {report.old}" if report.old else ""
    out.print(
        f"[dim]build {report.build}{old}; seed {report.plan.seed}; etcd {report.etcd or '-'}[/]"
    )
    for stage, mode in report.modes.items():
        out.print(f"[dim]{stage}: {mode}[/]")
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
def _(report: ReplayBenchReport) -> None:
    out, plan = console(), report.plan
    out.print(f"{plan.writes} writes a round, {plan.in_flight} in flight, durability fsync")
    table = Table("round", "live", "replayed", "replayed/live", "replies that differ", "digests")
    for at, each in enumerate(report.rounds, 1):
        rates = [f"{rate:.0f} writes/s" for rate in (each.live, each.replayed)]
        digests = f"{each.digests} met"
        table.add_row(str(at), *rates, f"{each.ratio:.2f}", str(each.differing), digests)
    out.print(table)
    out.print(
        f"median of replayed/live: {report.ratio:.2f}  "
        f"(to reach: at least 1: {_yes(report.ratio >= 1)})"
    )


@show.register
def _(report: RejuvenationReport) -> None:
    out, plan = console(), report.plan
    out.print(f"{plan.rate:g} requests/s, windows of {plan.window:g} s; medians (quartiles)")
    table = Table("new guest", "pairs", "votes after", "p50 during/quiet", "p99 during/quiet",
                  "failed", "bounded by")  # fmt: skip
    for setting in SETTINGS:
        pairs = report.of(setting)
        if not pairs:
            continue
        cells = []
        for key, unit in (("seconds", " s"), ("p50", ""), ("p99", "")):
            low, middle, high = report.quartiles(setting, key)
            cells.append(f"{middle:.2f}{unit} ({low:.2f} to {high:.2f})")
        bounds = ", ".join(sorted({each.bounded for each in pairs}))
        failed = sum(each.failed for each in pairs)
        table.add_row(setting, str(len(pairs)), *cells, str(failed), bounds)
    out.print(table)
    if (ratio := report.clone_to_boot) is not None:
        out.print(
            f"clone/boot with a whole processor: {ratio:.2f}  "
            f"(to reach: at most {CLONE_GOAL:g}: {_yes(ratio <= CLONE_GOAL)})"
        )
    if report.of("clone"):
        p99 = report.quartiles("clone", "p99")[1]
        out.print(
            f"p99 while a clone takes a place: {p99:.2f} times  "
            f"(to reach: at most {DURING_GOAL:g}: {_yes(p99 <= DURING_GOAL)})"
        )
    _show_others(report.others)
    out.print(f"[dim]seed {plan.seed}; {report.host}[/]")


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


@show.register
def _(report: LinkReport) -> None:
    out = console()
    for (accel, load, size), rows in groupby(
        report.rows, lambda row: (row.accel, row.load, row.size)
    ):
        table = Table(
            "link", *(Column(name, justify="right") for name in (
                "p50", "p99", "messages/s", "guest", "driver")), "p50 ratio (quartiles)",
            title=f"{accel.upper()}, {load}, {size} bytes", box=SIMPLE, pad_edge=False,
        )  # fmt: skip
        for row in rows:
            cell = row.cell
            times = (cell.p50, cell.p99), (cell.guest, cell.driver)
            latencies, costs = ([f"{1e6 * each:,.0f}" for each in pair] for pair in times)
            table.add_row(
                row.link, *latencies, f"{cell.rate:,.0f}", *costs,
                f"{row.relative:.2f} ({row.low:.2f}-{row.high:.2f})",
            )  # fmt: skip
        out.print(table)
    out.print("guest, driver: processor time a message; all times in us")
    reads = {
        link: max(row.cell.largest_read for row in report.rows if row.link == link)
        for link in dict.fromkeys(row.link for row in report.rows)
    }
    sizes = ", ".join(f"{link} {size}" for link, size in reads.items())
    out.print(f"bytes that one read in the guest returned at most: {sizes}")
    for name, reason in report.missing.items():
        out.print(f"[red]not measured: {name}: {escape(reason)}[/]")
    _show_others(report.others)
    out.print(f"[dim]{len(report.rounds)} rounds, seed {report.plan.seed}; {report.qemu}[/]")
    out.print(f"[dim]{report.host}[/]")


@show.register
def _(report: DashboardsReport) -> None:
    out = console()
    out.print(
        f"{report.rate:.0f} requests/s, {report.plan.load:.0%} of {report.throughput:.0f}; the "
        f"supervisor has {report.supervisor / MIB:.0f} MiB before the first dashboard"
    )
    table = Table("round", "without: p99", f"{FEW}: p99", f"{CROWD}: p99", f"ratio {FEW}",
                  f"ratio {CROWD}")  # fmt: skip
    for at, each in enumerate(report.rounds, 1):
        p99 = {name: shown.latency.p99 for name, shown in each.items()}
        cells = [f"{p99[str(dashboards)] * 1e3:.1f} ms" for dashboards in (0, FEW, CROWD)]
        cells += [f"{p99[str(dashboards)] / p99['0']:.2f}" for dashboards in (FEW, CROWD)]
        table.add_row(str(at), *cells)
    out.print(table)
    for dashboards in (FEW, CROWD):
        seen = report.rounds[-1][str(dashboards)].seen
        words = ", ".join(f"{count} {name}" for name, count in seen.items() if name != "bytes")
        out.print(
            f"{dashboards} dashboards ({words}): p99 {report.ratio(dashboards):.2f} times, "
            f"supervisor at most {report.largest(dashboards) / MIB:.0f} MiB, "
            f"{report.failed(dashboards)} requests failed"
        )
    out.print(
        f"to reach with {FEW}: at most {SHOWN_GOAL:g}: {_yes(report.ratio(FEW) <= SHOWN_GOAL)}"
    )
    _show_others(report.others)
    out.print(f"[dim]{report.host}[/]")


@show.register
def _(report: RolesReport) -> None:
    out = console()
    out.print(
        f"replicas: {report.replicas}; {report.rate:.0f} requests/s, {report.plan.load:.0%} of "
        f"{report.throughput:.0f}"
    )
    table = Table("round", "p50 of one client", "observer", "ratio", "p50 at fixed times",
                  "observer", "ratio", "compared", "differed")  # fmt: skip
    for at, each in enumerate(report.rounds, 1):
        without, observed = each["none"], each["observer"]
        cells = []
        for one, other in ((without.client.p50, observed.client.p50),
                           (without.arrivals.p50, observed.arrivals.p50)):  # fmt: skip
            cells += [f"{one * 1e3:.2f} ms", f"{other * 1e3:.2f} ms", f"{other / one:.3f}"]
        table.add_row(str(at), *cells, str(observed.compared), str(observed.differed))
    out.print(table)
    out.print(
        f"with an observer, medians over {len(report.rounds)} rounds: p50 of one client "
        f"{report.client_p50:.3f} times, p50 at fixed times {report.arrivals_p50:.3f} times, p99 "
        f"{report.arrivals_p99:.3f} times, {report.failed} requests failed"
    )
    out.print(
        f"to reach: p50 at most {OBSERVED_GOAL:g} times: "
        f"{_yes(max(report.client_p50, report.arrivals_p50) <= OBSERVED_GOAL)}"
    )
    _show_others(report.others)
    out.print(f"[dim]{report.host}[/]")
