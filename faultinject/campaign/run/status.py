"""The status of a campaign, for people and for scripts; also while it runs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape

from faultinject.campaign.run.interim import CellResult, interim_results
from faultinject.campaign.run.screen import duration, results_table
from faultinject.campaign.store.store import RunRecord, Store

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Status", "show_status", "status_of"]

LATEST = 500
"""Latest missions that the rate of a run is computed from."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a campaign.

    ``state``: running, complete, not begun, or why the last run ended ("killed" if it could not
    record that).  ``complete_prefix``: missions of the plan's order before the first missing one; a
    partial report uses these.  ``rate``: missions a second of the current run; ``left``: seconds
    left; None if no run is active.
    """

    directory: str
    title: str
    question: str
    spec: str
    seed: int
    state: str
    done: int
    total: int
    complete_prefix: int
    excluded: int
    rate: float | None
    left: float | None
    cells: tuple[CellResult, ...]
    estimates: tuple[str, ...]
    runs: tuple[RunRecord, ...]


def status_of(store: Store) -> Status:
    """Return the status of a campaign."""
    meta, done = store.meta(), store.done
    interim = interim_results(store)
    last = meta.runs[-1] if meta.runs else None
    rate = None
    if not store.partial:
        state = "complete"
    elif store.is_being_written():
        state = "running"
        rate = _rate(store, last)
    elif last is None:
        state = "not begun"
    else:
        state = last.state if last.ended is not None else "killed"
    return Status(
        directory=str(store.directory),
        title=meta.title,
        question=meta.question,
        spec=meta.spec_hash,
        seed=meta.seed,
        state=state,
        done=done,
        total=store.total,
        complete_prefix=store.prefix(),
        excluded=sum(cell.excluded for cell in interim.cells),
        rate=rate,
        left=(store.total - done) / rate if rate else None,
        cells=interim.cells,
        estimates=interim.estimates,
        runs=meta.runs,
    )


def _rate(store: Store, run: RunRecord | None) -> float | None:
    """Return the missions a second of the run's latest missions."""
    if run is None:
        return None
    began = sorted(store.latest(run.began, LATEST))
    took = began[-1] - began[0] if began else 0.0
    return (len(began) - 1) / took if took > 0 else None


def show_status(status: Status, out: Console) -> None:
    """Print the status."""
    out.print(f"[bold]{escape(status.title)}[/] ({status.question}), seed {status.seed}")
    left = "" if status.left is None else f", about {duration(status.left)} left"
    rate = "" if status.rate is None else f", {status.rate * 3600:,.0f} an hour"
    out.print(f"{status.state}: {status.done:,} of {status.total:,} missions{rate}{left}")
    out.print(results_table(status.cells))
    for estimate in status.estimates:
        out.print(estimate, markup=False)
    if status.state not in ("complete", "running"):
        where = shlex.quote(status.directory)
        out.print(
            f"[yellow]partial[/]: the first {status.complete_prefix:,} missions of the plan's "
            f"order are complete; `trivisor campaign resume {escape(where)}` continues"
        )
