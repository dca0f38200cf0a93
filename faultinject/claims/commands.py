"""``trivisor paper``: the paper's claims, compared with measurements."""

from __future__ import annotations

from pathlib import Path

import click

from faultinject.claims.evidence import read_results
from faultinject.claims.page import write_page
from faultinject.claims.section3 import SECTION3
from faultinject.claims.section4 import CLAIMS
from voter.commands.parameters import existing_directory, output_file
from voter.commands.terminal import CommandError, code_of, print_json

__all__ = ["paper"]


@click.command()
@click.option(
    "--results",
    type=existing_directory(),
    default=Path("docs/results"),
    show_default=True,
    help="Folder of results, one directory per campaign.",
)
@click.option(
    "--out",
    type=output_file(),
    default=None,
    help="Write a Markdown page to this file instead of printing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def paper(results: Path, out: Path | None, as_json: bool) -> None:
    """Compare the claims of the paper's sections 3 and 4 with what was measured.

    \b
    trivisor paper                        print each claim with its verdict
    trivisor paper --out docs/paper.md    write the page
    """
    try:
        found = read_results(results)
        answers = [(claim, claim.answer(found)) for claim in SECTION3 + CLAIMS]
        if out is not None:
            write_page(out, answers, found)
    except OSError as error:
        raise CommandError(str(error), error_code=code_of(error)) from error
    if as_json:
        print_json(
            [
                {"where": c.where, "claim": c.text, "evidence": a.evidence, "verdict": a.verdict,
                 "basis": list(a.basis), "limits": a.limits or None, "campaign": c.needs or None,
                 "command": c.command}
                for c, a in answers
            ]
        )  # fmt: skip
    elif out is None:
        for claim, answer in answers:
            basis = f" ({', '.join(answer.basis)})" if answer.basis else ""
            click.echo(f"{claim.where}: {claim.text}\n  {answer.verdict}{basis}: {answer.evidence}")
            if answer.limits:
                click.echo(f"  limits: {answer.limits}")
    else:
        click.echo(out)
