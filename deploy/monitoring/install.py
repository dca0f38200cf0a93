"""The files for Prometheus and Grafana, filled in for one node and checked by promtool."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import DeployError
from deploy.host.files import write_whole

__all__ = ["FILES", "MONITORING", "RulesRejected", "check_rules", "write_files"]

MONITORING = Path(__file__).parent
"""Where the shipped files are."""
RULES = "trivisor.rules.yml"
FILES = ("prometheus.yml", RULES, "trivisor.grafana.json")
PROMTOOL_TIMEOUT = 30.0
"""Seconds."""

_ADDRESSES = {"voter": "127.0.0.1:8080", "supervisor": "127.0.0.1:8023"}
"""What the shipped prometheus.yml scrapes."""


class RulesRejected(DeployError):
    """A file of alert rules that promtool rejects."""

    error_code = "TV0950"


def check_rules(path: Path) -> bool:
    """Check a file of alert rules with promtool; return False if promtool is not installed.

    Raises RulesRejected with promtool's words.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        return False
    try:
        done = subprocess.run(
            [promtool, "check", "rules", "--lint-fatal", path],
            capture_output=True, text=True, errors="backslashreplace", check=False,
            timeout=PROMTOOL_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RulesRejected(
            f"{path}: promtool did not check it within {PROMTOOL_TIMEOUT:g} s",
            remedy="give a file of alert rules, of kilobytes",
        ) from error
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        reasons = [line for line in lines if line and not line.startswith(("Checking", "FAILED"))]
        reason = "; ".join(reasons)[:500] or f"exit status {done.returncode}"
        raise RulesRejected(
            f"{path}: promtool rejects these rules: {reason}",
            remedy=f"correct the file until `promtool check rules {path}` accepts it",
        )
    return True


def write_files(directory: Path, addresses: Mapping[str, str], rules: Path | None) -> bool:
    """Write the files into a directory, which is made if there is none.

    ``addresses``: of ``voter`` and ``supervisor``; ``rules`` replaces the shipped alert rules.
    Return whether promtool has checked the rules.  Raises RulesRejected, OSError.
    """
    source = rules or MONITORING / RULES
    checked = check_rules(source)
    directory.mkdir(parents=True, exist_ok=True)
    config = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
    for name, address in addresses.items():
        config = config.replace(_ADDRESSES[name], address)
    write_whole(directory / "prometheus.yml", config.encode())
    write_whole(directory / RULES, source.read_bytes())
    write_whole(directory / FILES[2], (MONITORING / FILES[2]).read_bytes())
    return checked
