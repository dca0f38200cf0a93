"""What several commands share: options, the node's directory, progress on the terminal."""

from __future__ import annotations

import time
from pathlib import Path

import click

from deploy.host.files import check_path
from deploy.node.records import Layout
from voter.commands.parameters import DAY, Number, node_directory
from voter.commands.terminal import default_directory, warn

__all__ = [
    "StepPrinter",
    "boot_deadline_option",
    "directory_option",
    "json_option",
    "layout_of",
]

directory_option = click.option(
    "--dir",
    "directory",
    type=node_directory(),
    help="The node's directory (default: $TRIVISOR_DIR, else the Debian package's node, else in "
    "$XDG_STATE_HOME).",
)
boot_deadline_option = click.option(
    "--boot-deadline",
    type=Number(0, DAY, "seconds", above=True),
    default=60.0,
    show_default=True,
    help="Seconds a booting guest may make no progress; the whole boot may take ten times that.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def layout_of(directory: Path | None) -> Layout:
    """Return the node's directory that a command's option names.  Raises PathUnusable."""
    given = Path.cwd() / (directory or default_directory())
    check_path(given)
    # A symbolic link may serve to shorten the path.  Before "..", only its target counts.
    return Layout(given.resolve() if ".." in given.parts else given)


class StepPrinter:
    """Prints steps on standard error, each with the seconds since the start."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began = time.monotonic()

    def __call__(self, step: str) -> None:
        """Print a step."""
        if not self._quiet:
            warn(f"{time.monotonic() - self._began:6.1f} s  {step}")
