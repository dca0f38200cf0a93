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
    client_options,
    connect_option,
    directory_option,
    find_service,
    json_option,
    layout_of,
    node_options,
    rejuvenation_options,
)
from deploy.commands.status import guest_table
from deploy.node.records import DEFAULT_DASHBOARD, Durability, Layout, Settings
from voter.commands.parameters import (
    DashboardAddress,
    ListenAddress,
    existing_directory,
    existing_file,
)
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from voter.core import Policy

__all__ = ["make_settings", "up"]

REJUVENATION_TIME = 1.0
"""Seconds that the replacement of one guest may take at least."""


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
@rejuvenation_options
@client_options
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
    _warn_of_open_ports(settings)
    quiet_logs()
    progress = StepPrinter(quiet=as_json)
    if fresh:
        _delete_journal(layout, progress, confirm=not yes)
    prepare_node(layout, settings, progress, accept_service=accept_service)
    status = follow_start(layout, progress)
    if as_json:
        print_json(status)
    else:
        progress(f"ready: {status['vote']} at {settings.scheme}://{status['http']}/")
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
    keep_history: int | None,
    follow: Literal["auto", "on", "off"],
    function: str | None,
    key: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    tokens: Path | None,
    rejuvenate_every: float | None,
    rejuvenate_by: Literal["clone", "boot", "in-place"],
    boot_share: int,
    client_rate: float | None,
    client_in_flight: int | None,
    client_connections: int | None,
) -> Settings:
    """Return the settings that these options of `up` mean.

    Raises CommandError, click.UsageError if they do not fit together.
    """
    if content is not None and service != "static":
        raise click.UsageError(f"--content is for --service static, not for {service!r}")
    policy = agree_on_guests(guests, vote)
    paths = {
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "tokens": tokens,
    }
    files = {name: str(path.absolute()) if path else None for name, path in paths.items()}
    _check_security(files)
    _check_rejuvenation(rejuvenate_every, policy)
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
        keep_history=keep_history,
        follow=follow,
        function=_function(function, key),
        key=str(key.absolute()) if key is not None else None,
        tls_certificate=files["tls_certificate"],
        tls_key=files["tls_key"],
        tls_client_ca=files["tls_client_ca"],
        tokens=files["tokens"],
        rejuvenate_every=rejuvenate_every,
        rejuvenate_by=rejuvenate_by,
        boot_share=boot_share,
        client_rate=client_rate,
        client_in_flight=client_in_flight,
        client_connections=client_connections,
    )


def _check_rejuvenation(every: float | None, policy: Policy) -> None:
    """Raise UsageError if guests would be replaced faster than that can be done."""
    if every is not None and every < policy.of * REJUVENATION_TIME:
        raise click.UsageError(
            f"--rejuvenate-every {every:g}: {policy.of} guests need at least "
            f"{policy.of * REJUVENATION_TIME:g} s"
        )


def _check_security(files: dict[str, str | None]) -> None:
    """Raise CommandError, ConfigError if clients on TCP could not use these files."""
    if not any(files.values()):
        return
    from voter.access import Access  # noqa: PLC0415 - slow
    from voter.config import Security  # noqa: PLC0415
    from voter.errors import CertificateError  # noqa: PLC0415

    if files["tls_certificate"] and not files["tls_key"]:
        raise click.UsageError("--tls-certificate needs --tls-key, the file with its private key")
    try:
        security = Security(
            certificate=files["tls_certificate"],
            key=files["tls_key"],
            client_ca=files["tls_client_ca"],
            tokens=files["tokens"],
        )
    except ValueError as error:
        raise click.UsageError(
            "--tls-key and --tls-client-ca need --tls-certificate, the server's own"
        ) from error
    access = Access(security, Path("/"))
    if access.problem:
        raise CertificateError(access.problem)


def _warn_of_open_ports(settings: Settings) -> None:
    """Warn if other hosts can connect, and nobody has to prove who he is."""
    if settings.tls_client_ca is not None or settings.tokens is not None:
        if settings.tls_certificate is None and not _is_local(settings.http, settings.native):
            warn(
                "warning TV0976: tokens are sent unencrypted to other hosts: use --tls-certificate "
                "and --tls-key"
            )
    elif not _is_local(settings.http, settings.native):
        warn(
            "warning TV0976: every host that reaches this one can read and write: use --tokens or "
            "--tls-client-ca, with --tls-certificate (docs/security.md)"
        )


def _is_local(*addresses: str | None) -> bool:
    """Return whether only this host can connect to the addresses."""
    from voter.address import split_host_port  # noqa: PLC0415

    hosts = [split_host_port(address)[0] for address in addresses if address is not None]
    return all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)


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
