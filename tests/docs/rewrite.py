"""Run the commands of a page, and replace the outputs that it shows by those of this run.

    python -m tests.docs.rewrite docs/tutorial.md

A shown block keeps its "..." lines.  A command that shows nothing gets its whole output: shorten it
by hand, and run this again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.docs.shell import Shell, shown_as
from tests.docs.test_tutorial import to_do


def main(page: Path) -> int:
    """Rewrite one page; return 1 if a command failed or printed something else."""
    todo = to_do(page)
    with tempfile.TemporaryDirectory(prefix="tv-docs-") as place:
        shell = Shell(Path(place) / "reader")
        try:
            done = shell.run(todo, seconds=900)
        finally:
            shell.close()
    lines = page.read_text(encoding="utf-8").splitlines()
    wrong = 0
    for each in reversed(done):
        now = shown_as(each)
        if each.status != each.command.status or now is None:
            wrong += 1
            print(f"{page}:{each.command.line}: {each.command.text} exits with {each.status}:")
            print("\n".join(f"    {line}" for line in each.output))
        elif lines[each.command.line - 1].startswith("$ "):
            at = each.command.line
            shown = list(each.output) if not each.command.shown else now
            lines[at : at + len(each.command.shown)] = shown
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
