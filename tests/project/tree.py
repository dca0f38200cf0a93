"""The files of this project, as the tests about the project read them."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGES", "ROOT", "Source", "sources", "tracked"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("trivisor", "faultinject", "deploy", "voter", "guests")

# Made by tools and never tracked. This counts if the tree is no git clone (an unpacked sdist).
MADE = {
    ".git", ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".setup", ".venv", "__pycache__", "build", "dist", "results",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """One Python file: its path, module name, text and syntax tree."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The first part of the module's name."""
        return self.name.lstrip(".").partition(".")[0]

    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield (line, dotted name) of each import, also those inside functions and TYPE_CHECKING.

        `from a.b import c` yields `a.b` and `a.b.c`, because c may be a module.
        """
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, base] if base else above)
                yield node.lineno, base
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Return the absolute paths of all files that git tracks or would track, sorted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        found = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    except (OSError, subprocess.CalledProcessError):  # no git here, or no clone
        found = [
            path
            for path in ROOT.rglob("*")
            if path.is_file() and not MADE.intersection(path.relative_to(ROOT).parts)
        ]
    return tuple(sorted(path for path in found if path.is_file()))


@functools.cache
def sources() -> tuple[Source, ...]:
    """Return every Python file of the project, parsed."""
    found = []
    for path in tracked():
        if path.suffix != ".py":
            continue
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        text = path.read_text(encoding="utf-8")
        found.append(
            Source(path=path, name=".".join(parts), text=text, tree=ast.parse(text, str(path)))
        )
    return tuple(found)
