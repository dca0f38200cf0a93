"""The progress of a run: missions done, rate, time left, interim results.

On a terminal it stays below the log lines.  Elsewhere a line is printed every 15 seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from faultinject.campaign.assessment import AssessedMission
from faultinject.campaign.records import MissionRow
from faultinject.campaign.run.interim import CellResult, InterimResults

__all__ = ["CampaignScreen", "duration", "results_table"]

LINE_EVERY = 15.0
"""Seconds between lines where there is no terminal."""
RESULTS_EVERY = 2.0
"""Least seconds between queries of the interim results."""
RESULTS_SHARE = 0.05
"""Largest share of the time that these queries may take."""


class CampaignScreen:
    """Shows the progress of a run: a ``dispatch.RunObserver``, and a context manager.

    ``results``: queries the interim results.  ``assess``: returns a row with its outcome.
    ``voted``: whether a mission, by its number, goes through the voter; only there is a wrong reply
    alarming.  ``publish``: gets new interim results, missions done and aimed at, and missions a
    second.  One thread calls the methods, except ``step``, which any thread may call.
    """

    def __init__(
        self,
        console: Console,
        *,
        done: int,
        total: int,
        goal: int,
        results: Callable[[], InterimResults],
        assess: Callable[[MissionRow], AssessedMission],
        voted: Callable[[int], bool],
        publish: Callable[[InterimResults, int, int, float], None] = lambda *_: None,
    ) -> None:
        """``done`` of ``total`` missions are stored already; this run goes up to ``goal``."""
        self._assess = assess
        self._voted = voted
        self._console = console
        self._done = done
        self._before = done
        self._total = total
        self._goal = goal
        self._publish = publish
        self._query = results
        self._results = results()
        self._next_query = 0.0
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

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, text: str) -> None:
        """Print that a long step begins, or has ended."""
        self._console.print(f"[dim]{escape(text)}[/]")

    def trouble(self, text: str) -> None:
        """Print a problem that the run continues after."""
        self._console.print(f"[yellow]{escape(text)}[/]")

    def row(self, row: MissionRow, *, again: bool) -> None:
        """Count a stored row, and print it if the voter released a wrong reply."""
        if self._began is None:
            self._began = time.monotonic()
            self._before = self._done  # its duration contains the opening of a node
        self._done += not again
        mission = self._assess(row)
        self._outcomes[str(mission.outcome or "excluded")] += 1
        wrong = mission.outcome is not None and mission.outcome.is_wrong_reply
        if wrong and self._voted(row.index):
            self._console.print(
                f"[bold]mission {row.index}: a wrong reply was released ({mission.outcome})[/] "
                f"{escape(mission.problem)}"
            )

    def poll(self) -> None:
        """Query the interim results if they are due; print a line where there is no terminal."""
        now = time.monotonic()
        if now >= self._next_query:
            self._results = self._query()
            self._publish(self._results, self._done, self._goal, self.rate)
            took = time.monotonic() - now
            self._next_query = now + max(RESULTS_EVERY, took / RESULTS_SHARE)
        if self._live is None and now >= self._next_line:
            self._next_line = now + LINE_EVERY
            parts = [self.progress, *self._results.estimates[:1]]
            self._console.print("; ".join(parts), markup=False)

    @property
    def rate(self) -> float:
        """Return the missions a second of this run; 0 before its second one."""
        if self._began is None:
            return 0.0
        took = time.monotonic() - self._began
        return (self._done - self._before - 1) / took if took > 0 else 0.0

    @property
    def progress(self) -> str:
        """Return a text with the missions done, their rate and the time left."""
        text = f"{self._done:,} of {self._total:,} missions"
        if self.rate > 0:
            left = max(0, self._goal - self._done) / self.rate
            text += f", {self.rate * 3600:,.0f} an hour, {duration(left)} left"
            if self._goal < self._total:
                text += f" to the first {self._goal:,}"
        return text

    def _render(self) -> RenderableType:
        outcomes = ", ".join(f"{count} {name}" for name, count in self._outcomes.most_common())
        bar = Table.grid(padding=(0, 2))
        progress = ProgressBar(total=max(1, self._total), completed=self._done, width=40)
        bar.add_row(progress, Text(self.progress))
        parts: list[RenderableType] = [
            results_table(self._results.cells),
            *(Text(estimate) for estimate in self._results.estimates),
            bar,
            Text(f"this run: {outcomes or 'no mission yet'}", style="dim"),
        ]
        if self.stopping:
            parts.append(Text(self.stopping, style="yellow"))
        return Group(*parts)


def results_table(cells: tuple[CellResult, ...]) -> Table:
    """Return a table with the results of the plan's cells."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stratum", overflow="fold")
    columns = ("trials", "planned", "failed", "wrong reply", "excluded", "failure rate", "interval")
    for title in columns:
        table.add_column(title, justify="right")
    for cell in cells:
        rate = "-" if cell.rate is None else f"{cell.rate:.4f}"
        interval = "" if cell.rate is None else f"{cell.low:.4f} to {cell.high:.4f}"
        wrong = f"[bold]{cell.wrong}[/]" if cell.wrong and cell.voted else str(cell.wrong)
        table.add_row(
            cell.name,
            f"{cell.trials:,}",
            f"{cell.planned:,}",
            f"{cell.failures:,}",
            wrong,
            f"{cell.excluded:,}",
            rate,
            interval,
        )
    return table


def duration(seconds: float) -> str:
    """Return a time as text: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
