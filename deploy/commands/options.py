"""What several commands share: options, the node's directory, progress on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.host.files import check_path
from deploy.node.records import DURABILITY_GUARANTEES, Layout
from voter.commands.parameters import (
    DAY,
    HISTORY,
    MEMORY,
    Integer,
    LibvirtUri,
    ListenAddress,
    Number,
    VotePolicy,
    existing_file,
    node_directory,
)
from voter.commands.terminal import CommandError, ExitCode, default_directory, warn

if TYPE_CHECKING:
    from voter.core import Policy

__all__ = [
    "StepPrinter",
    "agree_on_guests",
    "boot_deadline_option",
    "client_options",
    "connect_option",
    "directory_option",
    "find_service",
    "json_option",
    "layout_of",
    "node_options",
    "rejuvenation_options",
]

T = TypeVar("T", bound=Callable[..., Any])

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
    help="Seconds a booting guest may make no progress; a boot may take ten times that. Above "
    "60, for a slow host, other time limits on guests grow in proportion.",
)
connect_option = click.option(
    "--connect",
    type=LibvirtUri(),
    default="qemu:///embed",
    show_default=True,
    help="URI of libvirt.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

_NODE_OPTIONS = (
    click.option("--guests", type=Integer(1, 9), help="Number of guests  [default: 3]"),
    click.option(
        "--vote", type=VotePolicy(), help="m/n: m of n guests must agree  [default: a majority]"
    ),
    click.option(
        "--service", default="kv", show_default=True, help="kv, static, or a Python file."
    ),
    click.option(
        "--accel",
        type=click.Choice(["auto", "kvm", "tcg"]),
        default="auto",
        show_default=True,
        help="Accelerator of the guests; auto chooses KVM if it boots a guest.",
    ),
    click.option(
        "--http",
        type=ListenAddress(),
        default="127.0.0.1:8080",
        show_default=True,
        help="Address to serve on.",
    ),
    click.option(
        "--memory",
        type=MEMORY,
        default=128,
        show_default=True,
        help="Memory of each guest in MiB.",
    ),
    boot_deadline_option,
    click.option("--allow-faults", is_flag=True, help="Allow `trivisor inject`."),
    click.option(
        "--repair",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="Restore failed guests automatically.",
    ),
    click.option(
        "--durability",
        type=click.Choice(list(DURABILITY_GUARANTEES)),
        default="fsync",
        show_default=True,
        help="What survives.  "
        + "  ".join(f"{kind}: {text}." for kind, text in DURABILITY_GUARANTEES.items()),
    ),
    click.option(
        "--keep-history",
        type=HISTORY,
        help="MiB of older requests and checkpoints to keep for `trivisor replay`  [default: none]",
    ),
    click.option(
        "--follow",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Send requests to a majority first and to the other guests in batches, at most 20 ms "
        "later; auto: if the guests outnumber the processors.",
    ),
)


def node_options(command: T) -> T:
    """Give a command the options of a node that `up` and `deploy` have."""
    for option in reversed(_NODE_OPTIONS):
        command = option(command)
    return command


_REJUVENATION_OPTIONS = (
    click.option(
        "--rejuvenate-every",
        type=Number(0, 365 * DAY, "seconds", above=True),
        help="Replace each guest by a fresh one once in this time, one after another.",
    ),
    click.option(
        "--rejuvenate-by",
        type=click.Choice(["clone", "boot", "in-place"]),
        default="clone",
        show_default=True,
        help="How: a clone of a freshly booted guest, a boot, or the guest's own clean snapshot, "
        "during which it does not vote.",
    ),
    click.option(
        "--boot-share",
        type=Integer(0, 100),
        default=50,
        show_default=True,
        help="Percent of one processor for a guest that boots beside the running ones; 0: what "
        "these leave.",
    ),
)


def rejuvenation_options(command: T) -> T:
    """Give a command the options on the replacement of guests."""
    for option in reversed(_REJUVENATION_OPTIONS):
        command = option(command)
    return command


_CLIENT_OPTIONS = (
    click.option(
        "--tls-certificate",
        type=existing_file(),
        help="Speak TLS on TCP: certificate and chain (PEM).",
    ),
    click.option("--tls-key", type=existing_file(), help="Its private key (PEM, not encrypted)."),
    click.option(
        "--tls-client-ca",
        type=existing_file(),
        help="Clients on TCP need a certificate of an authority in this file (PEM).",
    ),
    click.option(
        "--tokens",
        type=existing_file(),
        help="Clients on TCP need a token of this file (see `trivisor token`).",
    ),
    click.option(
        "--client-rate",
        type=Number(0, 1e6, "requests a second", above=True),
        help="Requests a second of one client, on average; bursts of 100 are allowed.",
    ),
    click.option(
        "--client-in-flight",
        type=Integer(1, 1 << 20),
        help="Requests of one client that may be under way.",
    ),
    click.option(
        "--client-connections",
        type=Integer(1, 1 << 20),
        help="Connections from one address to each front end.",
    ),
)


def client_options(command: T) -> T:
    """Give a command the options on who may connect, and how much one client may ask."""
    for option in reversed(_CLIENT_OPTIONS):
        command = option(command)
    return command


def agree_on_guests(guests: int | None, vote: Policy | None) -> Policy:
    """Return the policy that --guests and --vote mean.  Raises CommandError."""
    from voter.core import Policy  # noqa: PLC0415 - heavy

    if guests is None:
        guests = vote.of if vote is not None else 3
    policy = vote or Policy(guests // 2 + 1, guests)
    if policy.of != guests:
        raise CommandError(
            f"--vote {policy} needs {policy.of} guests, but --guests is {guests}",
            remedy=f"use --vote {guests // 2 + 1}/{guests}, or omit one of the options",
            code=ExitCode.USAGE,
            error_code="TV0206",
        )
    return policy


def find_service(given: str) -> str:
    """Return the service of `--service`: a shipped one's name, or a file's absolute path."""
    from guests.service import SHIPPED  # noqa: PLC0415

    if given in SHIPPED:
        return given
    path = Path(given).absolute()
    if path.suffix == ".py" and not path.is_file():
        raise CommandError(
            f"--service: there is no file {str(path)!r}",
            remedy="give the path of an existing Python file",
            code=ExitCode.USAGE,
            error_code="TV0401",
        )
    if path.suffix != ".py":
        raise CommandError(
            f"unknown service {given!r}",
            remedy=f"use one of {', '.join(sorted(SHIPPED))}, or the path of a Python file (.py)",
            code=ExitCode.USAGE,
            error_code="TV0401",
        )
    return str(path)


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
