"""``trivisor monitor``: the past, bad input, and all of its actions on real guests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import trivisor
from deploy.host.spawn import python_command, python_environment
from guests.protocol.message import encode_request
from tests.deploy.replay.journals import JournalMaker, make_journal, put
from tests.deploy.replay.test_replay_command import node
from tests.errors import raises
from tests.test_trivisor_node import Node
from tests.waiting import wait_until

ATTACK = '[[request]]\nname = "attack"\npath = "attack"\n'


def fill(maker: JournalMaker) -> Iterator[None]:
    """Write 90 requests, one of them an attack, and three checkpoints."""
    for at in range(90):
        attack = encode_request("PUT", "/kv/..%2Fx", (), b"y")
        maker.write(attack if at == 50 else put(f"key-{at % 5}", "value"), "eve" * (at == 50))
        if at % 30 == 29:
            yield


def run(*words: str) -> Result:
    return CliRunner().invoke(trivisor.command, ["monitor", *words], standalone_mode=False)


@pytest.fixture
async def written(tmp_path: Path) -> Path:
    """Give the directory of a stopped node whose journal has an attack by eve."""
    directory = node(tmp_path / "node")
    await make_journal(directory / "journal", fill)
    (directory / "rules.toml").write_text(
        "[[request]]\nname = 'traversal'\npath = '\\.\\./'\naction = 'block'\n"
        "[[request]]\nname = 'never'\nbody = 'never seen'\n"
        "[[console]]\nname = 'oops'\nline = 'Oops'\n"
    )
    return directory


def test_dry_run_shows_what_rules_match_in_the_journal(written: Path) -> None:
    done = run(str(written / "rules.toml"), "--dir", str(written), "--dry-run")
    assert done.return_value == 1
    assert "90 writes from sequence number 1 on" in done.stderr
    assert "1 rules are not on requests" in done.stderr
    assert "traversal (block): 1 matches, at" in done.stdout
    assert "eve (1)" in done.stdout
    assert "never (alert): 0 matches" in done.stdout


def test_dry_run_as_json_lists_clients_and_numbers(written: Path) -> None:
    words = ("--dir", str(written), "--dry-run", "--json")
    done = run(str(written / "rules.toml"), *words)
    found = json.loads(done.stdout)
    assert (found["writes"], found["not_tried"]) == (90, 1)
    traversal, never = found["rules"]
    assert (traversal["matches"], traversal["callers"]) == (1, {"eve": 1})
    assert len(traversal["seqs"]) == 1
    assert never["matches"] == 0
    (written / "rules.toml").write_text("[[request]]\nname = 'never'\nbody = 'never seen'\n")
    assert run(str(written / "rules.toml"), *words).return_value == 0


def test_bad_input_is_refused_before_anything_starts(written: Path) -> None:
    (written / "wide.toml").write_text("[[request]]\nname = 'a'\naction = 'crash'\n")
    with raises("TV0781"):
        trivisor.command(
            ["monitor", str(written / "wide.toml"), "--dir", str(written)], standalone_mode=False
        )
    with raises("TV0701"):
        trivisor.command(
            ["monitor", str(written / "rules.toml"), "--dir", str(written)], standalone_mode=False
        )


class Monitored(Node):
    """A node on real guests, and a monitor of it."""

    @contextmanager
    def watched(self, rules: str) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
        """Run the monitor; give its process, and what it has reported once it has ended."""
        path = self.directory / "rules.toml"
        path.write_text(rules)
        command = python_command("trivisor", "monitor", path, "--json", "--dir", self.directory)
        reports: list[dict[str, Any]] = []
        with subprocess.Popen(
            command, env=python_environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            assert process.stdout is not None
            try:
                assert "watching by" in process.stderr.readline()
                yield process, reports
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                reports += map(json.loads, process.stdout)

    def http(self, method: str, path: str, body: bytes = b"") -> int:
        """Send a request over HTTP; return its status, 0 if the connection is closed instead."""
        url = f"http://{self.status()['http']}{path}"
        request = urllib.request.Request(url, body or None, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (urllib.error.URLError, ConnectionError):
            return 0

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.json("logs")["events"] if event["event"] == name]

    def answers(self) -> bool:
        return self.run("request", "GET", "/kv/none").returncode == 0


@pytest.fixture(scope="module")
def guests(shared_scratch: Path) -> Iterator[Monitored]:
    """Give a node of three guests that asks a monitor about each request."""
    running = Monitored(shared_scratch / "mon")
    socket = running.directory / "monitor.sock"
    done = running.run(
        "up", "--http", "127.0.0.1:0", "--allow-faults", "--function", f"unix:{socket}", "--json"
    )
    assert done.returncode == 0, done.stderr
    yield running
    running.run("down")


@pytest.mark.vm
def test_on_real_guests_attack_is_refused_blocked_and_reverted(guests: Monitored) -> None:
    rules = """
    [[request]]
    name = "traversal"
    path = '\\.\\./'
    inline = true
    action = "block"
    [[request]]
    name = "poison"
    body = "poison"
    action = "revert"
    [[request]]
    name = "secret"
    path = "secret"
    action = "block"
    [[memory]]
    name = "memory"
    contains = "a-text-that-only-the-attack-brings"
    every = 0.2
    """
    with guests.watched(rules) as (process, reports):
        assert guests.http("PUT", "/kv/a", b"early") == 201
        before = guests.status()["voter"]["seq"]
        assert guests.http("PUT", "/kv/b", b"poison") in (0, 201)
        wait_until(lambda: guests.events("reverted"), "the node is reverted")
        wait_until(guests.all_vote)
        assert guests.get("b")["status"] == 404
        assert guests.status()["voter"]["seq"] > before
        guests.put("c", "a-text-that-only-the-attack-brings")
        wait_until(lambda: any(e["rule"] == "memory" for e in guests.events("rule matched")))
        assert guests.http("GET", "/kv/%2e%2e%2fetc") == 0
        assert guests.http("GET", "/kv/a") == 403
        assert guests.json("request", "GET", "/kv/c")["status"] == 200, "others are served"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    actions = {report["rule"]: report["outcome"] for report in reports}
    assert actions["traversal"] == "refused and blocked by the voter"
    assert "writes are lost" in actions["poison"]
    assert guests.http("GET", "/kv/a") in (403, 503), "without the monitor nothing is served"


@pytest.mark.long
@pytest.mark.vm
def test_on_real_guests_killed_supervisor_leaves_the_node_before_or_after_a_revert(
    guests: Monitored,
) -> None:
    rules = '[[request]]\nname = "poison"\nbody = "poison"\naction = "revert"\n'
    rules += '[[request]]\nname = "never"\nbody = "never"\ninline = true\naction = "block"\n'
    with guests.watched(rules) as (process, _):
        wait_until(guests.answers)
        guests.put("kept", "early")
        supervisor = guests.status()["supervisor"]["pid"]
        restarts = guests.status()["supervisor"]["restarts"]
        guests.run("request", "PUT", "/kv/b", "--data", "poison", "--timeout", "1")
        wait_until(lambda: (guests.directory / "revert.json").exists() or guests.events("reverted"))
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: guests.run("status").returncode == 0, "the next supervisor answers")
        wait_until(lambda: guests.status()["supervisor"]["restarts"] > restarts)
        wait_until(guests.all_vote, seconds=240)
        wait_until(guests.answers)
        assert not (guests.directory / "revert.json").exists()
        assert guests.get("b")["status"] in (200, 404)
        process.send_signal(signal.SIGTERM)


@pytest.mark.long
@pytest.mark.vm
def test_on_real_guests_crash_stops_the_node_until_a_person_allows_it(guests: Monitored) -> None:
    rules = '[[request]]\nname = "bomb"\nbody = "bomb"\naction = "crash"\n'
    rules += '[[request]]\nname = "never"\nbody = "never"\ninline = true\naction = "block"\n'
    with guests.watched(rules) as (process, reports):
        wait_until(guests.answers)
        pids = guests.guest_pids()
        guests.run("request", "PUT", "/kv/b", "--data", "bomb", "--timeout", "1")
        assert process.wait(60) == 1
    assert [report["outcome"] for report in reports] == ["stopped the node"]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    wait_until(lambda: guests.run("status").returncode == 5)
    refused = guests.run("up", "--http", "127.0.0.1:0")
    assert "TV0785" in refused.stderr
    (guests.directory / "halted.json").unlink()
