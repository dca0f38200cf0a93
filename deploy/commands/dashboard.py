"""``trivisor dashboard``: a link that opens a node's dashboard in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.commands.control_client import ask
from deploy.commands.options import directory_option, json_option, layout_of
from deploy.node.records import Layout
from voter.commands.terminal import print_json, warn

__all__ = ["dashboard", "new_link", "show_link"]


@click.command()
@directory_option
@json_option
def dashboard(directory: Path | None, as_json: bool) -> None:
    """Print a link that opens the dashboard of a node in a browser.

    The link logs one browser in, once, within ten minutes.  From another machine, forward the port
    first: `ssh -L 8023:127.0.0.1:8023 HOST`.
    """
    link = new_link(layout_of(directory))
    if as_json:
        print_json(link)
    else:
        click.echo(link["url"])


def new_link(layout: Layout) -> dict[str, Any]:
    """Return a new link: its url, and the seconds in which it can be used."""
    return ask(layout, "POST", "/dashboard")


def show_link(link: dict[str, Any]) -> None:
    """Print a link after the other messages of a command."""
    warn(f"dashboard (once, within {link['seconds'] / 60:.0f} minutes): {link['url']}")
