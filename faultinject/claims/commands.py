"""``trivisor paper``: the paper's claims beside what was measured."""

from __future__ import annotations

from pathlib import Path

import click

from faultinject.claims.claim import read_results
from faultinject.claims.page import write_page
from faultinject.claims.section4 import CLAIMS
from voter.commands.terminal import CommandError, ExitCode, print_json

__all__ = ["paper"]


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("docs/results"),
    show_default=True,
    help="Where campaigns are kept, each in a directory of its own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the table there, as Markdown, instead of telling it.",
)
@click.option("--json", "as_json", is_flag=True, help="Tell it as JSON.")
def paper(results: Path, out: Path | None, as_json: bool) -> None:
    """Hold the claims of the paper's section 4 against kept campaigns.

    \b
    trivisor paper                        what is known of each claim
    trivisor paper --out docs/paper.md    the page of it
    """
    try:
        found = read_results(results)
        answers = [(claim, claim.answer(found)) for claim in CLAIMS]
        if out is not None:
            write_page(out, answers, found)
    except OSError as error:
        raise CommandError(str(error), code=ExitCode.FAILED) from error
    if as_json:
        print_json(
            [
                {"where": c.where, "claim": c.text, "measured": a.measured, "says": a.says,
                 "campaign": c.needs or None, "command": c.command}
                for c, a in answers
            ]
        )  # fmt: skip
    elif out is None:
        for claim, answer in answers:
            click.echo(f"{claim.where}: {claim.text}\n  {answer.says}: {answer.measured}")
    else:
        click.echo(out)
