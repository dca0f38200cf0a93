"""The example service of docs/services.md on three real guests, by the documented commands."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.host.spawn import python_command, python_environment

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "counter.py"


def _trivisor(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_command("trivisor", *words), env=python_environment(), capture_output=True,
        text=True, timeout=150,
    )  # fmt: skip


def test_docs_show_the_example_unchanged() -> None:
    assert EXAMPLE.read_text().strip() in (ROOT / "docs" / "services.md").read_text()


@pytest.fixture(scope="module")
def address(shared_scratch: Path) -> Iterator[str]:
    directory = str(shared_scratch / "own")
    up = _trivisor(
        "up", "--dir", directory, "--service", str(EXAMPLE), "--http", "127.0.0.1:0", "--json"
    )
    assert up.returncode == 0, up.stderr
    yield json.loads(up.stdout)["http"]
    down = _trivisor("down", "--dir", directory)
    assert down.returncode == 0, down.stderr


@pytest.mark.readme
@pytest.mark.vm
def test_custom_service_is_voted_on_real_guests(address: str) -> None:
    def ask(method: str) -> tuple[str, str]:
        request = urllib.request.Request(f"http://{address}/", method=method)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.read().decode(), reply.headers["Trivisor-Vote"]

    counts = [ask("POST")[0] for _ in range(5)]
    assert counts == [f"{number}\n" for number in range(1, 6)]
    body, vote = ask("GET")
    assert body == "5\n"
    assert vote.startswith("2/3; seq=")
