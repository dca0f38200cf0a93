"""``trivisor demo``: the command and its table; ``story`` is what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from voter.commands.terminal import ExitCode, console, print_json, quiet_logs

if TYPE_CHECKING:
    from faultinject.demo.story import DemoSummary

__all__ = ["demo"]


@click.command()
@click.option("--requests", type=click.IntRange(30, 100_000), default=300, show_default=True,
              help="Voted requests before the first fault; the rest follows from it.")  # fmt: skip
@click.option("--seed", default=7, show_default=True, help="Seed of the requests.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto",
              show_default=True)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Only the result, as JSON.")
def demo(requests: int, seed: int, accel: str, as_json: bool) -> int:
    """Show the main job on three real guests, and check every claim.

    Boots three guests behind a voter, kills one under load, puts it back, lets another one lie,
    shows that the voter refuses without a majority, heals, stops all.  Exits with 0 only if
    everything it claims held.
    """
    import msgspec  # noqa: PLC0415 - heavy, and only for the demo itself

    from deploy.node.records import Settings  # noqa: PLC0415
    from faultinject.demo.story import Demo, Narrator  # noqa: PLC0415

    quiet_logs()
    settings = msgspec.convert(
        {"accel": accel, "http": "127.0.0.1:0", "allow_faults": True}, Settings
    )
    narrator = Narrator(quiet=as_json)
    summary = Demo(seed=seed, requests=requests, narrator=narrator).run(settings)
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
    out.print(
        "[dim]masked: released, correctly, while a guest was dead or lying; "
        "refused: by the voter, before anything was executed[/]"
    )
    if summary.unanswered:
        out.print(f"[red]{summary.unanswered} requests got neither a reply nor a refusal[/]")
    held = sum(claim.held for claim in summary.claims)
    colour = "green" if summary.held else "red"
    out.print(
        f"[{colour}]{held} of {len(summary.claims)} claims held[/], seed {summary.seed}, "
        f"{summary.seconds:.0f} s"
    )
    for claim in summary.claims:
        if not claim.held:
            out.print(f"[red]did not hold:[/] {claim.claim}: {claim.seen}")
