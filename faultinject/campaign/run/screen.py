"""What a person sees of a run: done, rate, time left, what the rows show so far.

On a terminal it stands below the lines of what happened; elsewhere it is a line now and then.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from faultinject.campaign.records import MissionRow, Outcome
from faultinject.campaign.run.running import CellView, InterimResults

__all__ = ["CampaignScreen", "cells_table", "duration"]

LINE_EVERY = 15.0
"""Seconds between lines where there is no terminal."""
LOOK_EVERY = 2.0
LOOK_SHARE = 0.05
"""Seconds between looks at the store, and the most of the time that they may take."""


class CampaignScreen:
    """Tells how a run goes on.

    ``look``: returns what the rows show, asked again now and then.  ``voted``: whether a mission,
    by its number, goes through the voter: a plain guest's wrong reply is nothing to cry out.  Its
    methods are called by one thread, ``step`` by any.
    """

    def __init__(
        self,
        console: Console,
        *,
        done: int,
        total: int,
        goal: int,
        look: Callable[[], InterimResults],
        voted: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """``done`` of ``total`` missions are stored already; this run goes up to ``goal``."""
        self._voted = voted
        self._console = console
        self._done = done
        self._before = done
        self._total = total
        self._goal = goal
        self._look = look
        self._running = look()
        self._next_look = 0.0
        self._next_line = 0.0
        self._began: float | None = None
        self._outcomes: Counter[str] = Counter()
        self._live: Live | None = None
        self.stopping = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render,
                              refresh_per_second=2, transient=True)  # fmt: skip
            self._live.start()
        self._next_line = time.monotonic() + LINE_EVERY
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, text: str) -> None:
        """Something that takes time begins, or has ended."""
        self._console.print(f"[dim]{escape(text)}[/]")

    def trouble(self, text: str) -> None:
        """Something went wrong that the run goes on after."""
        self._console.print(f"[yellow]{escape(text)}[/]")

    def row(self, row: MissionRow, *, again: bool) -> None:
        """A row was written."""
        if self._began is None:
            self._began = time.monotonic()
            self._before = self._done  # the first one waited for its station
        self._done += not again
        self._outcomes[str(row.outcome or "void")] += 1
        if row.outcome is Outcome.SILENT and self._voted(row.index):
            self._console.print(
                f"[bold red]mission {row.index}: a wrong reply was released[/] {escape(row.words)}"
            )

    def look(self) -> None:
        """Look at what the rows show, if it is time; tell it where there is no terminal."""
        now = time.monotonic()
        if now >= self._next_look:
            self._running = self._look()
            took = time.monotonic() - now
            self._next_look = now + max(LOOK_EVERY, took / LOOK_SHARE)
        if self._live is None and now >= self._next_line:
            self._next_line = now + LINE_EVERY
            words = [self.progress, *self._running.words[:1]]
            self._console.print("; ".join(words), markup=False)

    @property
    def rate(self) -> float:
        """Missions a second of this run; 0 before its second one."""
        if self._began is None:
            return 0.0
        took = time.monotonic() - self._began
        return (self._done - self._before - 1) / took if took > 0 else 0.0

    @property
    def progress(self) -> str:
        """Done, rate, time left, in words."""
        words = f"{self._done:,} of {self._total:,} missions"
        if self.rate > 0:
            left = max(0, self._goal - self._done) / self.rate
            words += f", {self.rate * 3600:,.0f} an hour, {duration(left)} left"
            if self._goal < self._total:
                words += f" to the first {self._goal:,}"
        return words

    def _render(self) -> RenderableType:
        outcomes = ", ".join(f"{count} {name}" for name, count in self._outcomes.most_common())
        bar = Table.grid(padding=(0, 2))
        progress = ProgressBar(total=max(1, self._total), completed=self._done, width=40)
        bar.add_row(progress, Text(self.progress))
        parts: list[RenderableType] = [
            cells_table(self._running.cells),
            *(Text(words) for words in self._running.words),
            bar,
            Text(f"this run: {outcomes or 'no mission yet'}", style="dim"),
        ]
        if self.stopping:
            parts.append(Text(self.stopping, style="yellow"))
        return Group(*parts)


def cells_table(cells: tuple[CellView, ...]) -> Table:
    """Return the plan's cells with what they show."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stratum", overflow="fold")
    for title in ("trials", "planned", "failed", "silent", "void", "failure rate", "interval"):
        table.add_column(title, justify="right")
    for cell in cells:
        rate = "-" if cell.rate is None else f"{cell.rate:.4f}"
        interval = "" if cell.rate is None else f"{cell.low:.4f} to {cell.high:.4f}"
        silent = f"[bold red]{cell.silent}[/]" if cell.silent and cell.voted else str(cell.silent)
        table.add_row(
            cell.name,
            f"{cell.trials:,}",
            f"{cell.planned:,}",
            f"{cell.failures:,}",
            silent,
            f"{cell.void:,}",
            rate,
            interval,
        )
    return table


def duration(seconds: float) -> str:
    """Return a time in words: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
