"""``trivisor trace``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.commands import trace as module
from deploy.commands.trace import trace

FOUND: dict[str, Any] = {
    "seq": 1042,
    "ids": ["checkout-17"],
    "time": 1796052405.99,
    "outcome": "released",
    "need": 2,
    "batch": {"first": 1040, "requests": 3},
    "timeline": [
        {"at": 0.0, "event": "received"},
        {"at": 0.000019, "event": "ordered"},
        {"at": 0.002, "event": "answered", "replica": "g3"},
        {"at": 0.004, "event": "released", "agreed": 2, "dissent": ["g3"]},
    ],
    "replicas": {"g1": "agrees", "g2": "late", "g3": "dissents"},
}


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answer for the supervisor; give the list of paths that were asked for."""
    asked: list[str] = []

    def ask(_layout: object, _method: str, path: str) -> dict[str, Any]:
        asked.append(path)
        return FOUND

    monkeypatch.setattr(module, "ask", ask)
    return asked


def test_trace_prints_each_step_with_its_time_and_how_each_replica_voted(
    supervisor: list[str],
) -> None:
    done = CliRunner().invoke(trace, ["1042"])
    assert done.exit_code == 0
    assert supervisor == ["/trace/1042"]
    first, batch, *lines = done.stdout.splitlines()
    assert first == "request 1042, id checkout-17: released, received 2026-11-30 15:26:45 UTC"
    assert batch == "ordered in one batch with requests 1040 to 1042"
    assert lines[2].split() == ["2.000", "ms", "g3", "answered"]
    assert lines[3].split() == ["4.000", "ms", "released", "agreed=2", "dissent=g3"]
    assert [line.strip() for line in lines[4:]] == [
        "g1: agrees", "g2: agrees, after the decision", "g3: dissents",
    ]  # fmt: skip


def test_json_is_what_the_voter_answered(supervisor: list[str]) -> None:
    done = CliRunner().invoke(trace, ["checkout-17", "--json"])
    assert json.loads(done.stdout) == FOUND


@pytest.mark.parametrize("name", ["", "a b", "../status", "x" * 129, "a\n", "é", "%41", "a?b"])
def test_hostile_ids_are_a_usage_error(supervisor: list[str], name: str) -> None:
    done = CliRunner().invoke(trace, [name])
    assert done.exit_code == 2
    assert supervisor == []
