"""Directives that list what the code exports: ``metrics`` and ``events``.

``metrics`` takes the name of a catalogue of families.  ``events`` takes packages: it finds the
events in their source, and what each means in events.toml.
"""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from voter.exposition import UNITS, Family

__all__ = ["Event", "Events", "Metrics", "find_events", "meanings", "setup"]

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_LEVEL = {"exception": "error"}
LOGGERS = {"log", "_log"}
HISTORIES = {"history", "_history"}


class Event(NamedTuple):
    """One place that logs an event, or adds it to a node's history."""

    name: str
    level: str  # of a log line; "event" in a node's history
    fields: tuple[str, ...]
    where: str


def _owner(call: ast.Call) -> tuple[str, str]:
    """Return the last two parts of what is called: ``_log``, ``info``."""
    if not isinstance(call.func, ast.Attribute):
        return "", ""
    value = call.func.value
    return getattr(value, "attr", getattr(value, "id", "")), call.func.attr


def _names(node: ast.expr, where: str) -> list[str]:
    """Return the names of an event.  Raises ValueError for one that is not fixed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _names(node.body, where) + _names(node.orelse, where)
    raise ValueError(f"{where}: the name of an event is a fixed text; put what varies into fields")


def _keys(tree: ast.AST) -> dict[str, tuple[str, ...]]:
    """Return the keys of the dictionaries that are written into variables, by variable."""
    found: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Dict):
                keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
                found[target.id] += tuple(map(str, keys))
    return found


def _fields(call: ast.Call, keys: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names of an event's fields, those of ``**variable`` included."""
    found: tuple[str, ...] = ()
    for each in call.keywords:
        named = keys.get(getattr(each.value, "id", ""), ())
        found += (each.arg,) if each.arg else named
    return found


def find_events(*packages: str) -> Iterator[Event]:
    """Yield each place in these packages that makes an event.  Raises ValueError."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            keys = _keys(tree)
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                owner, method = _owner(node)
                logs = owner in LOGGERS and method in LEVELS
                if (owner, method) == ("self", "_warn"):  # of a guest
                    name = _names(node.args[0], f"{where}:{node.lineno}")[0]
                    yield Event(name, "warning", ("guest", "error", "error_code"), where)
                if isinstance(node.args[0], ast.Name) and node.args[0].id == "event" and logs:
                    continue  # in ``_warn``
                if logs or (owner in HISTORIES and method == "add"):
                    fields = _fields(node, keys)
                    guest = ("guest",) if not logs and len(node.args) > 1 else ()
                    level = method if logs else "event"
                    for name in _names(node.args[0], f"{where}:{node.lineno}"):
                        yield Event(name, _LEVEL.get(level, level), guest + fields, where)


def meanings() -> dict[str, str]:
    """Return what each event means, by name."""
    text = Path(__file__).with_name("events.toml").read_text(encoding="utf-8")
    return {name: str(meaning) for name, meaning in tomllib.loads(text).items()}


def _table(*rows: tuple[str, ...]) -> str:
    lines = [" | ".join(cell.replace("|", "&#124;") for cell in row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in rows[0]))
    return "\n".join(f"| {line} |" for line in lines)


class Metrics(SphinxDirective):
    """The table of a catalogue of metrics, which the argument names in full."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        families: dict[str, Family] = getattr(importlib.import_module(module), name)
        rows = [("name", "type", "unit", "labels", "meaning")]
        for family_name, family in families.items():
            unit = family_name.removesuffix("_total").rpartition("_")[2]
            labels = ", ".join(f"`{label}`" for label in family.labels)
            about = (unit if unit in UNITS else "", labels, family.help)
            rows.append((f"`{family_name}`", family.kind, *about))
        return self.parse_text_to_nodes(_table(*rows))


class Events(SphinxDirective):
    """The table of the events of packages: of their logs, or with ``:history:`` of a node."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"history": lambda _: True}  # noqa: RUF012 - docutils' interface

    def run(self) -> list[nodes.Node]:
        """Return the table.  An event without a meaning is an error."""
        history = "history" in self.options
        levels: dict[str, set[str]] = defaultdict(set)
        fields: dict[str, dict[str, None]] = defaultdict(dict)
        for event in find_events(*self.arguments[0].split()):
            if (event.level == "event") is history:
                levels[event.name].add(event.level)
                fields[event.name] |= dict.fromkeys(event.fields)
        known = meanings()
        rows: list[tuple[str, ...]] = [
            ("event", "fields", "meaning") if history else ("event", "level", "fields", "meaning")
        ]
        for name in sorted(levels, key=str.lower):
            if name not in known:
                raise self.error(f"events.toml does not say what {name!r} means")
            cells = [f"`{name}`", ", ".join(f"`{field}`" for field in fields[name]), known[name]]
            if not history:
                cells.insert(1, ", ".join(sorted(levels[name])))
            rows.append(tuple(cells))
        return self.parse_text_to_nodes(_table(*rows))


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("metrics", Metrics)
    app.add_directive("events", Events)
