"""``trivisor function --key FILE --listen PATH``: run the function F for a voter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from deploy.host.spawn import python_command, python_environment
from voter.commands.parameters import existing_file, output_file

__all__ = ["function"]


@click.command()
@click.option("--key", required=True, type=existing_file(),
              help="The key, as hexadecimal digits (`openssl rand -hex 32`).")  # fmt: skip
@click.option("--listen", required=True, type=output_file(),
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
