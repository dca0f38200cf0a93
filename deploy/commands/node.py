"""``trivisor up``, ``status``, ``logs``, ``down``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy.commands.control_client import NotUp, ask, stream
from deploy.node.durability import PROMISES, Durability
from deploy.node.records import Layout, Lock, Settings
from deploy.node.succession import wait_end
from voter.commands.terminal import (
    CommandError,
    ExitCode,
    console,
    default_directory,
    print_json,
    quiet_logs,
    warn,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["directory_option", "down", "json_option", "layout_of", "logs", "status", "up"]

RETURN_PATIENCE = 5.0
"""Seconds for a supervisor that was killed to be there again."""
DOWN_DEADLINE = 60.0
"""Seconds that a supervisor may take to end all that is its own."""

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The node's directory (else $TRIVISOR_DIR, else below $XDG_STATE_HOME).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")


def layout_of(directory: Path | None) -> Layout:
    """Return the directory that a command means."""
    return Layout(Path(os.path.abspath(directory or default_directory())))


# --------------------------------------------------------------------- up


@click.command()
@directory_option
@click.option("--guests", type=click.IntRange(1, 9), help="How many guests  [default: 3]")
@click.option("--vote", help="m/n: how many of the guests must agree  [default: a majority]")
@click.option("--service", default="kv", show_default=True, help="kv, static, or a Python file.")
@click.option("--content", type=click.Path(path_type=Path), help="Directory that static serves.")
@click.option(
    "--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True
)
@click.option("--connect", default="qemu:///embed", show_default=True, help="Libvirt's URI.")
@click.option("--http", default="127.0.0.1:8080", show_default=True, help="HOST:PORT to serve on.")
@click.option("--native", help="HOST:PORT for native clients (besides the unix socket).")
@click.option("--memory", default=128, show_default=True, help="MiB for each guest.")
@click.option(
    "--boot-deadline", default=60.0, show_default=True, help="Seconds a guest may take to boot."
)
@click.option("--allow-faults", is_flag=True, help="Let `trivisor inject` break guests.")
@click.option("--repair", type=click.Choice(["auto", "off"]), default="auto", show_default=True)
@click.option(
    "--durability",
    type=click.Choice(list(PROMISES)),
    default="fsync",
    show_default=True,
    help="What survives.  " + "  ".join(f"{kind}: {text}." for kind, text in PROMISES.items()),
)
@click.option("--function", metavar="guest|unix:PATH",
              help="Requests must be signed; each guest checks it, or F at PATH.")  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path), help="With --function guest: the key.")
@click.option("--fresh", is_flag=True, help="Throw this directory's old journal away first.")
@click.option("--yes", is_flag=True, help="With --fresh: do not ask.")
@json_option
def up(  # noqa: PLR0913 - one for each option
    directory: Path | None,
    guests: int | None,
    vote: str | None,
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
    fresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Start a node, and return when all its guests vote.

    Ctrl-C before that takes everything down again.  What an earlier node of this directory left
    running is taken over if it was started with the same options; what it has acknowledged is in
    its journal, and this one goes on from there.
    """
    from deploy.commands.launch import follow_start, prepare_node  # noqa: PLC0415 - heavy, and only for up
    from voter.core import Policy  # noqa: PLC0415

    if guests is None:
        guests = Policy.parse(vote).of if vote is not None else 3
    policy = Policy.parse(vote if vote is not None else f"{guests // 2 + 1}/{guests}")
    if policy.of != guests:
        raise CommandError(
            f"--vote {policy} is about {policy.of} guests, --guests says {guests}",
            remedy=f"give --vote {guests // 2 + 1}/{guests}, or leave one of the two out",
            code=ExitCode.USAGE,
        )
    settings = Settings(
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
    signal.signal(signal.SIGTERM, _interrupt)
    quiet_logs()
    layout = layout_of(directory)
    progress = _Progress(quiet=as_json)
    if fresh:
        _throw_away(layout, progress, asked=not yes)
    prepare_node(layout, settings, progress)
    said = follow_start(layout, progress)
    if as_json:
        print_json(said)
    else:
        progress(f"ready: {said['vote']} at http://{said['http']}/")
        progress(f"durability {said['durability']['kind']}: {said['durability']['promise']}")
        console().print(_guest_table(said))


def _throw_away(layout: Layout, progress: _Progress, *, asked: bool) -> None:
    """Throw the journal away, once the user has said so.  Raises CommandError, DeployError."""
    from deploy.commands.launch import throw_journal_away  # noqa: PLC0415

    if not layout.journal.exists():
        return
    what = f"the journal in {layout.journal}, and with it all that was acknowledged,"
    if asked:
        if not sys.stdin.isatty():
            raise CommandError(
                f"{what} would be thrown away",
                remedy="add --yes if that is meant",
                code=ExitCode.USAGE,
            )
        click.confirm(f"{what} will be thrown away. Go on?", abort=True, err=True)
    throw_journal_away(layout)
    progress(f"{what} was thrown away")


def _service(given: str) -> str:
    """Return what `--service` means: a shipped service's name, or a file's absolute path."""
    from guests.service import SHIPPED  # noqa: PLC0415

    if given in SHIPPED:
        return given
    path = Path(given).absolute()
    if path.suffix != ".py" or not path.is_file():
        raise CommandError(
            f"no service {given!r}",
            remedy=f"give one of {', '.join(sorted(SHIPPED))}, or the path of a Python file (.py)",
            code=ExitCode.USAGE,
        )
    return str(path)


def _function(given: str | None, key: Path | None) -> str | None:
    """Return what `--function` means, its socket's path made absolute."""
    from guests.function import read_key  # noqa: PLC0415 - for few nodes
    from voter.address import check_unix_path  # noqa: PLC0415

    place, _, path = (given or "").partition(":")
    if (given == "guest") != (key is not None):
        raise CommandError(
            "the function in each guest needs a key, and nothing else does",
            remedy="give --function guest --key FILE; or --function unix:PATH, where `trivisor "
            "function --key FILE --listen PATH` runs",
            code=ExitCode.USAGE,
        )
    if key is not None:
        read_key(key)  # what is wrong with it is said before anything is done
    if given is None or given == "guest":
        return given
    if place != "unix" or not path:
        raise CommandError(
            f"no place {given!r} for a function",
            remedy="give --function guest, or unix:PATH",
            code=ExitCode.USAGE,
        )
    check_unix_path(str(Path(path).absolute()))
    return f"unix:{Path(path).absolute()}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Progress:
    """Prints steps on standard error, each with the seconds since the start."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began = time.monotonic()

    def __call__(self, step: str) -> None:
        if not self._quiet:
            warn(f"{time.monotonic() - self._began:6.1f} s  {step}")


# ----------------------------------------------------------------- status


@click.command()
@directory_option
@json_option
def status(directory: Path | None, as_json: bool) -> int:
    """Show how a node stands.  Exits with 5 if none runs."""
    layout = layout_of(directory)
    try:
        said = ask(layout, "GET", "/status", patience=RETURN_PATIENCE)
    except NotUp:
        orphans = _orphans(layout) if layout.known else {}
        if not orphans:
            raise
        # Its supervisor was killed: what it left runs on, and that is worth telling.
        said = {"dir": str(layout.directory), "supervisor": None, "left": orphans}
        said["said"] = _last_words(layout)
        if as_json:
            print_json(said)
        else:
            for name, pid in orphans.items():
                warn(f"{name}: process {pid} runs without a supervisor")
            if said["said"]:
                warn(str(said["said"]))
            warn("remedy: the same `trivisor up` again takes it over, `trivisor down` ends it")
        return ExitCode.NOT_UP
    if as_json:
        print_json(said)
    else:
        _show(said)
    return ExitCode.OK


def _last_words(layout: Layout) -> str | None:
    """What the nanny said last of the supervisor that is gone."""
    from deploy.host.logfile import read_tail  # noqa: PLC0415 - only where no supervisor is left

    for line in reversed(read_tail(layout.supervisor_log, 50)):
        if '"nanny: ' in line:
            return str(json.loads(line)["event"])
    return None


def _orphans(layout: Layout) -> dict[str, int]:
    from deploy.node.orphans import find_orphans  # noqa: PLC0415 - only where no supervisor is left

    return find_orphans(layout)


def _show(said: dict[str, Any]) -> None:
    from rich.markup import escape  # noqa: PLC0415

    out = console()
    colour = {"ready": "green", "degraded": "yellow"}.get(said["standing"], "red")
    out.print(
        f"[{colour}]{said['standing']}[/]: vote {said['vote']}, service {said['service']}, "
        f"http://{said['http']}/"
    )
    voter, counters = said["voter"], said["voter"]["counters"]
    out.print(
        f"voter: process {voter['pid']}, {voter['restarts']} restarts, "
        f"{counters.get('requests', 0)} requests, {counters.get('masked', 0)} faults masked"
        + (f" - {voter['problem']}" if voter["problem"] else "")
    )
    durability = said["durability"]
    out.print(f"durability: {durability['kind']} ({durability['promise']})")
    if durability["journal"]:
        facts = ", ".join(f"{key} {value}" for key, value in durability["journal"].items())
        out.print(f"journal: {escape(facts)}")
    supervisor = said["supervisor"]
    anew = f", started again {supervisor['restarts']} times" if supervisor["restarts"] else ""
    alone = "" if supervisor["nanny"] else ", with no nanny: nobody starts it again"
    out.print(
        f"supervisor: process {supervisor['pid']}{anew}{alone}, repair {said['repair']}, "
        f"accelerator {said['accel']}, image {said['image'][:16]}, {said['dir']}"
    )
    out.print(_guest_table(said))


def _guest_table(said: dict[str, Any]) -> Table:
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("guest", "state", "process", "machine", "dissents", "repairs", "remarks")
    for guest in said["guests"]:
        replica, repairs, fault = guest["replica"], guest["repairs"], guest["fault"]
        remarks = []
        if fault is not None:
            until = fault["until"]
            ends = f" for {until - time.time():.0f} s more" if until is not None else ""
            remarks.append(f"{fault['kind']} injected{ends}")
        if guest["state"] != "active" and replica.get("reason"):
            remarks.append(str(replica["reason"]))
        if repairs["under_way"]:
            remarks.append("is being put back")
        if repairs["given_up"]:
            remarks.append(
                f"given up after {repairs['in_row']} repairs in a row: `trivisor heal` tries again"
            )
        elif repairs["in_row"]:
            remarks.append(f"{repairs['in_row']} of {repairs['limit']} repairs in a row")
        if repairs["last_error"]:
            remarks.append(repairs["last_error"])
        colour = "green" if guest["state"] == "active" else "red"
        table.add_row(
            guest["name"],
            f"[{colour}]{guest['state']}[/]",
            str(guest["pid"] or "-"),
            guest["vm"],
            str(replica.get("dissents") or 0),
            str(repairs["count"]),
            escape("; ".join(remarks)),
        )
    return table


# ------------------------------------------------------------- logs, down


@click.command()
@click.argument("name", required=False)
@directory_option
@click.option("--lines", "-n", default=50, show_default=True, help="How many of the last lines.")
@click.option("--follow", "-f", is_flag=True, help="Without NAME: go on as events come.")
@json_option
def logs(name: str | None, directory: Path | None, lines: int, follow: bool, as_json: bool) -> None:
    """Show what NAME said last: a guest's console, or voter, supervisor, proxy.

    Without NAME, show what has happened to the node: replicas that came and went, repairs, faults.
    """
    layout = layout_of(directory)
    if name is None:
        query = "?follow=1" if follow else ""
        events = stream(layout, f"/events{query}")
        for event in events if follow else list(events)[-lines:]:
            sys.stdout.write(f"{_event_line(event)}\n")
            sys.stdout.flush()
        return
    said = ask(layout, "GET", f"/logs/{name}?lines={lines}")
    if as_json:
        print_json(said)
    else:
        for line in said["lines"]:
            click.echo(line)


def _event_line(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    rest = [
        f"{key}={value}"
        for key, value in event.items()
        if key not in ("id", "time", "what", "guest") and value is not None
    ]
    return (
        f"{at}.{int(event['time'] % 1 * 1000):03d} {event['guest'] or '-':4} {event['what']}: "
        + (", ".join(rest))
    )


@click.command()
@directory_option
@json_option
def down(directory: Path | None, as_json: bool) -> None:
    """Stop a node; nothing of it is left running.

    Where its supervisor was killed, ends what that left, as far as it is provably the node's.
    """
    layout = layout_of(directory)
    progress = _Progress(quiet=as_json)
    try:
        pid = ask(layout, "GET", "/status", patience=0.0)["supervisor"]["pid"]
        ask(layout, "POST", "/down")
    except NotUp:
        if not layout.known:
            raise
        _end_orphans(layout, progress, as_json=as_json)
        return
    _wait_gone(layout, pid)
    if as_json:
        print_json({"ended": ["supervisor"]})
    else:
        progress("the node is down")


def _wait_gone(layout: Layout, pid: int) -> None:
    """Wait until the supervisor has ended.  Raises CommandError if it takes too long."""
    if not wait_end(pid, DOWN_DEADLINE) or Lock(layout).holder() is not None:
        raise CommandError(
            f"the supervisor (process {pid}) is still at it after {DOWN_DEADLINE:g} s",
            remedy=f"see {layout.supervisor_log}; kill it and run `trivisor down` again",
        )


def _end_orphans(layout: Layout, progress: _Progress, *, as_json: bool) -> None:
    quiet_logs()
    from deploy.node.orphans import end_orphans  # noqa: PLC0415
    from deploy.supervisor.machines import make_node  # noqa: PLC0415

    ended = end_orphans(layout, make_node, progress)
    if not ended:
        raise NotUp(f"no node runs in {layout.directory}", remedy="start one with `trivisor up`")
    if as_json:
        print_json({"ended": ended})
    else:
        progress(f"ended {', '.join(ended)}")
