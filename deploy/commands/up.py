"""``trivisor up``: start a node and return when all its guests vote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy.commands.dashboard import new_link, show_link
from deploy.commands.options import (
    StepPrinter,
    agree_on_guests,
    connect_option,
    directory_option,
    find_service,
    json_option,
    layout_of,
    node_options,
)
from deploy.commands.status import guest_table
from deploy.node.records import DEFAULT_DASHBOARD, Durability, Layout, Settings
from voter.commands.parameters import (
    DashboardAddress,
    ListenAddress,
    existing_directory,
    existing_file,
)
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs

if TYPE_CHECKING:
    from voter.core import Policy

__all__ = ["make_settings", "up"]


@click.command()
@directory_option
@node_options
@click.option(
    "--content",
    type=existing_directory(),
    help="Directory for the service static.",
)
@connect_option
@click.option("--native", type=ListenAddress(),
              help="Address for native clients (in addition to the unix socket).")  # fmt: skip
@click.option("--dashboard", type=DashboardAddress(),
              show_default=f"{DEFAULT_DASHBOARD}; if that is taken, any free port",
              help="Address of the dashboard, a web page; off: none.")  # fmt: skip
@click.option("--function", metavar="guest|unix:PATH",
              help="Require signed requests: each guest checks them, or F at PATH.")  # fmt: skip
@click.option("--key", type=existing_file(), help="With --function guest: its key file.")
@click.option("--accept-service", is_flag=True,
              help="Continue from a journal that a former version of it wrote.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Delete this directory's old journal first.")
@click.option("--yes", is_flag=True, help="With --fresh: do not ask for confirmation.")
@json_option
def up(
    directory: Path | None,
    accept_service: bool,
    fresh: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a node and return when all its guests vote.

    Ctrl-C before that takes everything down again.  Processes that an earlier node of this
    directory left are taken over if it was started with the same options.  The node continues from
    its journal, which holds everything it has acknowledged.
    """
    from deploy.commands.launch import follow_start, prepare_node  # noqa: PLC0415 - heavy

    layout = layout_of(directory)
    layout.refuse_system("systemctl start trivisor")
    settings = make_settings(**options)
    quiet_logs()
    progress = StepPrinter(quiet=as_json)
    if fresh:
        _delete_journal(layout, progress, confirm=not yes)
    prepare_node(layout, settings, progress, accept_service=accept_service)
    status = follow_start(layout, progress)
    if as_json:
        print_json(status)
    else:
        progress(f"ready: {status['vote']} at http://{status['http']}/")
        progress(f"durability {status['durability']['kind']}: {status['durability']['promise']}")
        console().print(guest_table(status))
        if status["dashboard"] is not None:
            show_link(new_link(layout))


def make_settings(  # noqa: PLR0913 - one for each option
    *,
    guests: int | None,
    vote: Policy | None,
    service: str,
    content: Path | None,
    accel: Literal["auto", "kvm", "tcg"],
    connect: str,
    http: str,
    native: str | None,
    dashboard: str | None,
    memory: int,
    boot_deadline: float,
    allow_faults: bool,
    repair: Literal["auto", "off"],
    durability: Durability,
    follow: Literal["auto", "on", "off"],
    function: str | None,
    key: Path | None,
) -> Settings:
    """Return the settings that these options of `up` mean.

    Raises CommandError, click.UsageError if they do not fit together.
    """
    if content is not None and service != "static":
        raise click.UsageError(f"--content is for --service static, not for {service!r}")
    policy = agree_on_guests(guests, vote)
    return Settings(
        guests=policy.of,
        vote=str(policy),
        service=find_service(service),
        content=str(content.absolute()) if content is not None else None,
        accel=accel,
        connect=connect,
        http=http,
        native=native,
        dashboard=dashboard,
        memory_mib=memory,
        boot_deadline=boot_deadline,
        allow_faults=allow_faults,
        repair=repair,
        durability=durability,
        follow=follow,
        function=_function(function, key),
        key=str(key.absolute()) if key is not None else None,
    )


def _delete_journal(layout: Layout, progress: StepPrinter, *, confirm: bool) -> None:
    """Delete the journal after the user has confirmed it.  Raises CommandError, DeployError."""
    from deploy.commands.launch import delete_journal  # noqa: PLC0415

    if not layout.journal.exists():
        return
    what = f"the journal in {layout.journal}, with all acknowledged requests,"
    if confirm:
        if not sys.stdin.isatty():
            raise CommandError(
                f"{what} would be deleted",
                remedy="add --yes to confirm",
                code=ExitCode.USAGE,
                error_code="TV0720",
            )
        click.confirm(f"{what} will be deleted. Continue?", abort=True, err=True)
    delete_journal(layout)
    progress(f"{what} was deleted")


def _function(given: str | None, key: Path | None) -> str | None:
    """Return the function of `--function`, with the absolute path of its socket."""
    from guests.function import read_key  # noqa: PLC0415
    from voter.address import check_unix_path  # noqa: PLC0415

    place, _, path = (given or "").partition(":")
    if (given == "guest") != (key is not None):
        raise CommandError(
            "--function guest needs --key, and --key needs --function guest",
            remedy="use --function guest --key FILE; or --function unix:PATH, where `trivisor "
            "function --key FILE --listen PATH` runs",
            code=ExitCode.USAGE,
            error_code="TV0007",
        )
    if key is not None:
        read_key(key)  # report an error in it before anything starts
    if given is None or given == "guest":
        return given
    if place != "unix" or not path:
        raise CommandError(
            f"unknown place {given!r} of a function",
            remedy="use --function guest, or unix:PATH",
            code=ExitCode.USAGE,
            error_code="TV0006",
        )
    check_unix_path(str(Path(path).absolute()))
    return f"unix:{Path(path).absolute()}"
