"""The terminal output of a soak: a line for each fault, a progress bar, and tables at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from faultinject.soak.load import Load
from faultinject.soak.record import (
    InjectedFault,
    KindSummary,
    RoundRecord,
    RoundSummary,
    SoakRecord,
)
from faultinject.soak.verdict import corrupt_restores

__all__ = ["SoakScreen", "show"]


class SoakScreen:
    """The progress display of a run."""

    def __init__(self, console: Console, faults: int) -> None:
        self._began = time.monotonic()
        self._longest = 0.0
        self._progress = Progress(
            TextColumn("fault"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=faults)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """Print a step of the run."""
        self._print(f"[dim]{escape(text)}[/]")

    def fault(self, fault: InjectedFault, load: Load) -> None:
        """Print a fault from which the node has recovered."""
        self._longest = max(self._longest, fault.longest_pause)
        duration = f" for {fault.seconds:g} s" if fault.seconds else ""
        when = f" while {escape(fault.seen)}" if fault.seen else ""
        mark = "[cyan]*[/]" if fault.overlapped else " "
        after = fault.recovered_after
        recovery = "" if after is None else f", recovered after {after:.2f} s"
        self._print(
            f"{mark} {fault.number:3} [bold]{fault.kind}[/] {fault.target}{duration}{when}: "
            f"longest wait {fault.longest_pause * 1e3:.0f} ms{recovery}"
        )
        self._advance(fault.number, load, f"{fault.rate:.0f}/s, ")

    def round(self, one: RoundRecord, load: Load) -> None:
        """Print a round; a wrong reply or a corrupted restore in red."""
        self._longest = max(self._longest, one.longest_pause)
        after = "" if one.noticed_after is None else f" after {one.noticed_after * 1e3:.0f} ms"
        self._print(
            f"  {one.number:3} [bold]{one.guest}[/] {one.key} while {escape(one.trigger)}; voter "
            f"killed {one.offset * 1e3:+.0f} ms; detected by {one.noticed_by}{after}; "
            f"{one.checkpoints} checkpoints compared; recovered after {one.recovered_after:.2f} s"
        )
        problems = corrupt_restores(one)
        if one.wrong:
            problems.append(f"round {one.number}: {one.wrong} wrong replies")
        for problem in problems:
            self._print(f"[bold red]CORRUPT[/] {escape(problem)}")
        self._advance(one.number, load)

    def _advance(self, number: int, load: Load, rate: str = "") -> None:
        wrong = load.oracle.wrong + load.oracle.misplaced + sum(load.errors.values())
        self._progress.update(
            self._task,
            completed=number,
            description=f"{load.requests} requests, {rate}longest wait "
            f"{self._longest * 1e3:.0f} ms, "
            + (f"[red]{wrong} wrong or failed[/]" if wrong else "all correct"),
        )

    def _print(self, text: str) -> None:
        took = time.monotonic() - self._began
        self._progress.console.print(f"[dim]{took:6.1f} s[/] {text}")


def show(out: Console, record: SoakRecord) -> None:
    """Print a record's tables."""
    load = record.load
    table = Table("fault", "number", "during repair", "longest wait of a client", "recovered after")
    for kind in record.kinds:
        table.add_row(*_row(kind))
    out.print()
    out.print(table)
    out.print("[dim]median and longest; a client's wait includes its retries[/]")
    for wait in record.waits:
        out.print(f"[dim]waited {escape(wait)}[/]")
    out.print(
        f"{load.replies} replies of {load.requests} requests, {load.rate:.0f}/s; "
        f"p50 {load.p50 * 1e3:.1f} ms, p99 {load.p99 * 1e3:.1f} ms, longest "
        f"{load.longest * 1e3:.0f} ms; {load.replayed} replayed from the deduplication table"
    )
    if record.summary is not None:
        _show_rounds(out, record.summary)
    for promise in record.promises:
        mark = "[green]held[/]  " if promise.held else "[bold red]BROKEN[/]"
        out.print(f"{mark} {promise.promise}: {escape(promise.seen)}")
    for failure in record.unexplained:
        out.print(
            f"[yellow]unexplained[/] {failure.guest} left the vote at {failure.at:.1f} s without a "
            f"fault: {escape(failure.reason)}"
        )
    held = sum(promise.held for promise in record.promises)
    out.print(
        f"[{'green' if record.held else 'red'}]{held} of {len(record.promises)} promises held[/]: "
        f"{len(record.faults)} faults, {record.overlapped} during a repair or a transfer, seed "
        f"{record.spec.seed}, {record.seconds:.0f} s"
    )
    out.print(f"[dim]{escape(str(record.host))}, durability {record.spec.durability}[/]")


def _show_rounds(out: Console, summary: RoundSummary) -> None:
    noticed = ", ".join(f"{detector} {count}" for detector, count in summary.noticed.items())
    kills = ", ".join(f"{when} {count}" for when, count in summary.kills.items())
    out.print(
        f"{summary.rounds} rounds, {summary.proven} corruptions proved; detected by: {noticed}; "
        f"wrong replies released {summary.wrong}, corrupted states restored {summary.restored}, "
        f"{summary.checkpoints} checkpoints compared"
    )
    out.print(f"voter killed: {kills}; between a marker and its checkpoint {summary.interrupted}")
    if summary.unnoticed_median is not None and summary.unnoticed_longest is not None:
        out.print(
            f"a corruption stayed undetected for {summary.unnoticed_median:.2f} s (median), "
            f"{summary.unnoticed_longest:.2f} s at most"
        )


def _row(kind: KindSummary) -> tuple[str, ...]:
    recovery = "-"
    if kind.recovery_median is not None and kind.recovery_longest is not None:
        recovery = f"{kind.recovery_median:.2f} s, {kind.recovery_longest:.2f} s"
    pause = f"{kind.pause_median * 1e3:.0f} ms, {kind.pause_longest * 1e3:.0f} ms"
    return (kind.kind, str(kind.count), str(kind.overlapped), pause, recovery)
