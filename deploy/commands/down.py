"""``trivisor down``: stop a node."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.commands.control_client import NotUp, ask
from deploy.commands.options import StepPrinter, directory_option, json_option, layout_of
from deploy.host.identity import wait_end
from deploy.host.scratch import sweep_abandoned
from deploy.node.records import Layout, Lock
from voter.commands.terminal import CommandError, print_json, quiet_logs

__all__ = ["down"]

DOWN_DEADLINE = 60.0
"""Seconds that a supervisor may take to end everything it owns."""


@click.command()
@directory_option
@json_option
def down(directory: Path | None, as_json: bool) -> None:
    """Stop a node; nothing of it is left running.

    If its supervisor was killed, end the processes that are provably the node's.  Also end and
    remove what a killed demo, benchmark, soak or campaign of this user left.
    """
    layout = layout_of(directory)
    progress = StepPrinter(quiet=as_json)
    for path in sweep_abandoned(progress):
        progress(f"removed {path}, which a killed command left")
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
            f"the supervisor (process {pid}) has not ended after {DOWN_DEADLINE:g} s",
            remedy=f"see {layout.supervisor_log}; kill it and run `trivisor down` again",
        )


def _end_orphans(layout: Layout, progress: StepPrinter, *, as_json: bool) -> None:
    from deploy.node.configuration import make_machines  # noqa: PLC0415 - rarely needed
    from deploy.node.orphans import end_orphans  # noqa: PLC0415

    quiet_logs()
    ended = end_orphans(layout, make_machines, progress)
    if not ended:
        raise NotUp(f"no node runs in {layout.directory}", remedy="start one with `trivisor up`")
    if as_json:
        print_json({"ended": ended})
    else:
        progress(f"ended {', '.join(ended)}")
