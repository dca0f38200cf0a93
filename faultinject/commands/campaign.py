"""``trivisor campaign``: campaigns of missions with faults, planned, run, repeated, reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultinject.campaign.workers.tasks import STATION
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.campaign.run.conduct import RunOptions
    from faultinject.campaign.store.store import Store

__all__ = ["campaign"]

_directory = click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
_seed = click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=1,
    show_default=True,
    help="All that is drawn at random follows from it.",
)
_workers = click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Nodes at a time; else as the file says, or one a processor.",
)
_station = click.option(
    "--station",
    default=STATION,
    hidden=True,
    help="MODULE:CLASS that runs missions; for tests of the runner.",
)


def _how_to_run(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options of ``run`` and ``resume``."""
    options = (
        _workers,
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            default="",
            help="Of a Dask cluster: missions run on its workers, a node each.",
        ),
        click.option(
            "--first",
            type=click.IntRange(1),
            metavar="N",
            help="Only the first N missions of the plan's order.",
        ),
        click.option(
            "--report/--no-report",
            "wants_report",
            default=True,
            help="Write the report at the end.",
        ),
        _station,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def campaign() -> None:
    """Measure reliability: many missions with planned faults, every reply checked.

    FILE is a campaign file (TOML), or the name of a shipped one: inequality4, softerrors,
    commoncause, oneofn, poison, liars, mofn, moved-guest, moved-host, moved-lies, quick.  DIR is
    where its results are.
    """
    quiet_logs()


@campaign.command()
@click.argument("file")
@_seed
@_workers
@_json
def plan(file: str, seed: int, workers: int | None, as_json: bool) -> None:
    """Tell what FILE will do, how far its data will reach and how long it takes; run nothing."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.planning import plan, spec, summary  # noqa: PLC0415
    from faultinject.campaign.run import conduct  # noqa: PLC0415

    read, _ = spec.load(file)
    planned = plan.plan(read, seed)
    rates = conduct.known_rates()
    number = workers or conduct.default_workers(read)
    told = summary.summarize(planned, rates or conduct.usual_rates(), workers=number)
    learnt = rates is not None
    if as_json:
        print_json(
            msgspec.to_builtins(told)
            | {"spec": read.hash, "plan": planned.fingerprint, "rates_of_this_host": learnt}
        )
        return
    for line in told.lines():
        click.echo(line)
    if not learnt:
        click.echo("(by the rates of another host: none was learnt on this one yet)")


@campaign.command()
@click.argument("file")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Directory for the results; else one here, named by FILE and seed.")  # fmt: skip
@_seed
@_how_to_run
def run(file: str, out: Path | None, seed: int, wants_report: bool, **how: Any) -> int:
    """Run the campaign in FILE on nodes of its own, and report what it shows.

    Each row is stored as its mission ends: after Ctrl-C, a full disk or kill -9 `resume` goes on
    with the same plan.
    """
    from faultinject.campaign.planning.spec import load  # noqa: PLC0415
    from faultinject.campaign.run.conduct import RunOptions, versions  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    _, text = load(file)
    directory = out or Path(f"{Path(file).stem}-{seed}")
    wish = RunOptions(**how)
    with Store.create(directory, text, seed, name=file, versions=versions()) as store:
        return _run(store, wish, wants_report)


@campaign.command()
@_directory
@_how_to_run
@click.option(
    "--extend",
    is_flag=True,
    help="Add the extension that the file declares, once, after a complete first look.",
)
def resume(directory: Path, wants_report: bool, extend: bool, **how: Any) -> int:
    """Go on with the campaign in DIR: the missions of its plan that have no row yet."""
    from faultinject.campaign.run.conduct import RunOptions  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    wish = RunOptions(**how)
    with Store.open(directory) as store:
        if extend:
            store.extend()
        return _run(store, wish, wants_report)


@campaign.command()
@_directory
@_json
def status(directory: Path, as_json: bool) -> None:
    """Tell how far the campaign in DIR is, and what its rows show so far; also while it runs."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.run.status import show_status, status_of  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(directory, write=False) as store:
        told = status_of(store)
    if as_json:
        print_json(msgspec.to_builtins(told))
    else:
        show_status(told, console())


@campaign.command()
@_directory
def report(directory: Path) -> None:
    """Write the report of the campaign in DIR (report.html there) from what it has."""
    from faultinject.report import write_report  # noqa: PLC0415

    click.echo(write_report(directory))


