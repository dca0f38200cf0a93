"""``trivisor status`` and ``logs``: the state of a node, and what has happened to it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.commands.control_client import NotUp, ask, stream
from deploy.commands.options import directory_option, json_option, layout_of
from deploy.node.records import Layout
from voter.commands.parameters import Integer
from voter.commands.terminal import ExitCode, console, print_json, warn

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["guest_table", "logs", "status"]

RETURN_TIMEOUT = 5.0
"""Seconds to wait for the watchdog to restart a killed supervisor."""


@click.command()
@directory_option
@json_option
def status(directory: Path | None, as_json: bool) -> int:
    """Show the state of a node.  Exits with 5 if none runs."""
    layout = layout_of(directory)
    try:
        state = ask(layout, "GET", "/status", patience=RETURN_TIMEOUT)
    except NotUp:
        if not layout.known or not _report_orphans(layout, as_json=as_json):
            raise
        return ExitCode.NOT_UP
    if as_json:
        print_json(state)
    else:
        _show(state)
    return ExitCode.OK


def _report_orphans(layout: Layout, *, as_json: bool) -> bool:
    """Print the processes that a killed supervisor left; return whether there are any."""
    from deploy.node.processes import find_orphans  # noqa: PLC0415 - rarely needed

    orphans = find_orphans(layout)
    if not orphans:
        return False
    message = _watchdog_message(layout)
    if as_json:
        directory = str(layout.directory)
        print_json({"dir": directory, "supervisor": None, "orphans": orphans, "message": message})
        return True
    for name, pid in orphans.items():
        warn(f"{name}: process {pid} runs without a supervisor")
    if message:
        warn(message)
    warn("remedy: `trivisor up` with the same options takes it over, `trivisor down` ends it")
    return True


def _watchdog_message(layout: Layout) -> str | None:
    """Return the watchdog's last message about the supervisor that has ended."""
    from deploy.host.files import read_tail  # noqa: PLC0415 - rarely needed
    from deploy.watchdog.process import LOG_PREFIX  # noqa: PLC0415

    for line in reversed(read_tail(layout.supervisor_log, 50)):
        if f'"{LOG_PREFIX}' in line:
            with contextlib.suppress(ValueError):  # a full disk has cut it
                return str(json.loads(line)["event"])
    return None


def _show(state: dict[str, Any]) -> None:
    from rich.markup import escape  # noqa: PLC0415

    out = console()
    colour = {"ready": "green", "degraded": "yellow"}.get(state["status"], "red")
    out.print(
        f"[{colour}]{state['status']}[/]: vote {state['vote']}, "
        f"service {escape(str(state['service']))}, "
        f"http://{state['http']}/"
    )
    voter, counters = state["voter"], state["voter"]["counters"]
    out.print(
        f"voter: process {voter['pid']}, {voter['restarts']} restarts, "
        f"{counters.get('requests', 0)} requests, {counters.get('masked', 0)} faults masked"
        + (f" - {escape(voter['problem'])}" if voter["problem"] else "")
    )
    durability = state["durability"]
    out.print(f"durability: {durability['kind']} ({durability['promise']})")
    if durability["journal"]:
        facts = ", ".join(f"{key} {value}" for key, value in durability["journal"].items())
        out.print(f"journal: {escape(facts)}")
    supervisor = state["supervisor"]
    restarts = f", restarted {supervisor['restarts']} times" if supervisor["restarts"] else ""
    alone = "" if supervisor["watchdog"] else ", without a watchdog: it will not be restarted"
    out.print(
        f"supervisor: process {supervisor['pid']}{restarts}{alone}, repair {state['repair']}, "
        f"accelerator {state['accel']}, image {state['image'][:16]}, " + escape(state["dir"])
    )
    out.print(guest_table(state))


def guest_table(state: dict[str, Any]) -> Table:
    """Return a table of the guests in a node's status."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("guest", "state", "process", "machine", "dissents", "repairs", "remarks")
    for guest in state["guests"]:
        replica, repairs, fault = guest["replica"], guest["repairs"], guest["fault"]
        remarks = []
        if fault is not None:
            until = fault["until"]
            ends = f" for another {until - time.time():.0f} s" if until is not None else ""
            remarks.append(f"fault {fault['kind']} is active{ends}")
        if guest["state"] != "active" and replica.get("reason"):
            remarks.append(str(replica["reason"]))
        if repairs["in_progress"]:
            remarks.append("being restored")
        if repairs["abandoned"]:
            remarks.append(
                f"repair abandoned after {repairs['consecutive']} attempts: "
                "`trivisor heal` starts it again"
            )
        elif repairs["consecutive"]:
            remarks.append(f"{repairs['consecutive']} of {repairs['limit']} consecutive repairs")
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


@click.command()
@click.argument("name", required=False)
@directory_option
@click.option("--lines", "-n", type=Integer(1, 1_000_000), default=50, show_default=True,
              help="Number of lines.")  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="Without NAME: print events as they happen.")
@json_option
def logs(name: str | None, directory: Path | None, lines: int, follow: bool, as_json: bool) -> None:
    """Show the last lines of NAME: a guest's console, or the log of voter, supervisor or proxy.

    Without NAME, show the node's events: changes of replicas, repairs, faults, restarts.
    """
    layout = layout_of(directory)
    if name is None:
        query = "?follow=1" if follow else ""
        events = stream(layout, f"/events{query}")
        for event in events if follow else list(events)[-lines:]:
            sys.stdout.write(f"{_event_line(event)}\n")
            sys.stdout.flush()
        return
    log = ask(layout, "GET", f"/logs/{name}?lines={lines}")
    if as_json:
        print_json(log)
    else:
        for line in log["lines"]:
            click.echo(line)


def _event_line(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    rest = [
        f"{key}={value}"
        for key, value in event.items()
        if key not in ("id", "time", "event", "guest") and value is not None
    ]
    return (
        f"{at}.{int(event['time'] % 1 * 1000):03d} {event['guest'] or '-':4} {event['event']}: "
        + ", ".join(rest)
    )
