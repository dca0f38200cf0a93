"""Debian's Prometheus on loopback, for tests: it scrapes fast and evaluates the shipped rules."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.monitoring.install import write_files
from faultinject.bench.rig import free_port
from tests.waiting import wait_until

__all__ = ["Prometheus", "prometheus", "promtool"]

INTERVAL = "250ms"
"""Between two scrapes, and between two evaluations of the rules."""
PATIENCE = 90.0


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; skip the test where it is not installed."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    return subprocess.run([path, *words], capture_output=True, text=True, check=False)


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str) -> Any:
        """Return the data of one call of its API."""
        with urllib.request.urlopen(f"{self._base}{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def answers(self) -> bool:
        """Whether it serves."""
        try:
            self.get("/status/buildinfo")
        except OSError:
            return False
        return True

    def firing(self) -> dict[str, dict[str, Any]]:
        """Return the alerts that fire now, by name."""
        return {
            alert["labels"]["alertname"]: alert
            for alert in self.get("/alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def until_firing(self, *names: str) -> dict[str, dict[str, Any]]:
        """Wait until these alerts fire; return all that do."""
        wait_until(lambda: set(names) <= self.firing().keys(), str(names), seconds=PATIENCE)
        return self.firing()


@contextmanager
def prometheus(directory: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run a server that scrapes these addresses (of ``voter`` and ``supervisor``).

    The rules are the shipped ones but for their ``for:``, which is left out, so that each alert
    fires as soon as its condition holds.
    """
    path = shutil.which("prometheus")
    if path is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
    write_files(directory, targets, None)
    for name, old, new in (
        ("trivisor.rules.yml", r"\n +for: .*", ""),
        ("prometheus.yml", r"_interval: 15s", f"_interval: {INTERVAL}"),
    ):
        text, count = re.subn(old, new, (directory / name).read_text())
        assert count > 0
        (directory / name).write_text(text)
    port = free_port()
    words = [
        path, "--config.file", str(directory / "prometheus.yml"), "--storage.tsdb.path",
        str(directory / "data"), "--web.listen-address", f"127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        found = Prometheus(port)
        wait_until(lambda: server.poll() is not None or found.answers(), seconds=PATIENCE)
        assert server.poll() is None, (directory / "log").read_text()
        yield found
    finally:
        server.kill()
        server.wait()