@campaign.command()
@_directory
@click.argument("mission", type=click.IntRange(0))
@_json
@_station
def replay(directory: Path, mission: int, as_json: bool, station: str) -> int:
    """Run one MISSION of the campaign in DIR again and show all of it; nothing is stored."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.run.replay import play, show_play  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(directory, write=False) as store:
        if mission >= store.total:
            raise CommandError(
                f"{directory} has missions 0 to {store.total - 1}", code=ExitCode.USAGE
            )
        planned, stored, spec = store.plan.mission(mission), store.row(mission), store.spec
    played = play(planned, stored, spec.node, station, lambda text: warn(f"  {text}"))
    if as_json:
        print_json(msgspec.to_builtins(played))
    else:
        show_play(played, console())
    return ExitCode.OK


@campaign.command()
@_directory
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="The file; its ending says the format: .csv or .parquet.")  # fmt: skip
def export(directory: Path, out: Path) -> None:
    """Write the rows of the campaign in DIR as CSV or Parquet."""
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    if out.suffix not in (".csv", ".parquet"):
        raise CommandError(
            f"{out}: a file's ending says its format",
            remedy="let it end in .csv or .parquet",
            code=ExitCode.USAGE,
        )
    with Store.open(directory, write=False) as store:
        rows = store.export_csv(out) if out.suffix == ".csv" else store.export_parquet(out)
    click.echo(f"{rows} rows in {out}")


@campaign.command()
@click.argument("first", type=click.Path(file_okay=False, path_type=Path))
@click.argument("second", type=click.Path(file_okay=False, path_type=Path))
@_json
def agree(first: Path, second: Path, as_json: bool) -> None:
    """Tell how often missions that two runs of one plan have in common came out alike."""
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.run.replay import compare_stores, show_agreed  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(first, write=False) as one, Store.open(second, write=False) as two:
        agreed = compare_stores(one, two)
    if as_json:
        print_json(msgspec.to_builtins(agreed))
    else:
        show_agreed(agreed, console())


@campaign.command()
@_directory
@_json
def judge(directory: Path, as_json: bool) -> None:
    """Judge the missions in DIR again, by this version's rules.

    Of what stratum a mission is a trial follows from what was seen of its faults; a version may
    have a better rule. What was seen is not touched.
    """
    import msgspec  # noqa: PLC0415

    from faultinject.campaign.store.store import Store  # noqa: PLC0415

    with Store.open(directory) as store:
        changes, done = store.judge_again(), store.done
    if as_json:
        print_json(msgspec.to_builtins(changes))
        return
    for each in changes:
        click.echo(f"mission {each.mission}: {each.was} -> {each.now}")
    click.echo(f"judged otherwise: {len(changes):,} of {done:,} missions")


@campaign.command()
@click.argument("guest", type=click.Path(file_okay=False, path_type=Path))
@click.argument("host", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rf", "rfs", multiple=True, type=click.FloatRange(0, 1), show_default=True,
              default=(0.25, 0.5, 0.75, 0.9), help="R_f; may be repeated.")  # fmt: skip
@click.option("--rm", "rms", multiple=True, type=click.FloatRange(0, 1, min_open=True),
              default=(0.75,), show_default=True, help="R_M'; may be repeated.")  # fmt: skip
@click.option("--points", type=click.Path(dir_okay=False, path_type=Path),
              help="Write them for `trivisor model figure 6b --results FILE`.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
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
    """Hold GUEST, a campaign with a function in each guest, against HOST, with it on the host.

    Tells the R_F from which moving it is no loss, measured, beside Inequality (3).
    """
    import msgspec  # noqa: PLC0415

    from deploy.host.files import write_json  # noqa: PLC0415
    from faultinject.campaign.store.store import Store  # noqa: PLC0415
    from faultinject.report.moved import (  # noqa: PLC0415
        measured_points,
        put_together,
        show_moved,
        storable,
    )

    with Store.open(guest, write=False) as one, Store.open(host, write=False) as two:
        result = put_together(one, two, rfs, rms)
    if points is not None:
        write_json(points, measured_points(result))
    if out is not None:
        write_json(out, storable(result))
    if as_json:
        print_json(msgspec.json.decode(msgspec.json.encode(result)))  # what is not known is null
    else:
        show_moved(result, console())


def _run(store: Store, wish: RunOptions, wants_report: bool) -> int:
    """Run what is pending, show what there is; raise CommandError where the run failed."""
    from faultinject.campaign.run.conduct import conduct, show_ending  # noqa: PLC0415
    from faultinject.campaign.workers.runner import StopReason  # noqa: PLC0415

    ending = conduct(store, wish, console(stderr=True))
    show_ending(store, ending, console())
    if wants_report and ending.why not in (StopReason.FULL, StopReason.FAILED):
        _write_report(store.directory)
    if ending.why in (StopReason.FULL, StopReason.FAILED):
        raise CommandError(ending.words, remedy=ending.remedy)
    return ExitCode.INTERRUPTED if ending.why is StopReason.INTERRUPTED else ExitCode.OK


def _write_report(directory: Path) -> None:
    """Write the report, or say what it lacks: the rows are there, it can be written later."""
    try:
        from faultinject.report import write_report  # noqa: PLC0415

        click.echo(f"report: {write_report(directory)}")
    except (CommandError, ImportError) as error:
        warn(f"no report: {error}; `trivisor campaign report {directory}` writes it")
