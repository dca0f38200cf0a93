"""``trivisor inject``, ``trivisor heal``, and the hidden command that runs a supervisor."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.commands.control_client import ask
from deploy.commands.options import directory_option, json_option, layout_of
from faultinject.faults.catalogue import offered_on_nodes
from voter.commands.parameters import DAY, Choice, GuestName, Integer, Number
from voter.commands.terminal import ExitCode, print_json, warn

__all__ = ["heal", "inject", "supervise"]

INJECT_TIMEOUT = 60.0
HEAL_TIMEOUT = 120.0
"""Seconds for the supervisor's answer before the command fails."""
KINDS = offered_on_nodes()


def _kinds() -> str:
    return "\n".join(f"  {fault.kind:14} {fault.does}" for fault in KINDS.values())


@click.command(
    help=f"""Inject a fault of kind KIND into GUEST; it stays active until `heal`.

The node must have been started with --allow-faults.  Kinds:

\b
{_kinds()}
"""
)
@click.argument("kind", type=Choice(list(KINDS)), metavar="KIND")
@click.argument("guest", type=GuestName(), metavar="GUEST")
@directory_option
@click.option(
    "--for",
    "seconds",
    type=Number(0, 30 * DAY, "seconds", above=True),
    help="Heal the guest after this many seconds.",
)
@json_option
def inject(
    kind: str, guest: str, directory: Path | None, seconds: float | None, as_json: bool
) -> None:
    """Inject a fault into a guest."""
    layout = layout_of(directory)
    answer = ask(
        layout,
        "POST",
        "/inject",
        {"kind": kind, "guest": guest, "seconds": seconds},
        timeout=INJECT_TIMEOUT,
    )
    if as_json:
        print_json(answer)
        return
    fault = KINDS[kind]
    warn(f"{guest}: {kind} injected; {answer['proof']}")
    undo = f"undo: {layout.command(f'heal {guest}')}"
    warn(f"active for {seconds:g} s" if seconds is not None else undo)
    if fault.latent:
        warn(f"it has no visible effect yet; what masks it: {fault.masked_by}")


@click.command()
@click.argument("guest", type=GuestName(), metavar="GUEST")
@directory_option
@json_option
def heal(guest: str, directory: Path | None, as_json: bool) -> None:
    """Undo the fault in GUEST and restore the guest; return when it votes again."""
    answer = ask(layout_of(directory), "POST", "/heal", {"guest": guest}, timeout=HEAL_TIMEOUT)
    if as_json:
        print_json(answer)
    else:
        what = f"{answer['fault']} undone; " if answer["fault"] else ""
        warn(f"{guest}: {what}votes again after {answer['seconds']:.2f} s")


@click.command(hidden=True)
@directory_option
@click.option(
    "--report-fd",
    type=Integer(0, 1 << 20),
    help="Descriptor for reports on the progress of the start.",
)
def supervise(directory: Path | None, report_fd: int | None) -> ExitCode:
    """Run a node's supervisor in the foreground (what `up` starts in the background)."""
    from deploy.node.configuration import make_machines  # noqa: PLC0415
    from deploy.supervisor.process import StartReport, run_supervisor  # noqa: PLC0415
    from faultinject.faults.node_injector import FaultInjector  # noqa: PLC0415

    return run_supervisor(
        layout_of(directory),
        make_node=make_machines,
        make_faults=FaultInjector,
        report=StartReport(report_fd),
    )
