"""The directive ``settings``: a table of the keys of a configuration class, read from its code.

Each field of the class (a msgspec.Struct) is a key.  Its meaning is the comment in its line, with
the comments of the lines below it, up to the next field.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import tokenize

import msgspec
import msgspec.inspect as types
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["Settings", "comments", "default_of", "kind_of", "setup"]

KINDS: dict[type[types.Type], str] = {
    types.BoolType: "boolean", types.DictType: "table", types.FloatType: "number",
    types.IntType: "integer", types.ListType: "array", types.StrType: "string",
    types.StructType: "table", types.TupleType: "array", types.VarTupleType: "array",
}  # fmt: skip
NOTHING: tuple[object, ...] = (None, {}, (), msgspec.NODEFAULT)
"""Defaults that say no more than that a key may be left out."""


def comments(kind: type) -> dict[str, str]:
    """Return the comment of each field that a class's source declares ("" without one)."""
    text = inspect.getsource(kind)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (parsed,) = ast.parse(text).body
    if not isinstance(parsed, ast.ClassDef):
        raise TypeError(f"{kind} is not a class")
    ends = [each.lineno for each in parsed.body[1:]] + [text.count("\n") + 1]
    return {
        node.target.id: " ".join(lines[n] for n in range(node.lineno, end) if n in lines)
        for node, end in zip(parsed.body, ends, strict=True)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def kind_of(of: types.Type) -> str:
    """Return a type in words of TOML, with its range.  Raises KeyError for one not foreseen."""
    if isinstance(of, types.UnionType):
        return " or ".join(kind_of(t) for t in of.types if not isinstance(t, types.NoneType))
    if isinstance(of, types.LiteralType):
        return ", ".join(json.dumps(value) for value in of.values)
    words = KINDS[type(of)]
    if isinstance(of, types.ListType | types.VarTupleType):
        words += f" of {KINDS[type(of.item_type)]}s"
    if isinstance(of, types.IntType | types.FloatType):
        if of.gt is not None:
            words += f", more than {of.gt:,}"
        if of.ge is not None:
            words += f", at least {of.ge:,}"
        if of.le is not None:
            words += f", at most {of.le:,.0f}"
    return words


def default_of(field: types.Field) -> str:
    """Return a key's default as TOML writes it; sizes of whole MiB also in MiB."""
    if field.required:
        return "required"
    if field.default in (None, {}, (), msgspec.NODEFAULT) or isinstance(
        field.type, types.StructType
    ):
        return ""
    written = f"`{json.dumps(field.default)}`"
    size = field.default if isinstance(field.default, int) else 0
    return f"{written} ({size >> 20} MiB)" if size and size % (1 << 20) == 0 else written


class Settings(SphinxDirective):
    """The table of the keys of one class, which the argument names in full."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table.  A key without a comment is an error: nothing says what it means."""
        module, _, name = self.arguments[0].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        meanings = comments(kind)
        info = types.type_info(kind)
        if not isinstance(info, types.StructType):
            raise self.error(f"{name} is not a configuration class")
        lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
        for field in info.fields:
            if not meanings[field.name]:
                raise self.error(f"{module}.{name}.{field.name} has no comment with its meaning")
            cells = [f"`{field.name}`", kind_of(field.type), default_of(field)]
            cells.append(meanings[field.name])
            lines.append("| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("settings", Settings)
