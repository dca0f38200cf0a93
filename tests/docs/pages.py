"""The code blocks of the documentation: commands, their output, and files that the reader saves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.project.tree import ROOT, tracked

__all__ = ["BACKUP", "NATIVE", "TUTORIAL", "Command", "SavedFile", "all_commands", "pages", "steps"]

TUTORIAL = ROOT / "docs/tutorial.md"
NATIVE = ROOT / "docs/reference/native.md"
BACKUP = ROOT / "docs/howto/backup.md"

BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"`([\w.-]+)`[^`]*:\s*\Z")
"""The end of a text before a block that the reader saves: "Save this as `shopping.py`:"."""
FAILS = re.compile(r"<!-- exits with (\d+) -->\s*\Z")
OUTPUT = re.compile(r"<!-- .*output.* -->\s*\Z")
"""The end of a text before a block without commands."""
COMMENT = re.compile(r"(?:^|\s)#.*$")


class Command(NamedTuple):
    """A command of a page, and the output lines shown after it ("..." stands for any lines)."""

    page: Path
    line: int
    text: str
    shown: tuple[str, ...] = ()
    status: int = 0


class SavedFile(NamedTuple):
    """A file that the reader saves."""

    name: str
    text: str


def pages() -> list[Path]:
    """Return every page with commands for users: all but the changelog."""
    return [path for path in tracked() if path.suffix == ".md" and path.name != "CHANGELOG.md"]


def steps(page: Path) -> Iterator[Command | SavedFile]:
    """Yield what a reader of the page does, in order.

    A block in ``console`` has commands after "$ ", and their output.  A block without a language
    has one command on each line.  A comment ``<!-- exits with 1 -->`` before a block gives the
    exit status of its last command.
    """
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        language, content = found.groups()
        before, line = text[: found.start()], text.count("\n", 0, found.start()) + 2
        if language in ("python", "toml", "ini") and (saved := SAVED.search(before)):
            yield SavedFile(saved[1], content)
        elif language == "console":
            status = FAILS.search(before)
            yield from _transcript(page, line, content, int(status[1]) if status else 0)
        elif not language and not OUTPUT.search(before):
            for number, each in enumerate(content.splitlines(), line):
                if command := COMMENT.sub("", each).strip():
                    yield Command(page, number, command)


def _transcript(page: Path, line: int, content: str, status: int) -> Iterator[Command]:
    parts = re.split(r"^\$ ", content, flags=re.MULTILINE)
    if parts[0].strip():
        raise ValueError(f"{page}:{line}: a console block begins with a command: $ COMMAND")
    line += parts[0].count("\n")
    for number, part in enumerate(parts[1:], 1):
        command, _, output = part.partition("\n")
        last = number == len(parts) - 1
        yield Command(page, line, COMMENT.sub("", command).strip(), tuple(output.splitlines()),
                      status if last else 0)  # fmt: skip
        line += part.count("\n")


def all_commands() -> list[Command]:
    """Return the commands of all pages."""
    found = (step for page in pages() for step in steps(page))
    return [step for step in found if isinstance(step, Command)]


if __name__ == "__main__":
    for each in all_commands():
        print(f"{each.page.relative_to(ROOT)}:{each.line}: {each.text}")
