"""``trivisor campaign``: plan, run, repeat and report missions with faults."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.errors import CannotRunHere
from faultinject.campaign.workers.messages import WORKER_MODULE
from voter.commands.parameters import (
    SEED,
    Integer,
    Number,
    SchedulerAddress,
    existing_directory,
    node_directory,
    output_directory,
    output_file,
)
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.campaign.run.run_campaign import RunOptions
    from faultinject.campaign.store.store import Store

__all__ = ["campaign"]

_directory = click.argument("directory", metavar="DIR", type=existing_directory())
_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
_seed = click.option(
    "--seed",
    type=SEED,
    default=1,
    show_default=True,
    help="Determines all random draws.",
)
_workers = click.option(
    "--workers",
    type=Integer(1, 256),
    help="Nodes at the same time.  Default: as the file says, or one a processor.",
)
_worker_module = click.option(
    "--worker-module",
    default=WORKER_MODULE,
    hidden=True,
    help="The module that a worker runs; for tests.",
)


def _how_to_run(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options of ``run`` and ``resume``."""
    options = (
        _workers,
        click.option(
            "--scheduler",
            type=SchedulerAddress(),
            default="",
            help="Run the missions on the workers of this Dask cluster, one node each.",
        ),
        click.option(
            "--first",
            type=Integer(1, 1 << 40),
            metavar="N",
            help="Only the first N missions of the plan's order.",
        ),
        click.option(
            "--report/--no-report",
            "wants_report",
            default=True,
            help="Write the report at the end.",
        ),
        click.option(
            "--dashboard",
            type=node_directory(),
            metavar="DIR",
            help="Show the results so far on the dashboard of the node in DIR.  Default: of the "
            "default node, if it runs.",
        ),
        _worker_module,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def campaign() -> None:
    """Measure reliability: run many missions with planned faults, and check every reply.

    FILE is a campaign file (TOML), or the name of a shipped one: inequality4, softerrors,
    commoncause, oneofn, poison, liars, mofn, moved-guest, moved-host, moved-lies, quick.  DIR is
    the directory of its results.
    """
    quiet_logs()


@campaign.command()
@click.argument("file")
@_seed
@_workers
@_json
def plan(file: str, seed: int, workers: int | None, as_json: bool) -> None:
    """Show the missions of FILE, the expected precision and the duration; run nothing."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.planning import kept_durations, plan, spec_file, summary  # noqa: PLC0415
    from faultinject.campaign.run.run_campaign import default_workers  # noqa: PLC0415

    spec, _ = spec_file.load(file)
    planned = plan.plan(spec, seed)
    own_durations = kept_durations.known_durations()
    shown = summary.summarize(
        planned,
        own_durations or kept_durations.usual_durations(),
        workers=workers or default_workers(spec),
    )
    if as_json:
        print_json(
            msgspec.to_builtins(shown)
            | {
                "spec": spec.hash,
                "plan": planned.fingerprint,
                "durations_of_this_host": own_durations is not None,
            }
        )
        return
    for line in shown.lines():
        click.echo(line)
    if own_durations is None:
        click.echo("(durations are those of another host: this one has run no campaign yet)")


@campaign.command()
@click.argument("file")
@click.option("--out", type=output_directory(),
              help="Directory for the results.  Default: ./FILE-SEED.")  # fmt: skip
@_seed
@_how_to_run
def run(file: str, out: Path | None, seed: int, wants_report: bool, **how: Any) -> int:
    """Run the campaign in FILE on its own nodes, and write its report.

    Each row is stored when its mission ends.  After Ctrl-C, a full disk or kill -9, `resume`
    continues with the same plan.
    """
    from faultinject.campaign.planning.spec_file import load  # noqa: PLC0415
    from faultinject.campaign.run.run_campaign import RunOptions, versions  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    _, text = load(file)
    directory = out or Path(f"{Path(file).stem}-{seed}")
    options = RunOptions(**how)
    with Store.create(directory, text, seed, name=file, versions=versions()) as store:
        return _run(store, options, wants_report)


@campaign.command()
@_directory
@_how_to_run
@click.option(
    "--extend",
    is_flag=True,
    help="Once the planned missions are complete, add the extension that the file declares.",
)
def resume(directory: Path, wants_report: bool, extend: bool, **how: Any) -> int:
    """Continue the campaign in DIR: run the missions of its plan that have no row yet."""
    from faultinject.campaign.run.run_campaign import RunOptions  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    options = RunOptions(**how)
    with Store.open(directory) as store:
        if extend:
            store.extend()
        return _run(store, options, wants_report)


@campaign.command()
@_directory
@_json
def status(directory: Path, as_json: bool) -> None:
    """Show the progress and interim results of the campaign in DIR; also while it runs."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.run.status import show_status, status_of  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(directory, write=False) as store:
        shown = status_of(store)
    if as_json:
        print_json(msgspec.to_builtins(shown))
    else:
        show_status(shown, console())


@campaign.command()
@_directory
@click.option("--out", type=output_directory(),
              help="Directory to write to.  Default: DIR itself.")  # fmt: skip
def report(directory: Path, out: Path | None) -> None:
    """Write the report of the campaign in DIR (report.html) from its rows so far."""
    from faultinject.report import write_report  # noqa: PLC0415

    if out is None and not os.access(directory, os.W_OK):
        raise click.UsageError(f"{directory} cannot be written: give --out another directory")
    click.echo(write_report(directory, out))


@campaign.command()
@_directory
@click.argument("mission", type=Integer(0, 1 << 40))
@_json
@_worker_module
def replay(directory: Path, mission: int, as_json: bool, worker_module: str) -> None:
    """Run one MISSION of the campaign in DIR again, and show all of it.  Nothing is stored."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.run.replay import replay_mission, show_replay  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(directory, write=False) as store:
        if mission >= store.total:
            raise CommandError(
                f"{directory} has missions 0 to {store.total - 1}",
                code=ExitCode.USAGE,
                error_code="TV0529",
            )
        done = replay_mission(store, mission, worker_module, lambda text: warn(f"  {text}"))
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        show_replay(done, console())


@campaign.command()
@_directory
@click.option("--out", required=True, type=output_file(".csv", ".parquet"),
              help="The file to write: .csv or .parquet.")  # fmt: skip
def export(directory: Path, out: Path) -> None:
    """Write the rows of the campaign in DIR as CSV or Parquet."""
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(directory, write=False) as store:
        rows = store.export_csv(out) if out.suffix == ".csv" else store.export_parquet(out)
    click.echo(f"{rows} rows in {out}")


@campaign.command()
@click.argument("first", type=existing_directory())
@click.argument("second", type=existing_directory())
@_json
def agree(first: Path, second: Path, as_json: bool) -> None:
    """Compare two runs of one plan: how often did the same mission end alike?"""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.run.agreement import compare_stores, show_agreement  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(first, write=False) as one, Store.open(second, write=False) as two:
        agreement = compare_stores(one, two)
    if as_json:
        print_json(msgspec.to_builtins(agreement))
    else:
        show_agreement(agreement, console())


@campaign.command()
@click.argument("guest", type=existing_directory())
@click.argument("host", type=existing_directory())
@click.option("--rf", "rfs", multiple=True, type=Number(0, 1), show_default=True,
              default=(0.25, 0.5, 0.75, 0.9), help="R_f; may be repeated.")  # fmt: skip
@click.option("--rm", "rms", multiple=True, type=Number(0, 1, above=True),
              default=(0.75,), show_default=True, help="R_M'; may be repeated.")  # fmt: skip
@click.option("--points", type=output_file(),
              help="Write them for `trivisor model figure 6b --results FILE`.")  # fmt: skip
@click.option("--out", type=output_file(),
              help="Also store the result as JSON here.")  # fmt: skip
@_json
def moved(
    guest: Path,
    host: Path,
    rfs: tuple[float, ...],
    rms: tuple[float, ...],
    points: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare GUEST, a campaign with a function in each guest, with HOST, where the host has it.

    Shows the measured R_F from which moving the function is no loss, and that of Inequality (3).
    """
    import msgspec  # noqa: PLC0415

    from deploy.host.files import write_json  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415
    from faultinject.report.relocation import (  # noqa: PLC0415
        compare_places,
        measured_points,
        print_relocation,
    )
    from faultinject.results.relocation import storable  # noqa: PLC0415

    with Store.open(guest, write=False) as one, Store.open(host, write=False) as two:
        result = compare_places(one, two, rfs, rms)
    if points is not None:
        write_json(points, measured_points(result))
    if out is not None:
        write_json(out, storable(result))
    if as_json:
        print_json(msgspec.json.decode(msgspec.json.encode(result)))  # what is not known is null
    else:
        print_relocation(result, console())


def _run(store: Store, options: RunOptions, wants_report: bool) -> int:
    """Run the pending missions and show the results.  Raises CommandError if the run failed."""
    from faultinject.campaign.run.dispatch import StopReason  # noqa: PLC0415
    from faultinject.campaign.run.run_campaign import run_campaign, show_ending  # noqa: PLC0415

    try:
        ending = run_campaign(store, options, console(stderr=True))
    except BaseException:  # an error, or Ctrl-C before the first mission
        warn(f"partial: `trivisor campaign resume {store.directory}` continues with the same plan")
        raise
    show_ending(store, ending, console())
    if ending.why in (StopReason.FULL, StopReason.FAILED):
        raise CommandError(ending.problem, remedy=ending.remedy, error_code=ending.error_code)
    if wants_report:
        _write_report(store.directory)
    return ExitCode.INTERRUPTED if ending.why is StopReason.INTERRUPTED else ExitCode.OK


def _write_report(directory: Path) -> None:
    """Write the report, or print why that failed: it can be written later from the rows."""
    try:
        from faultinject.report import write_report  # noqa: PLC0415

        click.echo(f"report: {write_report(directory)}")
    except (CannotRunHere, CommandError, ImportError) as error:
        where = shlex.quote(str(directory))
        warn(
            f"warning TV0538: no report: {error}; "
            f"`trivisor campaign report {where}` writes it later"
        )
