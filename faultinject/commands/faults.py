"""``trivisor inject``, ``heal``, and the supervisor's own (hidden) command, which wires faults
in.
"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.commands.control_client import ask
from deploy.commands.options import directory_option, json_option, layout_of
from faultinject.faults.catalogue import offered_on_nodes
from voter.commands.terminal import ExitCode, print_json, warn

__all__ = ["heal", "inject", "supervise"]

INJECT_TIMEOUT = 60.0
HEAL_TIMEOUT = 120.0
KINDS = offered_on_nodes()


def _kinds() -> str:
    return "\n".join(f"  {fault.kind:14} {fault.does}" for fault in KINDS.values())


@click.command(
    help=f"""Break GUEST on purpose, in the way KIND names; it holds until `heal`.

The node must have been started with --allow-faults.  Kinds:

\b
{_kinds()}
"""
)
@click.argument("kind", type=click.Choice(list(KINDS)), metavar="KIND")
@click.argument("guest")
@directory_option
@click.option("--for", "seconds", type=click.FloatRange(min=0.0), help="Heal after SECONDS.")
@json_option
def inject(
    kind: str, guest: str, directory: Path | None, seconds: float | None, as_json: bool
) -> None:
    """Break a guest on purpose."""
    said = ask(
        layout_of(directory),
        "POST",
        "/inject",
        {"kind": kind, "guest": guest, "seconds": seconds},
        timeout=INJECT_TIMEOUT,
    )
    if as_json:
        print_json(said)
        return
    fault = KINDS[kind]
    warn(f"{guest}: {kind} injected; {said['proof']}")
    warn(f"it holds for {seconds:g} s" if seconds is not None else f"undo: trivisor heal {guest}")
    if fault.latent:
        warn(f"nothing is seen of it yet; what meets it: {fault.masked_by}")


@click.command()
@click.argument("guest")
@directory_option
@json_option
def heal(guest: str, directory: Path | None, as_json: bool) -> None:
    """Undo what was injected into GUEST and put it back; return when it votes again."""
    said = ask(layout_of(directory), "POST", "/heal", {"guest": guest}, timeout=HEAL_TIMEOUT)
    if as_json:
        print_json(said)
    else:
        what = f"{said['fault']} undone; " if said["fault"] else ""
        warn(f"{guest}: {what}votes again after {said['seconds']:.2f} s")


@click.command(hidden=True)
@directory_option
@click.option("--report-fd", type=int, help="Descriptor that is told how the start goes on.")
def supervise(directory: Path | None, report_fd: int | None) -> ExitCode:
    """Run a node's supervisor in the foreground (what `up` starts in the background)."""
    from deploy.node.configuration import make_machines  # noqa: PLC0415
    from deploy.supervisor.process import StartReport, run_supervisor  # noqa: PLC0415
    from faultinject.faults.injector import FaultInjector  # noqa: PLC0415

    return run_supervisor(
        layout_of(directory),
        make_node=make_machines,
        make_faults=FaultInjector,
        report=StartReport(report_fd),
    )
