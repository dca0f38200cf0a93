"""``trivisor function --key FILE --listen PATH``: run the function F for a voter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from deploy.host.spawn import python_command, python_environment

__all__ = ["function"]


@click.command()
@click.option("--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The key, as hexadecimal digits (`openssl rand -hex 32`).")  # fmt: skip
@click.option("--listen", required=True, type=click.Path(path_type=Path),
              help="Path of the unix socket.")  # fmt: skip
@click.option("--function", "name", default="hmac-sha256", show_default=True,
              help="hmac-sha256, or a Python file with one guests.function.Function.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Restart it when a signal has ended it.")
def function(key: Path, listen: Path, name: str, keep: bool) -> None:
    """Run F in the foreground until SIGTERM or Ctrl-C: the guests' check, done once on the host.

    A voter with `function = "unix:PATH"` in its configuration asks F about each request before it
    is ordered, and rejects every request that F does not authorize.
    """
    command = python_command("deploy.authorizer", "--function", name, "--key", key)
    command += ["--listen", str(listen), *(["--keep"] if keep else [])]
    os.execve(sys.executable, command, python_environment())  # without click in the process
