"""``trivisor experiment``: run, resume and report the experiments on the paper's section 3."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultinject.section3 import EXPERIMENTS
from voter.commands.parameters import (
    SEED,
    Choice,
    Integer,
    Number,
    existing_directory,
    output_directory,
)
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.experiment.store import Row, RowStore

__all__ = ["experiment"]

LINE_EVERY = 15.0
"""Seconds between lines of progress."""

_directory = click.argument("directory", metavar="DIR", type=existing_directory())
_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")


def _how_to_run(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options of ``run`` and ``resume``."""
    options = (
        click.option(
            "--workers",
            type=Integer(1, 64),
            help="Rigs at the same time, each with its own guests.  Default: one for each two "
            "processors.",
        ),
        click.option(
            "--first", type=Integer(1, 1 << 30), metavar="N", help="Run at most N trials now."
        ),
        _json,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def experiment() -> None:
    """Test the methods of the paper's section 3 on real guests, each against a prediction.

    An experiment has arms.  Each arm counts one event in many seeded trials, and may predict how
    often it occurs.  `list` shows the experiments.  DIR is the directory of the results.
    """
    quiet_logs()


@experiment.command("list")
@_json
def list_(as_json: bool) -> None:
    """Show the experiments and their arms; run nothing."""
    from faultinject.experiment.design import load_experiment  # noqa: PLC0415

    found = [load_experiment(module) for module in EXPERIMENTS.values()]
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "title": each.title,
                    "about": each.about,
                    "paper": each.paper,
                    "arms": [
                        {
                            "name": arm.name,
                            "label": arm.label,
                            "trials": arm.trials,
                            "event": arm.event,
                            "predicted": arm.predicted,
                            "source": arm.source,
                        }
                        for arm in each.arms
                    ],
                }
                for each in found
            ]
        )
        return
    for each in found:
        click.echo(f"{each.name}: {each.title}\n  {each.about}")
        for arm in each.arms:
            predicted = f", predicted {arm.predicted:.3g}" if arm.predicted is not None else ""
            click.echo(f"  {arm.name}: {arm.trials:,} trials, {arm.event}{predicted}")


@experiment.command()
@click.argument("name", metavar="NAME")
@click.option("--out", type=output_directory(),
              help="Directory for the results.  Default: ./NAME-SEED.")  # fmt: skip
@click.option("--seed", type=SEED, default=1, show_default=True,
              help="Determines all random draws.")  # fmt: skip
@click.option("--share", type=Number(0.0001, 1.0), default=1.0, show_default=True,
              help="Plan only this part of each arm's trials.")  # fmt: skip
@click.option("--arm", "arms", multiple=True, metavar="ARM", help="Only this arm; may be repeated.")
@click.option("--module", hidden=True, help="The module that holds the experiment; for tests.")
@_how_to_run
def run(
    name: str,
    out: Path | None,
    seed: int,
    share: float,
    arms: tuple[str, ...],
    module: str | None,
    **how: Any,
) -> int:
    """Run experiment NAME on its own guests, and report it.

    Each row is on the disk before the next trial.  After Ctrl-C, a full disk or kill -9, `resume`
    continues with the same plan.
    """
    from faultinject.experiment.design import load_experiment  # noqa: PLC0415
    from faultinject.experiment.store import RowStore, new_head  # noqa: PLC0415
    from faultinject.host_facts import own_version  # noqa: PLC0415

    if module is None:
        module = EXPERIMENTS[Choice(EXPERIMENTS).convert(name, None, None)]
    for arm in arms:
        load_experiment(module).find(arm)
    head = new_head(module, name, seed=seed, share=share, arms=arms, version=own_version())
    with RowStore.create(out or Path(f"{name}-{seed}"), head) as store:
        return _run(store, **how)


@experiment.command()
@_directory
@_how_to_run
def resume(directory: Path, **how: Any) -> int:
    """Continue the experiment in DIR: run the trials of its plan that have no row yet."""
    from faultinject.experiment.store import RowStore  # noqa: PLC0415

    with RowStore.open(directory, write=True) as store:
        return _run(store, **how)


@experiment.command()
@_directory
@_json
def report(directory: Path, as_json: bool) -> None:
    """Report the experiment in DIR, complete or not; write experiment.json and its figure there."""
    from faultinject.experiment.store import RowStore  # noqa: PLC0415

    with RowStore.open(directory, write=False) as store:
        _report(store, as_json)


def _run(store: RowStore, *, workers: int | None, first: int | None, as_json: bool) -> int:
    from faultinject.experiment.run import run_trials  # noqa: PLC0415

    progress = _Progress(store)
    warn(f"seed {store.head.seed}: {len(store.pending):,} of {len(store.plan):,} trials to run")
    try:
        why = asyncio.run(
            run_trials(
                store,
                workers=workers or max(len(os.sched_getaffinity(0)) // 2, 1),
                first=first,
                progress=warn,
                done=progress.done,
            )
        )
    finally:
        if store.pending:
            where = shlex.quote(str(store.directory))
            warn(f"partial: `trivisor experiment resume {where}` continues with the same plan")
    if store.rows:
        _report(store, as_json)
    return ExitCode.INTERRUPTED if why == "interrupted" else ExitCode.OK


def _report(store: RowStore, as_json: bool) -> None:
    """Print the result and write its files."""
    import msgspec  # noqa: PLC0415

    from faultinject.experiment.assess import assess  # noqa: PLC0415
    from faultinject.experiment.report import result_table, summary_lines, write_report  # noqa: PLC0415
    from faultinject.plotting import require_drawing  # noqa: PLC0415

    require_drawing()
    result = assess(store)
    paths = write_report(result, store.directory)
    if as_json:
        print_json(msgspec.to_builtins(result))
        return
    console().print(result_table(result))
    for line in summary_lines(result):
        click.echo(line)
    click.echo(f"report: {paths[0]}, {paths[1].name}")


class _Progress:
    """Prints the trials done, the rate and the time left, every LINE_EVERY seconds."""

    def __init__(self, store: RowStore) -> None:
        self._store = store
        self._began = time.monotonic()
        self._next = self._began + LINE_EVERY
        self._ran = 0

    def done(self, _: Row) -> None:
        """Note a stored row."""
        self._ran += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LINE_EVERY
        rate = self._ran / (now - self._began)
        left = len(self._store.pending) / rate
        warn(
            f"{len(self._store.rows):,} of {len(self._store.plan):,} trials, "
            f"{rate * 60:.0f} a minute, {left / 60:.0f} min left"
        )
