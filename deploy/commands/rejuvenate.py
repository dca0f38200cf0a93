"""``trivisor rejuvenate``: replace running guests by fresh ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.commands.control_client import ask
from deploy.commands.options import directory_option, json_option, layout_of
from voter.commands.parameters import GuestName, Integer
from voter.commands.terminal import print_json, warn

__all__ = ["rejuvenate"]

TIMEOUT = 1200.0
"""Seconds for the supervisor's answer: a boot with a tenth of a processor takes two minutes."""


@click.command()
@click.argument("guest", type=GuestName(), metavar="[GUEST]", required=False)
@directory_option
@click.option("--all", "everyone", is_flag=True, help="Replace all guests, one after another.")
@click.option(
    "--by",
    type=click.Choice(["clone", "boot"]),
    help="Clone a freshly booted guest, or boot one  [default: as the node was started].",
)
@click.option(
    "--boot-share",
    type=Integer(0, 100),
    help="Percent of one processor for a boot; 0: what the running guests leave  [default: as the "
    "node was started].",
)
@click.option(
    "--in-place",
    is_flag=True,
    help="Restore the guest's clean snapshot in its own virtual machine. This needs no memory for "
    "another one, and the guest does not vote meanwhile.",
)
@json_option
def rejuvenate(
    guest: str | None,
    directory: Path | None,
    everyone: bool,
    by: str | None,
    boot_share: int | None,
    in_place: bool,
    as_json: bool,
) -> None:
    """Replace GUEST by a fresh one while the node serves.

    A new virtual machine starts from the clean image, receives the voted state, and takes the
    guest's place in one step. Then the old one ends. If anything fails, the old one stays. The new
    guest has another name: that of the slot that was free.
    """
    if (guest is None) != everyone:
        raise click.UsageError("name one guest, or use --all")
    if in_place and (by is not None or boot_share is not None):
        raise click.UsageError("--in-place starts no guest: omit --by and --boot-share")
    layout = layout_of(directory)
    names = [guest] if guest is not None else _voters(ask(layout, "GET", "/status"))
    results = []
    for name in names:
        order = {"guest": name, "by": "in-place" if in_place else by, "share": boot_share}
        done = ask(layout, "POST", "/rejuvenate", order, timeout=TIMEOUT)
        results.append(done)
        if not as_json:
            warn(_describe(done))
    if as_json:
        print_json({"rejuvenated": results})


def _voters(status: dict[str, Any]) -> list[str]:
    """Return the guests that vote, the one that has run longest first."""
    guests = [guest for guest in status["guests"] if guest["role"] == "voter"]
    guests.sort(key=lambda guest: guest["since"] or 0.0)
    return [str(guest["name"]) for guest in guests]


def _describe(done: dict[str, Any]) -> str:
    if done["by"] == "in-place":
        return f"{done['guest']}: restored in place, votes again after {done['seconds']:.2f} s"
    bounded = ""
    if done["how"] == "booted" and done["share"] < 100:
        bounded = f" with {done['share']} % of a processor ({done['bounded']})"
    return (
        f"{done['guest']}: {done['slot']} has taken its place after {done['seconds']:.2f} s "
        f"({done['how']} in {done['ready_seconds']:.2f} s{bounded}, caught up in "
        f"{done['join_seconds']:.2f} s)"
    )
