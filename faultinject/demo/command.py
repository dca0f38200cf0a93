"""``trivisor demo``: options and summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.commands.options import boot_deadline_option
from voter.commands.parameters import SEED, Integer
from voter.commands.terminal import ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from faultinject.demo.story import DemoSummary

__all__ = ["demo"]


@click.command()
@click.option("--requests", type=Integer(30, 100_000), default=300, show_default=True,
              help="Requests before the first fault; later steps make a part of it.")  # fmt: skip
@click.option("--seed", type=SEED, default=7, show_default=True, help="Seed of the requests.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True, help="How guests run: with KVM, or emulated (TCG).")  # fmt: skip
@boot_deadline_option
@click.option("--json", "as_json", is_flag=True, help="Print only the result, as JSON.")
def demo(requests: int, seed: int, accel: str, boot_deadline: float, as_json: bool) -> ExitCode:
    """Show fault masking on three real guests, and check every claim.

    \b
    1. Boot three guests behind a voter and make requests.
    2. Kill one guest under load and repair it.
    3. Let another guest return wrong replies.
    4. Kill a second guest: the voter refuses requests.
    5. Repair all guests, stop everything.

    The exit code is 0 only if every claim holds.
    """
    import msgspec  # noqa: PLC0415 - slow to import

    from deploy.host.scratch import ScratchDirectory, sweep_abandoned  # noqa: PLC0415
    from deploy.node.records import Settings  # noqa: PLC0415
    from faultinject.demo.story import Demo, Narrator  # noqa: PLC0415

    quiet_logs()
    settings = msgspec.convert(
        {
            "accel": accel,
            "boot_deadline": boot_deadline,
            "http": "127.0.0.1:0",
            "allow_faults": True,
        },
        Settings,
    )
    sweep_abandoned(warn)
    with ScratchDirectory("demo") as scratch:
        story = Demo(scratch.path, seed=seed, requests=requests, narrator=Narrator(quiet=as_json))
        summary = story.run(settings)
    if as_json:
        print_json(msgspec.to_builtins(summary) | {"held": summary.held})
    else:
        _show(summary)
    return ExitCode.OK if summary.held else ExitCode.FAILED


def _show(summary: DemoSummary) -> None:
    from rich.table import Table  # noqa: PLC0415

    out = console()
    out.print()
    table = Table("requests", "correct", "masked", "refused", "wrong", "p50", "p99")
    table.add_row(
        str(summary.requests),
        str(summary.correct),
        str(summary.masked),
        str(summary.refused),
        f"[bold {'green' if summary.wrong == 0 else 'red'}]{summary.wrong}[/]",
        f"{summary.p50 * 1e3:.1f} ms",
        f"{summary.p99 * 1e3:.1f} ms",
    )
    out.print(table)
    out.print("[dim]masked   answered correctly while a guest was dead or lying[/]")
    out.print("[dim]refused  rejected by the voter before any guest executed it[/]")
    if summary.unanswered:
        out.print(f"[red]{summary.unanswered} requests got neither a reply nor a refusal[/]")
    held = sum(claim.held for claim in summary.claims)
    colour = "green" if summary.held else "red"
    out.print(
        f"[{colour}]{held} of {len(summary.claims)} claims hold[/] "
        f"({summary.seconds:.0f} s, seed {summary.seed})"
    )
    for claim in summary.claims:
        if not claim.held:
            out.print(f"[red]does not hold:[/] {claim.claim}: {claim.seen}")
