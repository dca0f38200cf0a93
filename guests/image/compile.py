"""``python -m guests.image.compile``: compile ``guests.compiled.MODULES`` with mypyc and gcc.

Two builds of the same sources give the same bytes, wherever they are made: the compilers see
relative paths only, and no time.  The result is in ``guests/_compiled/KEY``; builds of other
sources are removed.  It needs mypy (locks/compile.txt), gcc, and the headers of the Python that
``--python`` names, which may be another one than this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from guests import compiled
from guests.image.host import ImageError

__all__ = ["compile_modules", "main"]

_FLAGS = (
    "-shared", "-fPIC", "-O2", "-g0", "-fwrapv", "-fno-strict-aliasing", "-DNDEBUG", "-s",
    "-fstack-protector-strong", "-w", "-Wl,--build-id=none", "-Wl,-z,relro", "-Wl,-z,now",
)  # fmt: skip
_GENERATE = """
import sys
from mypyc.build import mypycify
made = mypycify(
    [*sys.argv[2:], "--config-file=", "--python-version=3.11", "--namespace-packages",
     "--explicit-package-bases", "--ignore-missing-imports"],
    group_name=sys.argv[1], opt_level="2", debug_level="0",
)
for each in made:
    print("module", each.name, *each.sources, sep="\\t")
    for folder in each.include_dirs:
        print("include", folder, sep="\\t")
"""
_FACTS = """
import importlib.machinery, sysconfig
print(sysconfig.get_path("include"), importlib.machinery.EXTENSION_SUFFIXES[0], sep="\\n")
"""
_VERSION = "from mypy.version import __version__; print(__version__)"


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a command; return its output.  Raises ImageError with the end of its messages."""
    environment = os.environ | {
        "PYTHONHASHSEED": "0", "MYPY_CACHE_DIR": os.devnull, "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ImageError(
            f"{command[0]} cannot be run ({error.strerror}): install it", error_code="TV0410"
        ) from error
    if done.returncode != 0:
        tail = (done.stderr + done.stdout)[-2000:]
        raise ImageError(
            f"{Path(command[0]).name} failed (exit {done.returncode}): {tail}", error_code="TV0413"
        )
    return done.stdout


def compile_modules(guests: Path, python: str = sys.executable) -> Path:
    """Compile the modules below the package directory ``guests`` for ``python``.

    Return the directory of the build, which is kept if it is of the same sources and compilers.
    Raises ImageError that names what is missing or what failed, and then changes nothing.
    """
    include, suffix = _run([python, "-I", "-c", _FACTS]).split("\n")[:2]
    if not Path(include, "Python.h").exists():
        raise ImageError(f"{include}/Python.h is missing: install the headers of {python} "
                         "(Debian: python3-dev)", error_code="TV0410")  # fmt: skip
    gcc = _run(["gcc", "-dumpfullversion"]).strip()
    tools = f"mypy {_run([sys.executable, '-c', _VERSION]).strip()}, gcc {gcc}, {suffix}\n"
    target = Path(compiled.directory(str(guests)))
    record = target / "tools"
    if record.exists() and record.read_text() == tools:
        return target
    builds = target.parent
    builds.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=builds, prefix="new-") as scratch:
        work, new = Path(scratch, "work"), Path(scratch, "new")
        new.mkdir()
        for part in compiled.PARTS:
            shutil.copytree(
                guests / part, work / "guests" / part, dirs_exist_ok=True,
                ignore=lambda _, names: [name for name in names if not name.endswith(".py")],
            )  # fmt: skip
        _compile(work, new, include, suffix)
        files = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(new.iterdir())}
        (new / compiled.SUMS).write_text("".join(f"{files[name]}  {name}\n" for name in files))
        (new / "tools").write_text(tools)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    for old in builds.iterdir():
        if old != target:
            shutil.rmtree(old)
    return target


def _compile(work: Path, target: Path, include: str, suffix: str) -> None:
    files = [f"{name.replace('.', '/')}.py" for name in compiled.MODULES]
    group = compiled.LIBRARY.removesuffix("__mypyc")
    made: list[tuple[str, list[str]]] = []
    includes: dict[str, None] = {}
    for line in _run([sys.executable, "-c", _GENERATE, group, *files], work).splitlines():
        kind, *words = line.split("\t")
        if kind == "module":
            made.append((words[0], words[1:]))
        elif kind == "include":
            includes[words[0]] = None
    hidden = [f"-ffile-prefix-map={folder}=mypyc" for folder in includes]
    for name, sources in made:
        _run(["gcc", *_FLAGS, *hidden, *(f"-I{folder}" for folder in includes), f"-I{include}",
              *sources, "-o", target / f"{name}{suffix}"], work)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Compile; return the exit status."""
    parser = argparse.ArgumentParser(prog="guests.image.compile", description=__doc__)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--guests", type=Path, default=here, help="package directory to compile")
    parser.add_argument("--python", default=sys.executable, help="the Python to compile for")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{compile_modules(options.guests.resolve(), options.python)}\n")
    except ImageError as error:
        sys.stderr.write(f"trivisor: the modules are not compiled: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
