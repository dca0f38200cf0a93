"""Strict TOML for files that users write: each problem is reported with its line and its remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

import msgspec

from guests.errors import CodedError

__all__ = ["SpecProblems", "SpecError", "read_strict", "suggest"]

T = TypeVar("T")


class SpecError(CodedError):
    """A campaign file, or another with ``error_code``, is invalid; one problem per line."""

    error_code = "TV0520"


def _lines(text: str) -> dict[tuple[str, int, str], int]:
    """Return the line of each table header (key "") and key: by (table, its index, key).

    tomllib keeps no positions, so this scans the text, except inside inline tables.
    """
    places: dict[tuple[str, int, str], int] = {}
    table, number = "", 0
    for line, content in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", content):
            table, number = header[2], 0
            parent = table.rpartition(".")[0]
            # A table inside an element of a list has that element's number.
            while (table, number, "") in places or (parent, number + 1, "") in places:
                number += 1
            places[table, number, ""] = line
        elif key := re.match(r"\s*\"?([A-Za-z0-9_-]+)\"?\s*[=.]", content):
            places.setdefault((table, number, key[1]), line)
    return places


class SpecProblems:
    """The problems of a file, with their lines; ``error_code`` is that of the error."""

    def __init__(self, name: str, text: str, error_code: str = "") -> None:
        self._name = name
        self._code = error_code
        self._places = _lines(text)
        self._found: list[str] = []

    def add(self, text: str, *, table: str = "", number: int = 0, key: str = "") -> None:
        """Record a problem at a key of a table, or at the table if it has no such key."""
        parent, _, last = table.rpartition(".")
        for place in (
            (table, number, key), (table, number, ""), (parent, number, last), ("", 0, table)
        ):  # fmt: skip
            if (line := self._places.get(place)) is not None:
                self._found.append(f"{self._name}, line {line}: {text}")
                return
        self._found.append(f"{self._name}: {text}")

    def raise_any(self) -> None:
        """Raise SpecError if there are problems."""
        if self._found:
            raise SpecError("\n".join(self._found), error_code=self._code)


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return "give one of ...", the most similar first."""
    known = sorted(choices)
    close = get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}? (there are {', '.join(known)})"
    return f"give one of {', '.join(known)}"


def _explain(problems: SpecProblems, error: msgspec.ValidationError | ValueError) -> None:
    """Record msgspec's message at the line of its path (``$.strata[1].missions``)."""
    text = str(error)
    path = re.search(r" - at `\$([^`]*)`", text)
    parts = re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path[1] if path else "")
    names = [name for name, _ in parts if name]
    number = next((int(digits) for _, digits in parts if digits), 0)
    text = text.partition(" - at `")[0].replace("Object contains unknown field", "unknown key")
    if unknown := re.search(r"unknown key `([^`]+)`", text):
        text += ": correct its name, or take it out"
        problems.add(text, table=".".join(names), number=number, key=unknown[1])
        return
    if names:
        text = f"{path[1].lstrip('.') if path else ''}: {text[:1].lower()}{text[1:]}"
    if len(names) == 1:
        problems.add(text, table=names[0], number=number, key="")
    else:
        problems.add(text, table=".".join(names[:-1]), number=number, key=(names or [""])[-1])


def read_strict(
    text: str, name: str, kind: type[T], *, error_code: str = ""
) -> tuple[T, SpecProblems]:
    """Read TOML into a strict msgspec type.

    Return it, and a collector of further problems.  Raises SpecError that names file, line and key,
    with ``error_code``, or that of campaign files.
    """
    problems = SpecProblems(name, text, error_code)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{name}: not TOML: {error}", error_code=error_code) from error
    try:
        return msgspec.convert(data, kind), problems
    except (msgspec.ValidationError, ValueError) as error:
        _explain(problems, error)
        problems.raise_any()
        raise
