"""Compilation of Python sources for a guest, with the guest's own Python.

The bytecode must suit the guest's Python; the host's may be newer.  So the build runs the guest's
program here, through the guest's own loader and libraries.  It makes *unchecked* bytecode (PEP
552): that holds no time, and the guest loads it without reading the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from guests.image.host import ImageError, run
from guests.image.recipe import LOADER, MULTIARCH, PYTHON

__all__ = ["compile_sources"]

_DEADLINE = 300.0

# One process compiles all sources in the given order, so that every build gives the same bytes.
_SCRIPT = """
import sys
from importlib._bootstrap_external import _RAW_MAGIC_NUMBER, _code_to_hash_pyc
from _imp import source_hash
for line in open(sys.argv[1], encoding="utf-8"):
    source, target, shown = line.rstrip("\\n").split("\\t")
    with open(source, "rb") as file:
        text = file.read()
    code = compile(text, shown, "exec", dont_inherit=True, optimize=0)
    with open(target, "wb") as file:
        file.write(_code_to_hash_pyc(code, source_hash(_RAW_MAGIC_NUMBER, text), False))
"""


def compile_sources(tree: Path, sources: Mapping[str, bytes], work: Path) -> dict[str, bytes]:
    """Return the bytecode of ``sources``, which maps paths in the guest (no leading "/") to texts.

    ``tree`` holds the guest's Python; ``work`` is an empty directory for temporary files.  For a
    source that is not Python, raises ImageError that quotes the compiler (with file and line).
    """
    lines = []
    for number, name in enumerate(sorted(sources)):
        source = work / f"{number}.py"
        source.write_bytes(sources[name])
        lines.append(f"{source}\t{source.with_suffix('.pyc')}\t/{name}\n")
    if any(line.count("\t") != 2 or line.count("\n") != 1 for line in lines):
        raise ImageError(
            f"a path with a tab or a line end cannot be compiled: below {work}", error_code="TV0416"
        )
    listing = work / "sources.list"
    listing.write_text("".join(lines), encoding="utf-8")
    run(
        [
            tree / "lib64" / LOADER,
            "--library-path",
            tree / "lib" / MULTIARCH,
            tree / "usr/bin" / PYTHON,
            "-S",
            "-s",
            "-c",
            _SCRIPT,
            listing,
        ],
        env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        deadline=_DEADLINE,
    )
    return {
        name: (work / f"{number}.pyc").read_bytes() for number, name in enumerate(sorted(sources))
    }
