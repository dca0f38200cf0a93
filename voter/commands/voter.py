"""``trivisor voter``: run the voter alone, before guests that someone else made; or count it.

The voter's process is R_V, the part of a node that nothing masks: its size matters.  ``--count``
says what that process loads.  It imports the voter in a fresh interpreter, as ``python -m voter``
does, and counts the lines of code of every module that is there afterwards.  A line of code is a
line of a statement; docstrings, comments and blank lines do not count.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import click

from voter.commands.parameters import existing_file
from voter.commands.terminal import print_json

__all__ = ["count_loaded", "voter"]

ROOT = Path(__file__).resolve().parents[2]
OURS = ("voter", "guests")
_PROBE = """
import sys
import voter.__main__
if {function}:
    import voter.authorizer
for name, module in list(sys.modules.items()):
    print(name, getattr(module, "__file__", None) or "", sep="\\t")
"""


def _environment() -> dict[str, str]:
    """Return the environment in which ``python -m voter`` finds these sources."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _code_lines(path: Path) -> int:
    """Return the number of lines that hold code."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.stmt):
            last = node.lineno if hasattr(node, "body") else node.end_lineno or node.lineno
            lines.update(range(node.lineno, last + 1))
    return len(lines)


def count_loaded(*, function: bool) -> dict[str, Any]:
    """Count what the voter's process loads; with ``function``, the authorizer too.

    ``ours``: lines of code by package, ``third_party``: by distribution, each with its ``total``;
    compiled modules of others are listed in ``compiled``.  The standard library is listed.  Ours is
    counted by its sources, also where compiled modules are loaded.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(function=function)],
        env=_environment() | {"TRIVISOR_PURE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    distributions = packages_distributions()
    ours: Counter[str] = Counter()
    others: Counter[str] = Counter()
    compiled, standard = [], set()
    for line in done.stdout.splitlines():
        name, file = line.split("\t")
        top = name.partition(".")[0]
        owner = distributions.get(top, [""])[0]
        if top in OURS:
            is_package = file.endswith("__init__.py")
            package = name if is_package else name.rpartition(".")[0]
            ours[package] += _code_lines(Path(file))
        elif top in sys.stdlib_module_names or not owner:
            standard.add(top)
        elif file.endswith(".py"):
            others[owner] += _code_lines(Path(file))
        else:
            others[owner] += 0
            compiled.append(name)
    return {
        "ours": dict(sorted(ours.items())) | {"total": ours.total()},
        "third_party": dict(sorted(others.items())) | {"total": others.total()},
        "compiled": sorted(compiled),
        "standard_library": sorted(standard - {"__main__"}),
    }


@click.command()
@click.option(
    "--config",
    type=existing_file(),
    help="The voter's TOML configuration.",
)
@click.option("--check", is_flag=True, help="Check the configuration and exit.")
@click.option("--count", is_flag=True, help="Print how much code the voter loads, and exit.")
@click.option("--json", "as_json", is_flag=True, help="With --count: as JSON.")
def voter(config: Path | None, check: bool, count: bool, as_json: bool) -> None:
    """Run the voter in the foreground until SIGTERM or Ctrl-C.

    It serves the sockets that the configuration names, or those it inherits (LISTEN_FDS).

    --count needs no configuration; the authorizer is counted if the configuration names a function.
    """
    if count:
        from voter.config import load  # noqa: PLC0415

        _print_count(count_loaded(function=config is not None and bool(load(config).function)),
                     as_json)  # fmt: skip
        return
    if config is None:
        raise click.UsageError("Missing option '--config'.")
    # The daemon gets a process image of its own: nothing of click stays in it.
    command = [sys.executable, "-m", "voter", "--config", str(config)]
    os.execve(sys.executable, command + ["--check"] * check, _environment())


def _print_count(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for title, kind in (("Lines of code of ours", "ours"), ("Third party", "third_party")):
        click.echo(f"{title}:")
        for name, lines in found[kind].items():
            click.echo(f"  {lines:6}  {name}")
    click.echo(f"Compiled modules, not counted: {', '.join(found['compiled'])}")
    click.echo(f"Standard library, not counted: {', '.join(found['standard_library'])}")
