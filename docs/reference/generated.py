"""The directives ``generated`` and ``layout``: tables of the protocols and options, from the code.

``generated NAME`` is the table that the function of that name below returns.  ``layout STRUCT`` is
the layout of a struct; its content names the fields, with their meaning.
"""

from __future__ import annotations

import importlib
import inspect
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deploy.commands.prepare import node_options
from guests.protocol import wire
from guests.protocol.wire import FrameKind
from voter.frontend import problem, reserved

__all__ = ["Generated", "Layout", "TABLES", "layout", "setup"]

KINDS = {"B": "unsigned", "H": "unsigned", "I": "unsigned", "Q": "unsigned", "s": "bytes"}


def rows_of(text: str, *columns: str) -> list[tuple[str, ...]]:
    """Return the rows of the table in a docstring whose columns match these expressions."""
    found = (re.fullmatch(r" *" + r" +".join(f"({each})" for each in columns), line.rstrip())
             for line in text.splitlines())  # fmt: skip
    return [row.groups() for row in found if row is not None]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [tuple(header), ("---",) * len(tuple(header)), *map(tuple, rows)]
    return ["| " + " | ".join(cell.replace("|", "&#124;") for cell in each) + " |"
            for each in lines]  # fmt: skip


def problems() -> list[str]:
    """Return the problem types of HTTP, from the docstring that lists them."""
    rows = rows_of(problem.__doc__ or "", r"urn:trivisor:\S+", r"\d{3}", r".*")
    return table(
        ("type", "status", "meaning"), ((f"`{name}`", status, text) for name, status, text in rows)
    )


def paths() -> list[str]:
    """Return the paths that the voter answers itself."""
    rows: list[list[str]] = []
    for line in (reserved.__doc__ or "").splitlines():
        start, _, rest = line.partition(" ")
        if start.startswith("/"):
            rows.append([f"`{start}`", rest.strip()])
        elif rows and not start and rest.strip():
            rows[-1][1] += f" {rest.strip()}"
    return table(("path", "reply"), ((name, text.replace("``", "`")) for name, text in rows))


def header() -> list[str]:
    """Return the layout of a frame's header."""
    rows = rows_of(wire.__doc__ or "", r"\d+", r"\d+", r"[a-zA-Z].*")
    return table(("offset", "bytes", "field"), rows)


def frames() -> list[str]:
    """Return the kinds of frame, by direction, from the comments of their class."""
    direction, rows = "", []
    for line in inspect.getsource(FrameKind).splitlines():
        if alone := re.fullmatch(r" +# (.*)", line):
            direction = alone[1]
        elif kind := re.fullmatch(r" +([A-Z]+): Final = (\d+)(?:  # (.*))?", line):
            rows.append((kind[2], f"`{kind[1]}`", direction, kind[3] or ""))
    return table(("kind", "name", "direction", "contents"), rows)


def flags() -> list[str]:
    """Return the flags of a frame."""
    rows = re.findall(r"^(FLAG_\w+): Final = (\w+)(?:  # (.*))?$", inspect.getsource(wire), re.M)
    return table(("flag", "value", "meaning"), ((f"`{a}`", b, c) for a, b, c in rows))


def options() -> list[str]:
    """Return the keys of node.toml: options of ``trivisor up``."""
    rows = []
    for name, option in node_options().items():
        kind = "boolean" if option.is_flag else describe(option.type)
        given = isinstance(option.default, str | int | float) and not option.is_flag
        default = f"`{option.default}`" if given else ""
        text = option.help or ""
        rows.append(
            (f"`{name}`", kind, default, " ".join(re.sub(r"\[default: .*?\]", "", text).split()))
        )
    return table(("key", "type", "default", "meaning"), rows)


def describe(kind: click.ParamType[Any]) -> str:
    """Return a type in words of TOML, with its range."""
    if isinstance(kind, click.Choice):
        return ", ".join(f'"{each}"' for each in kind.choices)
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    words = {"integer range": "integer", "float range": "number"}.get(kind.name, "string")
    if low is not None:
        words += f", {'more than' if getattr(kind, 'min_open', False) else 'at least'} {low:,g}"
    return words + (f", at most {high:,g}" if high is not None else "")


TABLES: dict[str, Callable[[], list[str]]] = {
    "flags": flags, "frames": frames, "header": header, "node-options": options, "paths": paths,
    "problems": problems,
}  # fmt: skip


def layout(of: struct.Struct, fields: list[tuple[str, str]]) -> list[str]:
    """Return the layout of a big-endian struct.

    Raises ValueError if it has another number of fields than named.
    """
    parts = re.findall(r"(\d*)([a-zA-Z])", of.format)
    if not of.format.startswith(">") or len(parts) != len(fields):
        raise ValueError(f"{of.format} has {len(parts)} fields, not {len(fields)}")
    rows, at = [], 0
    for (count, code), (name, meaning) in zip(parts, fields, strict=True):
        size = struct.calcsize(f">{count}{code}")
        rows.append((str(at), str(size), f"{name} ({KINDS[code]})", meaning))
        at += size
    return table(("offset", "bytes", "field", "meaning"), rows)


class Generated(SphinxDirective):
    """A table of TABLES, which the argument names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table; an empty one is an error."""
        lines = TABLES[self.arguments[0]]()
        if len(lines) < 3:
            raise self.error(f"{self.arguments[0]}: the code has no such table any more")
        return self.parse_text_to_nodes("\n".join(lines))


class Layout(SphinxDirective):
    """The layout of a struct, which the argument names in full."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        fields = [line.partition(": ") for line in self.content if line.strip()]
        try:
            named = [(field, meaning) for field, _, meaning in fields]
            lines = layout(getattr(importlib.import_module(module), name), named)
        except ValueError as error:
            raise self.error(f"{self.arguments[0]}: {error}") from error
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("generated", Generated)
    app.add_directive("layout", Layout)
