"""``trivisor function --key FILE --listen PATH``: F, before a voter that names it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

__all__ = ["function"]


@click.command()
@click.option("--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The key, as hexadecimal digits (`openssl rand -hex 32`).")  # fmt: skip
@click.option("--listen", required=True, type=click.Path(path_type=Path),
              help="Path of the unix socket to serve at.")  # fmt: skip
@click.option("--function", "name", default="hmac-sha256", show_default=True,
              help="hmac-sha256, or a Python file with one guests.function.Function.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Start it again when a signal has ended it.")
def function(key: Path, listen: Path, name: str, keep: bool) -> None:
    """Run F in the foreground until SIGTERM or Ctrl-C: what each guest would check, done once.

    A voter whose configuration says `function = "unix:PATH"` asks it of each request before it is
    ordered, and refuses what it does not hear a yes to.
    """
    # F gets a process image of its own: nothing of click stays in it.
    words = [sys.executable, "-m", "deploy.authorizer", "--function", name]
    words += ["--key", str(key), "--listen", str(listen), *(["--keep"] if keep else [])]
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.execve(sys.executable, words, os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
