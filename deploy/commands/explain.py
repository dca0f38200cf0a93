"""``trivisor explain CODE``: what an error or warning means, and what to do about it."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from difflib import get_close_matches

import click
from click.shell_completion import CompletionItem

from deploy.error_catalogue import Entry, load, normalize
from voter.commands.terminal import CommandError, ExitCode, print_json

__all__ = ["explain"]


def _complete(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Return the codes that begin with ``text``, with their titles."""
    return [
        CompletionItem(entry.code, help=entry.title)
        for entry in load().values()
        if entry.code.startswith(text.upper())
    ]


@click.command()
@click.argument("code", required=False, shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def explain(code: str | None, as_json: bool) -> None:
    """Explain the error or warning CODE (for example TV0101), or list all codes.

    It works without a network and without a node.
    """
    entries = load()
    if code is None:
        if as_json:
            print_json([dataclasses.asdict(entry) for entry in entries.values()])
        else:
            click.echo("\n".join(_lines(list(entries.values()))))
        return
    entry = entries.get(normalize(code))
    if entry is None:
        raise CommandError(
            f"there is no code {code!r}", remedy=_remedy(normalize(code)),
            error_code="TV0013", code=ExitCode.USAGE,
        )  # fmt: skip
    if as_json:
        print_json(dataclasses.asdict(entry))
    else:
        click.echo(_page(entry))


def _lines(entries: list[Entry]) -> list[str]:
    """Return the list of all codes, by area."""
    lines: list[str] = []
    for number, entry in enumerate(entries):
        if number == 0 or entries[number - 1].area != entry.area:
            lines += [""] * bool(lines) + [entry.area]
        kind = "retired" if entry.retired else entry.severity
        lines.append(f"  {entry.code}  {kind:7}  {entry.title}")
    return lines


def _page(entry: Entry) -> str:
    kind = f"{entry.severity}, since {entry.since}"
    if entry.retired:
        kind += f"; not used any more since {entry.retired}"
    lines = [f"{entry.code}: {entry.title}", f"({kind}; {entry.area})"]
    for title, text in entry.sections():
        lines += ["", title, _wrap(text)]
    return "\n".join(lines)


def _wrap(text: str) -> str:
    """Return a paragraph in lines of at most 80 characters that break no command in backquotes."""
    kept = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.fill(
        kept, 80, initial_indent="  ", subsequent_indent="  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return lines.replace("\0", " ")


def _remedy(code: str) -> str:
    close = get_close_matches(code, load(), n=3, cutoff=0.75)
    meant = f"did you mean {', '.join(close)}? " if close else ""
    return f"{meant}`trivisor explain` lists all codes"
