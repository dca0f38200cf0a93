"""``trivisor monitoring``: the files that Prometheus and Grafana need for one node."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.commands.control_client import NotUp, ask
from deploy.commands.options import directory_option, json_option, layout_of
from deploy.monitoring.install import FILES, write_files
from voter.commands.parameters import existing_file, output_directory
from voter.commands.terminal import print_json, warn

__all__ = ["monitoring"]

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


@click.command()
@click.option(
    "--out", type=output_directory(), default=Path("monitoring"), show_default=True,
    help="The directory to write to.",
)  # fmt: skip
@click.option("--rules", type=existing_file(), help="Alert rules to use instead of the shipped.")
@directory_option
@json_option
def monitoring(out: Path, rules: Path | None, directory: Path | None, as_json: bool) -> None:
    """Write settings, alert rules and a dashboard for Prometheus and Grafana.

    They name the addresses of the node that runs; without one, the default addresses.  Where
    promtool is installed, it checks the rules.
    """
    addresses = {}
    try:
        status = ask(layout_of(directory), "GET", "/status", patience=0.0)
    except NotUp:
        warn("no node runs: the files name the default addresses")
    else:
        found = {"voter": status["http"], "supervisor": status["dashboard"]}
        addresses = {name: _reachable(address) for name, address in found.items() if address}
        for name in found.keys() - addresses.keys():
            warn(f"warning: this node serves no metrics of its {name} over TCP")
    checked = write_files(out, addresses, rules)
    if not checked:
        warn("promtool is not installed: the rules were not checked")
    if as_json:
        print_json({"directory": str(out), "files": list(FILES), "checked": checked})
    else:
        for name in FILES:
            click.echo(out / name)


def _reachable(address: str) -> str:
    """Return where this host reaches a listener, which may listen on all addresses."""
    host, _, port = address.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"
