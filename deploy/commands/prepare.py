"""``trivisor prepare``: what systemd runs before a node's supervisor and voter start.

It reads the node's options from a TOML file, takes the installed guest image or builds one, and
writes node.json and voter.toml (deploy/package/systemd/trivisor-prepare.service).
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from deploy.commands.options import StepPrinter, directory_option, layout_of
from deploy.commands.up import make_settings, up
from deploy.node.records import Layout, NodeRecord, Settings
from voter.commands.parameters import existing_file
from voter.commands.terminal import CommandError, ExitCode, quiet_logs

__all__ = [
    "HTTP_UNIT",
    "listening",
    "node_options",
    "prepare",
    "read_settings",
    "write_voter_config",
]

_NOT_KEYS = frozenset({"dir", "fresh", "yes", "json", "help"})
"""Options of `up` that are for a person at a terminal, or that the unit gives."""
HTTP_UNIT = "trivisor-http.socket"
"""The unit whose addresses the voter serves HTTP on."""


@click.command(hidden=True)
@click.option("--config", type=existing_file(), help="The options of `up`, as TOML.")
@directory_option
@click.option("--end", is_flag=True, help="End what a killed supervisor left, instead.")
def prepare(config: Path | None, directory: Path | None, end: bool) -> None:
    """Prepare a node that systemd runs, or end what is left of it."""
    from deploy.commands.launch import prepare_node  # noqa: PLC0415 - heavy

    layout = layout_of(directory)
    progress = StepPrinter(quiet=False)
    quiet_logs()
    if end:
        from deploy.node.configuration import make_machines  # noqa: PLC0415 - slow
        from deploy.node.orphans import end_orphans  # noqa: PLC0415

        end_orphans(layout, make_machines, progress)
        return
    if config is None:
        raise click.UsageError("Missing option '--config'.")
    settings, accept_service = read_settings(config, listening())
    record = prepare_node(layout, settings, progress, accept_service=accept_service, managed=True)
    write_voter_config(layout, record)


def write_voter_config(layout: Layout, record: NodeRecord) -> None:
    """Write voter.toml, readable by the directory's group: the voter is another user."""
    from deploy.host.files import write_whole  # noqa: PLC0415 - heavy
    from deploy.node.configuration import node_spec, voter_config  # noqa: PLC0415

    links = {
        guest.name: f"unix:{guest.link_socket}"
        if not record.settings.allow_faults
        else f"unix:{layout.proxy_link(guest.name)}"
        for guest in node_spec(layout, record).guests
    }
    text = voter_config(layout, record.settings, record.uuids[0], links)
    write_whole(layout.voter_config, text.encode(), mode=0o640)


def listening() -> list[str]:
    """Return the addresses of HTTP_UNIT, as HOST:PORT or a path; none without systemd."""
    command = ["systemctl", "show", "--property=Listen", "--value", HTTP_UNIT]
    if not Path("/run/systemd/system").is_dir():
        return []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line.rpartition(" ")[0] for line in done.stdout.splitlines() if line.strip()]


def node_options() -> dict[str, click.Option]:
    """Return the options of `up` that are keys of the options file, by name."""
    options = {each.opts[0][2:]: each for each in up.params if isinstance(each, click.Option)}
    return {name: option for name, option in options.items() if name not in _NOT_KEYS}


def read_settings(path: Path, served: list[str]) -> tuple[Settings, bool]:
    """Return the settings that a file gives, and whether it accepts another service's journal.

    The keys are the options of `up`, with the same ranges and defaults.  ``served``: the addresses
    on which systemd listens for HTTP, if it does.  Raises CommandError that names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CommandError(f"{path}: {error}", code=ExitCode.USAGE, error_code="TV0721") from error
    known = node_options()

    def wrong(key: str, problem: str, remedy: str = "") -> CommandError:
        lines = enumerate(text.splitlines(), 1)
        key = re.sub("[-_]", "[-_]", re.escape(key.replace("-", "_")))
        at = next((n for n, line in lines if re.match(rf'\s*\[*"?{key}"?\s*[=.\]]', line)), None)
        where = f"{path}, line {at}" if at else str(path)
        return CommandError(
            f"{where}: {problem}", remedy=remedy, code=ExitCode.USAGE, error_code="TV0721"
        )

    words: list[str] = []
    seen: dict[str, str] = {}
    for key, value in data.items():
        name = key.replace("_", "-")
        if name in seen:
            raise wrong(key, f"{name!r} is given twice, as {seen[name]!r} and {key!r}")
        seen[name] = key
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
            raise wrong(key, f"unknown key {key!r}: {hint}")
        words += _words(known[name], key, value, wrong)
    decides = (
        f"the address is set in a socket unit: `systemctl edit {HTTP_UNIT}`, then leave out this"
    )
    if served and data.get("http", served[0]) not in served:
        problem = f"http is {data['http']!r}, and {HTTP_UNIT} listens on {', '.join(served)}"
        raise wrong("http", problem, f"{decides} key or write the same address")
    if served and "native" in data:
        problem = "native: systemd listens for native clients on a unix socket only"
        raise wrong("native", problem, "make a socket unit with FileDescriptorName=native and "
                    "Service=trivisor-voter.service, and leave out this key")  # fmt: skip
    if "http" not in data:
        words += [f"--http={address}" for address in served[:1] if not address.startswith("/")]
    try:
        with up.make_context("node.toml", words) as context:
            given = {
                option.name: context.params[option.name]
                for name, option in known.items()
                if name != "accept-service" and option.name is not None
            }
            return make_settings(**given), bool(context.params["accept_service"])
    except click.BadParameter as error:
        key = error.param.opts[0][2:] if error.param is not None else ""
        raise wrong(key, f"{key}: {error.message}") from error
    except click.UsageError as error:
        raise CommandError(
            f"{path}: {error.message}", code=ExitCode.USAGE, error_code="TV0721"
        ) from error


def _words(option: click.Option, key: str, value: Any, wrong: Any) -> list[str]:
    """Return a key's value as words of a command line; ``wrong`` makes the error for a key."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise wrong(key, f"{key}: {value!r} is neither true nor false")
        return [option.opts[0]] * value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong(key, f"{key}: {value!r} is neither a text nor a number")
    path = str(value).removeprefix("unix:") if option.name == "function" else str(value)
    files = isinstance(option.type, click.Path)
    is_path = files or path.endswith(".py") or path != str(value)
    if is_path and not os.path.isabs(path):
        raise wrong(key, f"{key}: {value!r} is not an absolute path")
    return [f"{option.opts[0]}={value}"]
