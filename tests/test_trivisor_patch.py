"""Real guests are patched under load, as a user orders it.  These tests share a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.supervisor.test_patching_node import CRASHES, FIXED, RULES, SERVICE
from tests.test_trivisor_node import UP, Node
from tests.test_trivisor_rejuvenate import Load
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode

pytestmark = pytest.mark.vm


class Halves(Load):
    """Asks what the patch changes, on one connection.

    It is so slow that all differences can be kept, however long the commands of a test take.
    """

    method, path = "GET", "/half"
    pause = 0.03


class Totals(Load):
    """Asks what the patch does not change, all the time, on one connection."""

    method, path = "GET", "/"


@pytest.fixture(scope="module")
def node(shared_scratch: Path) -> Iterator[Node]:
    """Give a node of three guests that run a service with a bug."""
    node = Node(shared_scratch / "patched")
    service = shared_scratch / "totals.py"
    service.write_text(SERVICE)
    done = node.run(*UP, "--allow-faults", "--json", "--service", str(service))
    assert done.returncode == 0, done.stderr
    node.run("request", "POST", "/add", "--data", "7")
    try:
        yield node
    finally:
        node.run("down")
    assert node.processes() == {}


def write(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


def patch(node: Node, *words: str, code: int = 0) -> dict[str, Any]:
    """Run a command of patches; return what it prints, or the error."""
    done = node.run("patch", *words, "--json")
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout or done.stderr))


def half(node: Node) -> str:
    return node.run("request", "GET", "/half").stdout.strip()


def test_bad_input_is_refused_before_anything_is_started(node: Node, tmp_path: Path) -> None:
    before = node.guest_pids()
    wrong = write(tmp_path, "wrong.py", SERVICE + "\n\ndef (")
    refused = patch(node, "start", "--service", wrong, code=ExitCode.USAGE)
    line = SERVICE.count("\n") + 3
    assert refused["error_code"] == "TV0402"
    assert f"wrong.py, line {line}" in refused["error"]
    other = write(
        tmp_path, "other.py", SERVICE.replace('"totals"', '"totals"\n    state_format = 2')
    )
    assert patch(node, "start", "--service", other, code=1)["error_code"] == "TV0772"
    everything = write(tmp_path, "all.toml", '[[expect]]\nname = "x"\npath = ".*"\n')
    fixed = write(tmp_path, "fixed.py", FIXED)
    words = ("start", "--service", fixed, "--expect", everything)
    assert patch(node, *words, code=ExitCode.USAGE)["error_code"] == "TV0773"
    assert patch(node, "promote", code=ExitCode.USAGE)["error_code"] == "TV0770"
    assert patch(node, "status", code=1)["error_code"] == "TV0770"
    assert patch(node, "start", "--image", str(tmp_path), code=2)["error_code"] == "TV0769"
    same = node.status()["service"]
    assert patch(node, "start", "--service", same, code=1)["error_code"] == "TV0769"
    assert node.run("patch", "start").returncode == ExitCode.USAGE
    assert node.guest_pids() == before


@pytest.mark.long
def test_patch_that_does_not_boot_is_rejected(node: Node, tmp_path: Path) -> None:
    lost = write(tmp_path, "lost.py", "import sqlite3\n" + SERVICE)  # a guest has none
    done = patch(node, "start", "--service", lost, code=1)
    assert done["error_code"] == "TV0775"
    assert node.status()["patch"]["phase"] == "rejected"
    wait_until(lambda: node.status()["spare"] == ["g4"] and node.all_vote())


@pytest.mark.long
def test_bad_patch_is_rejected_and_no_client_notices(node: Node, tmp_path: Path) -> None:
    bad = write(tmp_path, "bad.py", CRASHES)
    with Halves(node.status()["http"]) as load:
        patch(node, "start", "--service", bad, "--auto", "--after", "100000")
        wait_until(lambda: node.status()["patch"]["phase"] == "rejected")
    assert load.failed == []
    found = patch(node, "diff", code=ExitCode.FAILED)["differences"]
    assert {each["label"] for each in found} >= {"crash"}
    assert node.all_vote()
    assert half(node) == "4"


@pytest.mark.readme
def test_fix_is_promoted_under_load(node: Node, tmp_path: Path) -> None:
    fixed = write(tmp_path, "fixed.py", FIXED)
    expected = write(tmp_path, "expected.toml", RULES)
    address = node.status()["http"]
    with Totals(address) as others, Halves(address) as load:
        started = patch(node, "start", "--service", fixed, "--after", "200")
        assert started["phase"] == "quarantine"
        again = patch(node, "start", "--service", fixed, code=1)
        assert again["error_code"] == "TV0771"
        wait_until(lambda: node.status()["patch"]["quarantine"]["unexpected"])
        found = patch(node, "diff", code=ExitCode.FAILED)["differences"]
        assert (found[0]["label"], found[0]["rule"]) == ("body", None)
        assert patch(node, "promote", code=1)["error_code"] == "TV0774"
        tried = patch(node, "rules", expected)
        assert tried["unexpected"] == 0
        assert patch(node, "status")["quarantine"]["unexpected"] != {}
        patch(node, "rules", expected, "--use")
        wait_until(lambda: not patch(node, "status")["quarantine"]["waits_for"])
        began = time.monotonic()
        done = patch(node, "promote")
        seconds = time.monotonic() - began
    assert done["phase"] == "done"
    assert load.failed == [], f"after {load.answered} requests"
    assert others.failed == [], f"after {others.answered} requests"
    assert half(node) == "3.5"
    status = node.status()
    assert status["service"] == fixed
    assert len(status["patch"]["promoted"]) == 3
    wait_until(node.all_vote)
    print(f"promoted in {seconds:.1f} s, {load.answered + others.answered} requests, none failed")
    # A patched guest is repaired with the patch, and a node that starts anew has it.
    guest = status["guests"][0]
    os.kill(guest["pid"], signal.SIGKILL)
    wait_until(lambda: node.guest(guest["name"])["pid"] not in (None, guest["pid"]))
    wait_until(node.all_vote)
    assert half(node) == "3.5"
    assert node.run("down").returncode == 0
    refused = node.run(*UP, "--allow-faults", "--service", str(tmp_path.parent / "totals.py"))
    assert refused.returncode != 0
    done_up = node.run(*UP, "--allow-faults", "--json", "--service", fixed)
    assert done_up.returncode == 0, done_up.stderr
    assert half(node) == "3.5"


@pytest.mark.long
def test_killed_supervisor_continues_a_patch(node: Node, tmp_path: Path) -> None:
    text = FIXED.replace("%.1f", "%.2f")
    again = write(tmp_path, "again.py", text)
    expected = write(tmp_path, "expected.toml", RULES.replace("[05]", "[05]0"))
    with Halves(node.status()["http"]) as load:
        patch(node, "start", "--service", again, "--after", "50", "--expect", expected)
        wait_until(lambda: not patch(node, "status")["quarantine"]["waits_for"])
        command = node.command("patch", "promote", "--json")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_until(lambda: node.status()["patch"]["phase"] == "promoting")
            os.kill(node.status()["supervisor"]["pid"], signal.SIGKILL)
            process.communicate(timeout=120)
        wait_until(lambda: node.status()["patch"]["phase"] == "done", seconds=120)
    assert load.failed == []
    assert half(node) == "3.50"
    wait_until(node.all_vote)


@pytest.mark.long
def test_debian_package_is_added_by_a_patch_and_abort_ends_it(node: Node) -> None:
    with Halves(node.status()["http"]) as load:
        started = patch(node, "start", "--package", "libexpat1")
        assert started["title"] == "package libexpat1"
        wait_until(lambda: node.status()["patch"]["quarantine"]["compared"] > 50)
        assert patch(node, "status")["quarantine"]["unexpected"] == {}
        assert patch(node, "abort", "--reason", "enough")["reason"] == "enough"
    assert load.failed == []
    wait_until(lambda: node.status()["operation"] is None and node.all_vote())
