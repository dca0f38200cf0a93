"""``trivisor logs``: what has happened to a node, and what its processes and guests print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from deploy.commands.control_client import NotUp, ask, stream
from deploy.commands.options import directory_option, json_option, layout_of
from deploy.host.files import read_tail
from deploy.node.records import Layout, Lock
from voter.commands.parameters import Integer
from voter.commands.terminal import CommandError, ExitCode, operator_hint, print_json, warn

__all__ = ["logs"]

POLL_INTERVAL = 0.2
"""Seconds between polls of a log file that is followed."""

_UNITS = {"voter": "trivisor-voter.service", "supervisor": "trivisor.service"}
"""Units whose log the journal of systemd keeps."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@click.command()
@click.argument("name", required=False)
@directory_option
@click.option("--lines", "-n", type=Integer(0, 1_000_000), default=50, show_default=True,
              help="Number of lines, or of events.")  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="Continue with new lines until the node ends.")
@json_option
def logs(name: str | None, directory: Path | None, lines: int, follow: bool, as_json: bool) -> None:
    """Show the last lines of NAME: a guest's console, or the log of voter, supervisor or proxy.

    Without NAME, show the node's events: changes of replicas, repairs, faults, restarts.  After the
    node's end, or a start that failed, the last ones are still shown.  With --json and --follow,
    each line is one JSON document.
    """
    layout = layout_of(directory)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    kind = "events" if name is None else "lines"
    if layout.system and name in _UNITS:
        shown: Iterable[Any] = _from_systemd(_UNITS[name], lines, follow=follow)
    elif name in layout.logs:
        shown = _log_file(layout, layout.logs[name], lines, follow=follow)
    else:
        try:
            shown = _from_supervisor(layout, name, lines, follow=follow)
        except NotUp:
            if layout.closed:
                raise
            shown = _from_last_run(layout, name, lines)
    if as_json and not follow:
        print_json({kind: list(shown)})
        return
    for each in shown:
        if as_json:
            text = json.dumps(each if name is None else {"line": each}, allow_nan=False)
        else:
            text = _printable(_event_line(each) if name is None else each)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


# ---- sources


def _from_supervisor(
    layout: Layout, name: str | None, lines: int, *, follow: bool
) -> Iterable[Any]:
    """Return events or a guest's lines.  Raises NotUp, CommandError if there is no such guest."""
    path = "/events" if name is None else f"/logs/{quote(name, safe='')}"
    kind = "events" if name is None else "lines"
    known: list[Any] = ask(layout, "GET", f"{path}?lines={max(lines, 1)}")[kind]
    shown = known[-lines:] if lines else []
    return _and_next(layout, path, known, shown) if follow else shown


def _and_next(layout: Layout, path: str, known: list[Any], shown: list[Any]) -> Iterator[Any]:
    """Yield what is shown of what is known, then what comes, until the supervisor ends."""
    yield from shown
    since = known[-1]["id"] if known and isinstance(known[-1], dict) else 0
    for each in stream(layout, f"{path}?follow=1&since={since}"):
        yield each if "event" in each else each["line"]
    warn("the supervisor has ended")


def _from_systemd(unit: str, lines: int, *, follow: bool) -> Iterator[str]:
    """Yield what the journal of systemd holds of a unit.  Raises CommandError."""
    words = ["journalctl", f"--unit={unit}", f"--lines={lines}", "--output=cat", "--quiet"]
    with subprocess.Popen(
        [*words, *["--follow"] * follow], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as journal:
        assert journal.stdout is not None
        for line in journal.stdout:
            yield line.rstrip("\n")
    if journal.returncode != 0:
        raise CommandError(
            f"journalctl failed with status {journal.returncode}",
            remedy="run this as root, or as a member of the group systemd-journal",
            error_code="TV0724",
        )


def _from_last_run(layout: Layout, name: str | None, lines: int) -> list[Any]:
    """Return events or a guest's lines that a supervisor left at its end.  Raises NotUp."""
    try:
        last = json.loads(layout.last_run.read_bytes())
    except FileNotFoundError:
        raise NotUp(
            f"no node runs in {layout.directory}, and none left events",
            remedy=f"`{layout.command('logs supervisor')}` shows the log of a start that failed"
            f"{operator_hint()}",
        ) from None
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["time"]))
    warn(f"no node runs in {layout.directory}: this is from its end at {at}")
    if name is None:
        return list(last["events"])[-lines:] if lines else []
    if name not in last["consoles"]:
        names = ", ".join([*last["consoles"], *layout.logs])
        raise CommandError(
            f"no log {name!r}",
            remedy=f"give one of {names}",
            code=ExitCode.USAGE,
            error_code="TV0006",
        )
    return list(last["consoles"][name])[-lines:] if lines else []


def _log_file(layout: Layout, path: Path, lines: int, *, follow: bool) -> Iterator[str]:
    """Yield the last lines of a log, then new ones while the node runs.  Raises NotUp."""
    if not path.exists():
        if layout.known:
            return  # for example the proxy of a node that allows no faults
        raise NotUp(f"no node was started in {layout.directory}", remedy="choose another --dir")
    at = path.stat().st_size
    yield from read_tail(path, lines)
    partial = ""
    while follow:
        running = Lock(layout).holder() is not None  # asked before the last read
        if path.stat().st_size < at:
            at = 0  # it was trimmed
        with path.open("rb") as file:
            file.seek(at)
            data = file.read()
        at += len(data)
        *whole, partial = (partial + data.decode(errors="replace")).split("\n")
        yield from whole
        if not running:
            return
        time.sleep(POLL_INTERVAL)


# ---- text


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


def _printable(text: str) -> str:
    """Return a line that cannot control the terminal: what a guest prints may contain anything."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
