"""``trivisor voter --config FILE``: the daemon alone, before guests that someone else made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

__all__ = ["voter"]


@click.command()
@click.option(
    "--config",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The voter's TOML configuration.",
)
@click.option("--check", is_flag=True, help="Check the configuration and end.")
def voter(config: Path, check: bool) -> None:
    """Run the voter in the foreground until SIGTERM or Ctrl-C.

    It serves the sockets that the configuration names, or those it inherits (LISTEN_FDS).
    """
    # The daemon gets a process image of its own: nothing of click stays in it.
    words = [sys.executable, "-m", "voter", "--config", str(config)]
    if check:
        words.append("--check")
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.execve(sys.executable, words, os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
