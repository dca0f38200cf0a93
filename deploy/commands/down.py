"""``trivisor down``: stop a node."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.commands.control_client import NotUp, Unanswered, ask
from deploy.commands.options import StepPrinter, directory_option, json_option, layout_of
from deploy.host.files import sweep_links
from deploy.host.identity import wait_end
from deploy.host.scratch import sweep_abandoned
from deploy.node.records import Layout, Lock
from voter.commands.terminal import print_json, quiet_logs

__all__ = ["down"]

ANSWER_DEADLINE = 10.0
"""Seconds for the supervisor to accept the order; after that its node is ended without it."""
DOWN_DEADLINE = 60.0
"""Seconds that a supervisor may take to end everything it owns; after that it is killed."""


@click.command()
@directory_option
@json_option
def down(directory: Path | None, as_json: bool) -> None:
    """Stop a node; nothing of it is left running.

    Its processes are found by the directory itself, also if its supervisor was killed or does not
    answer, or if the directory was moved or deleted.  Also end and remove what a killed demo,
    benchmark, soak or campaign of this user left.
    """
    from deploy.node.configuration import make_machines  # noqa: PLC0415 - slow
    from deploy.node.orphans import end_orphans  # noqa: PLC0415

    quiet_logs()
    layout = layout_of(directory)
    layout.refuse_system("systemctl stop trivisor")
    progress = StepPrinter(quiet=as_json)
    swept = sweep_abandoned(progress)
    asked = _ask(layout, progress)
    ended = end_orphans(layout, make_machines, progress)  # what a supervisor may have left
    sweep_links()  # now, as its libvirt would make directories in place of a missing link
    if not asked and not ended and not swept:
        problem = layout.problem()
        if problem is not None:
            raise problem
        raise NotUp(
            f"no node runs in {layout.directory}",
            remedy=layout.start_hint,
        )
    if asked and "supervisor" not in ended:
        ended = ["supervisor", *ended]
    if as_json:
        print_json({"ended": ended})
    elif not ended:
        progress(f"removed {', '.join(map(str, swept))}, which killed commands left")
    elif ended == ["supervisor"]:
        progress("the node is down")
    else:
        progress(f"the node is down: ended {', '.join(ended)}")


def _ask(layout: Layout, progress: StepPrinter) -> bool:
    """Have the supervisor take the node down; return whether one answered."""
    pid = Lock(layout).holder()
    try:
        ask(layout, "POST", "/down", timeout=ANSWER_DEADLINE, patience=0.0)
    except NotUp:
        return False
    except Unanswered as error:
        progress(str(error))
        return False
    if pid is not None and not wait_end(pid, DOWN_DEADLINE):
        progress(f"the supervisor (process {pid}) has not ended after {DOWN_DEADLINE:g} s")
    return True
