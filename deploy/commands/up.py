"""``trivisor up``: start a node and return when all its guests vote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from deploy.commands.options import (
    StepPrinter,
    boot_deadline_option,
    directory_option,
    json_option,
    layout_of,
)
from deploy.commands.status import guest_table
from deploy.node.records import DURABILITY_GUARANTEES, Durability, Layout, Settings
from voter.commands.parameters import (
    MEMORY,
    Integer,
    LibvirtUri,
    ListenAddress,
    VotePolicy,
    existing_directory,
    existing_file,
)
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs

if TYPE_CHECKING:
    from voter.core import Policy

__all__ = ["make_settings", "up"]


@click.command()
@directory_option
@click.option("--guests", type=Integer(1, 9), help="Number of guests  [default: 3]")
@click.option(
    "--vote", type=VotePolicy(), help="m/n: m of n guests must agree  [default: a majority]"
)
@click.option("--service", default="kv", show_default=True, help="kv, static, or a Python file.")
@click.option(
    "--content",
    type=existing_directory(),
    help="Directory for the service static.",
)
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="Accelerator of the guests; auto chooses KVM if it boots a guest.",
)
@click.option(
    "--connect",
    type=LibvirtUri(),
    default="qemu:///embed",
    show_default=True,
    help="URI of libvirt.",
)
@click.option(
    "--http",
    type=ListenAddress(),
    default="127.0.0.1:8080",
    show_default=True,
    help="Address to serve on.",
)
@click.option("--native", type=ListenAddress(),
              help="Address for native clients (in addition to the unix socket).")  # fmt: skip
@click.option(
    "--memory", type=MEMORY, default=128, show_default=True, help="Memory of each guest in MiB."
)
@boot_deadline_option
@click.option("--allow-faults", is_flag=True, help="Allow `trivisor inject`.")
@click.option("--repair", type=click.Choice(["auto", "off"]), default="auto", show_default=True,
              help="Restore failed guests automatically.")  # fmt: skip
@click.option(
    "--durability",
    type=click.Choice(list(DURABILITY_GUARANTEES)),
    default="fsync",
    show_default=True,
    help="What survives.  "
    + "  ".join(f"{kind}: {text}." for kind, text in DURABILITY_GUARANTEES.items()),
)
@click.option("--function", metavar="guest|unix:PATH",
              help="Require signed requests: each guest checks them, or F at PATH.")  # fmt: skip
@click.option("--key", type=existing_file(), help="With --function guest: its key file.")
@click.option("--accept-service", is_flag=True,
              help="Continue from a journal that a former version of it wrote.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Delete this directory's old journal first.")
@click.option("--yes", is_flag=True, help="With --fresh: do not ask for confirmation.")
@json_option
def up(  # noqa: PLR0913 - one for each option
    directory: Path | None,
    guests: int | None,
    vote: Policy | None,
    service: str,
    content: Path | None,
    accel: Literal["auto", "kvm", "tcg"],
    connect: str,
    http: str,
    native: str | None,
    memory: int,
    boot_deadline: float,
    allow_faults: bool,
    repair: Literal["auto", "off"],
    durability: Durability,
    function: str | None,
    key: Path | None,
    accept_service: bool,
    fresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Start a node and return when all its guests vote.

    Ctrl-C before that takes everything down again.  Processes that an earlier node of this
    directory left are taken over if it was started with the same options.  The node continues from
    its journal, which holds everything it has acknowledged.
    """
    from deploy.commands.launch import follow_start, prepare_node  # noqa: PLC0415 - heavy

    layout = layout_of(directory)
    layout.refuse_system("systemctl start trivisor")
    settings = make_settings(
        guests=guests,
        vote=vote,
        service=service,
        content=content,
        accel=accel,
        connect=connect,
        http=http,
        native=native,
        memory=memory,
        boot_deadline=boot_deadline,
        allow_faults=allow_faults,
        repair=repair,
        durability=durability,
        function=function,
        key=key,
    )
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
    memory: int,
    boot_deadline: float,
    allow_faults: bool,
    repair: Literal["auto", "off"],
    durability: Durability,
    function: str | None,
    key: Path | None,
) -> Settings:
    """Return the settings that these options of `up` mean.

    Raises CommandError, click.UsageError if they do not fit together.
    """
    from voter.core import Policy  # noqa: PLC0415 - heavy

    if content is not None and service != "static":
        raise click.UsageError(f"--content is for --service static, not for {service!r}")
    if guests is None:
        guests = vote.of if vote is not None else 3
    policy = vote or Policy(guests // 2 + 1, guests)
    if policy.of != guests:
        raise CommandError(
            f"--vote {policy} needs {policy.of} guests, but --guests is {guests}",
            remedy=f"use --vote {guests // 2 + 1}/{guests}, or omit one of the options",
            code=ExitCode.USAGE,
        )
    return Settings(
        guests=guests,
        vote=str(policy),
        service=_service(service),
        content=str(content.absolute()) if content is not None else None,
        accel=accel,
        connect=connect,
        http=http,
        native=native,
        memory_mib=memory,
        boot_deadline=boot_deadline,
        allow_faults=allow_faults,
        repair=repair,
        durability=durability,
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
                f"{what} would be deleted", remedy="add --yes to confirm", code=ExitCode.USAGE
            )
        click.confirm(f"{what} will be deleted. Continue?", abort=True, err=True)
    delete_journal(layout)
    progress(f"{what} was deleted")


def _service(given: str) -> str:
    """Return the service of `--service`: a shipped one's name, or a file's absolute path."""
    from guests.service import SHIPPED  # noqa: PLC0415

    if given in SHIPPED:
        return given
    path = Path(given).absolute()
    if path.suffix == ".py" and not path.is_file():
        raise CommandError(
            f"--service: there is no file {str(path)!r}",
            remedy="give the path of an existing Python file",
            code=ExitCode.USAGE,
        )
    if path.suffix != ".py":
        raise CommandError(
            f"unknown service {given!r}",
            remedy=f"use one of {', '.join(sorted(SHIPPED))}, or the path of a Python file (.py)",
            code=ExitCode.USAGE,
        )
    return str(path)


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
        )
    check_unix_path(str(Path(path).absolute()))
    return f"unix:{Path(path).absolute()}"
