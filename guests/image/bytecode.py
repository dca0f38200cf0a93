"""Compiling Python sources for a guest, with the guest's own Python.

The bytecode must suit the guest's Python, not the host's, which may be newer; so the guest's
program is run here, through the guest's own loader and libraries. It is *unchecked* bytecode (PEP
552): it holds no time, and the guest loads it without a look at the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from guests.image.command import run
from guests.image.errors import ImageError
from guests.image.recipe import LOADER, MULTIARCH, PYTHON

__all__ = ["compile_sources"]

_DEADLINE = 300.0

# One process compiles all, in the given order: then the bytes do not vary from build to build.
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
    """The bytecode of `sources`, which maps the path in the guest (no leading "/") to the text.

    `tree` holds the guest's Python; `work` is an empty directory for files on the way. Raises
    ImageError that quotes the compiler, and so names file and line, for a source that is not
    Python.
    """
    lines = []
    for number, name in enumerate(sorted(sources)):
        source = work / f"{number}.py"
        source.write_bytes(sources[name])
        lines.append(f"{source}\t{source.with_suffix('.pyc')}\t/{name}\n")
    if any(line.count("\t") != 2 or line.count("\n") != 1 for line in lines):
        raise ImageError(f"a path with a tab or a line end cannot be compiled: below {work}")
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
