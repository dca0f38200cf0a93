"""``trivisor monitor``: watch a node by rules, from outside its guests."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.commands.control_client import ask
from deploy.commands.options import directory_option, json_option, layout_of
from deploy.node.records import Layout
from voter.commands.parameters import Text, existing_file, output_file
from voter.commands.terminal import ExitCode, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from deploy.monitor.monitor import Monitor
    from deploy.monitor.recent_log import Trial
    from deploy.monitor.rules import Rules

__all__ = ["monitor"]


@click.command()
@click.argument("rules", type=existing_file())
@directory_option
@click.option("--dry-run", is_flag=True,
              help="Only report which writes of the journal each rule matches.")  # fmt: skip
@click.option("--listen", type=output_file(),
              help="Socket for inline rules  [default: the node's monitor.sock]")  # fmt: skip
@click.option("--keep", is_flag=True, help="Restart it when a signal has ended it.")
@click.option("--unblock", multiple=True, type=Text(), metavar="CALLER",
              help="First serve this client again; may be repeated.")  # fmt: skip
@json_option
def monitor(
    rules: Path,
    directory: Path | None,
    dry_run: bool,
    listen: Path | None,
    keep: bool,
    unblock: tuple[str, ...],
    as_json: bool,
) -> int:
    """Watch a node by the rules of a file: requests, consoles, resources, votes, memory.

    A rule's action is to alert, to block the client, to crash the node (stop it for safety), or to
    revert it to the checkpoint before the request.  It runs until Ctrl-C or until a rule stops the
    node.  With --json each match is a line of JSON.

    Exits with 1 if a rule has matched.
    """
    from deploy.monitor.rule_file import load_rules  # noqa: PLC0415 - heavy

    layout = layout_of(directory)
    quiet_logs()
    found = load_rules(rules)
    if dry_run:
        return _try(layout, found, as_json=as_json)
    if keep:
        from deploy.authorizer import keep as keep_running  # noqa: PLC0415

        return keep_running(lambda: _watch(layout, found, listen, unblock, as_json=as_json))
    return _watch(layout, found, listen, unblock, as_json=as_json)


# ---- watching


def _watch(
    layout: Layout, rules: Rules, listen: Path | None, unblock: tuple[str, ...], *, as_json: bool
) -> int:
    """Monitor until a signal or a halt; return the exit code."""
    from deploy.monitor.monitor import Monitor, check_node  # noqa: PLC0415

    ask(layout, "GET", "/status")  # with its errors for a node that does not run
    inline = (listen or layout.monitor_socket).absolute()
    check_node(rules, layout, layout.read_node(), inline)
    report = _print_json if as_json else _print_match
    watching = Monitor(layout, rules, report=report, inline=inline)
    asyncio.run(_run(watching, unblock, len(list(rules))))
    if watching.responder.halted.is_set():
        warn(
            f"the node was stopped: {layout.halted} says why; move it away to start the node again"
        )
    return ExitCode.FAILED if watching.responder.matches else ExitCode.OK


async def _run(watching: Monitor, unblock: tuple[str, ...], rules: int) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    for caller in unblock:
        known = await watching.blocked.unblock(caller)
        warn(f"{caller} is served again" if known else f"{caller} was not blocked by the monitor")
    tasks = [asyncio.create_task(watching.run()), asyncio.create_task(stop.wait())]
    tasks.append(asyncio.create_task(_announce(watching, rules)))
    try:
        await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _announce(watching: Monitor, rules: int) -> None:
    await watching.reading.wait()
    warn(f"watching by {rules} rule{'s' * (rules != 1)}; Ctrl-C ends it")


def _print_json(match: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(match, allow_nan=False) + "\n")
    sys.stdout.flush()


def _print_match(match: dict[str, Any]) -> None:
    at = time.strftime("%H:%M:%S", time.localtime(match["time"]))
    if "missed" in match:
        text = f"{match['missed']} requests from {match['first']} to {match['last']} were not seen"
    else:
        rest = [f"{key} {match[key]}" for key in ("caller", "seq") if match[key]]
        text = ", ".join([f"rule {match['rule']}: {match['detail']}", *rest])
        text += f": {match['outcome']}"
        if match["not_reported"]:
            text += f" ({match['not_reported']} more matches were not reported)"
    safe = text.encode("ascii", "backslashreplace").decode()
    sys.stdout.write(f"{at} {''.join(c if c.isprintable() else '?' for c in safe)}\n")
    sys.stdout.flush()


# ---- the past


def _try(layout: Layout, rules: Rules, *, as_json: bool) -> int:
    """Report what the rules on requests match in the journal; return the exit code."""
    from deploy.monitor.recent_log import try_rules  # noqa: PLC0415

    trials, writes, first = try_rules(layout.journal, rules.request)
    others = len(list(rules)) - len(trials)
    matched = any(trial.matches for trial in trials)
    if as_json:
        document = {"writes": writes, "first": first, "not_tried": others}
        print_json(document | {"rules": [_facts(trial) for trial in trials]})
        return ExitCode.FAILED if matched else ExitCode.OK
    warn(f"{writes} writes from sequence number {first} on; reads are not in the journal")
    if others:
        warn(f"{others} rules are not on requests: they cannot be tried on the journal")
    for trial in trials:
        line = f"{trial.rule.name} ({trial.rule.action}): {trial.matches} matches"
        if trial.matches:
            shown = ", ".join(map(str, trial.seqs[:10]))
            line += f", at {shown}{', ...' if trial.matches > 10 else ''}"
            callers = sorted(trial.callers.items(), key=lambda each: -each[1])[:5]
            line += "; by " + ", ".join(f"{name} ({count})" for name, count in callers)
        sys.stdout.write(line.encode("ascii", "backslashreplace").decode() + "\n")
    return ExitCode.FAILED if matched else ExitCode.OK


def _facts(trial: Trial) -> dict[str, Any]:
    return {
        "rule": trial.rule.name,
        "action": trial.rule.action,
        "matches": trial.matches,
        "undecided": trial.undecided,
        "seqs": trial.seqs,
        "callers": trial.callers,
    }
