"""``trivisor trace``: what happened to one request."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from deploy.commands.control_client import ask
from deploy.commands.options import directory_option, json_option, layout_of
from voter.commands.parameters import RequestId
from voter.commands.terminal import console, print_json

__all__ = ["trace"]

_VERDICTS = {
    "agrees": "agrees",
    "late": "agrees, after the decision",
    "dissents": "[red]dissents[/]",
    "no-answer": "[yellow]no answer[/]",
    "not-sent": "was not sent the request",
}


@click.command()
@click.argument("name", type=RequestId(), metavar="ID")
@directory_option
@json_option
def trace(name: str, directory: Path | None, as_json: bool) -> None:
    """Show what happened to one recent request, with times since it was received.

    ID is its sequence number (seq in the header Trivisor-Vote), its X-Request-Id or the trace id of
    its traceparent, or SESSION:NUMBER of a native client.  The voter keeps the records of its last
    16,384 frames in memory: of seconds under full load, of hours on a quiet node.

    Exits with 1 if no such request is known, and with 5 if no node runs or its voter is down.
    """
    found = ask(layout_of(directory), "GET", f"/trace/{quote(name, safe=':+=@~')}")
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    """Print a trace for a person."""
    out = console()
    seq, batch, ids = found["seq"], found["batch"], found["ids"]
    received = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(found["time"]))
    title = f"request {seq}" if seq else "a request that was not ordered"
    named = f", id {ids[0]}" if ids else ""
    out.print(f"{title}{named}: {found['outcome']}, received {received} UTC", markup=False)
    if batch is not None and batch["requests"] > 1:
        last = batch["first"] + batch["requests"] - 1
        out.print(f"ordered in one batch with requests {batch['first']} to {last}", markup=False)
    for step in found["timeline"]:
        words = " ".join(
            f"{key}={','.join(value) if isinstance(value, list) else value}"
            for key, value in step.items()
            if key not in ("at", "event", "replica") and value != []
        )
        line = (
            f"{step['at'] * 1e3:10.3f} ms  {step.get('replica', ''):4} {step['event']:10} {words}"
        )
        out.print(line.rstrip(), markup=False, highlight=False)
    for replica, verdict in found["replicas"].items():
        out.print(f"  {replica}: {_VERDICTS[verdict]}", highlight=False)
