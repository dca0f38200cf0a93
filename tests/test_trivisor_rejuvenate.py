"""Real guests are replaced under load, as a user orders it.  These tests share a node."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_trivisor_node import Node
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode

pytestmark = pytest.mark.vm


class Load(threading.Thread):
    """A client with one HTTP connection, which it never opens again."""

    method, path = "PUT", "/kv/k"
    pause = 0.0  # seconds between a reply and the next request

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.answered = 0
        self.failed: list[str] = []
        self._stop_it = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.connect()
            sock = connection.sock
            while not self._stop_it.is_set():
                target = f"{self.path}{self.answered % 100}" if self.method == "PUT" else self.path
                body = b"x" * 100 if self.method == "PUT" else None
                connection.request(self.method, target, body=body)
                response = connection.getresponse()
                response.read()
                if response.status not in (200, 201, 204):
                    self.failed.append(f"{response.status} after {self.answered} requests")
                if connection.sock is not sock:
                    self.failed.append(f"connection lost after {self.answered} requests")
                    return
                self.answered += 1
                if self.pause:
                    self._stop_it.wait(self.pause)
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
        finally:
            connection.close()

    def __enter__(self) -> Load:
        self.start()
        wait_until(lambda: self.answered > 50 or bool(self.failed))
        return self

    def __exit__(self, *_: object) -> None:
        before = self.answered
        wait_until(lambda: self.answered > before + 50 or bool(self.failed))
        self._stop_it.set()
        self.join()


class Votes(threading.Thread):
    """Watches how many replicas vote, as the voter reports it."""

    def __init__(self, node: Node) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.fewest = 99
        self.seen: set[str] = set()
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(0.1):
            guests = self.node.status()["guests"]
            voters = [each for each in guests if each["role"] == "voter"]
            active = sum(each["replica"]["state"] == "active" for each in voters)
            self.fewest = min(self.fewest, len(voters), active)
            self.seen |= {f"{each['role']} {each['replica']['state']}" for each in guests}

    def __enter__(self) -> Votes:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join()


@pytest.fixture(scope="module")
def node(shared_scratch: Path) -> Iterator[Node]:
    """Give a node of three guests and a spare slot."""
    node = Node(shared_scratch / "rejuvenated")
    done = node.up()
    assert done.returncode == 0, done.stderr
    try:
        yield node
    finally:
        node.run("down")
    assert node.processes() == {}


def names(node: Node) -> list[str]:
    return [guest["name"] for guest in node.status()["guests"]]


def events(node: Node, name: str) -> list[str]:
    lines = node.run("logs", "--lines", "1000").stdout.splitlines()
    return [line for line in lines if name in line]


@pytest.mark.readme
def test_all_guests_are_replaced_under_load_and_no_client_notices(node: Node) -> None:
    status = node.status()
    before = {guest["pid"] for guest in status["guests"]}
    with Load(status["http"]) as load, Votes(node) as votes:
        done = node.json("rejuvenate", "--all")["rejuvenated"]
    assert load.failed == []
    assert [each["guest"] for each in done] == ["g1", "g2", "g3"]
    assert [each["slot"] for each in done] == ["g4", "g1", "g2"]
    assert {each["how"] for each in done} == {"cloned"}
    assert votes.fewest == 3, votes.seen
    after = node.status()
    assert after["spare"] == ["g3"]
    assert not before & {guest["pid"] for guest in after["guests"]}
    assert all(guest["replica"]["dissents"] == 0 for guest in after["guests"])
    assert node.all_vote()


def test_guest_boots_with_a_share_of_the_processor_and_takes_a_place(node: Node) -> None:
    old = names(node)[0]
    with Load(node.status()["http"]) as load:
        [done] = node.json("rejuvenate", old, "--by", "boot", "--boot-share", "60")["rejuvenated"]
    assert load.failed == []
    assert (done["how"], done["share"]) == ("booted", 60)
    assert done["bounded"] in ("cgroup v1", "cgroup v2", "priority")
    assert old not in names(node)
    assert node.all_vote()


def test_guest_is_restored_in_place(node: Node) -> None:
    before = node.status()["guests"]
    [done] = node.json("rejuvenate", before[0]["name"], "--in-place")["rejuvenated"]
    assert done["by"] == "in-place"
    assert [(each["name"], each["pid"]) for each in node.status()["guests"]] == [
        (each["name"], each["pid"]) for each in before
    ]
    assert node.all_vote()


@pytest.mark.long
@pytest.mark.parametrize("role", ["voter", "supervisor"])
def test_process_that_is_killed_while_a_guest_boots_leaves_the_state_before_or_after(
    node: Node, role: str
) -> None:
    status = node.status()
    old, [spare] = names(node)[0], status["spare"]
    with Load(status["http"]) as load:
        command = node.command("rejuvenate", old, "--by", "boot", "--json")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_until(lambda: _state(node, spare) == "booting", seconds=60)
            os.kill(status[role]["pid"], signal.SIGKILL)
            process.communicate(timeout=300)
        assert process.returncode in (ExitCode.OK, ExitCode.FAILED)
        wait_until(lambda: node.status()["operation"] is None and node.all_vote(), seconds=120)
    assert load.failed == [] or role == "voter"
    changed = process.returncode == ExitCode.OK
    assert changed == (role == "voter"), "a voter is restarted, and the operation goes on"
    assert (old in names(node)) != changed
    assert (spare in names(node)) == changed
    if role == "supervisor":
        found = events(node, "operation found")
        assert re.search("rolled back", found[-1]), found


def _state(node: Node, name: str) -> str:
    guests: list[dict[str, Any]] = node.status()["guests"]
    return next((str(each["vm"]) for each in guests if each["name"] == name), "")


def test_unknown_guest_and_wrong_options_are_rejected(node: Node) -> None:
    done = node.run("rejuvenate", "g9")
    assert (done.returncode, "error TV0114:" in done.stderr) == (ExitCode.USAGE, True)
    for words in ((), ("g1", "--all"), ("g1", "--in-place", "--by", "boot")):
        assert node.run("rejuvenate", *words).returncode == ExitCode.USAGE
    assert node.run("rejuvenate", "g1", "--boot-share", "101").returncode == ExitCode.USAGE
    assert node.all_vote()


def test_down_after_all_that_leaves_nothing(node: Node) -> None:
    assert node.run("down").returncode == 0
    assert node.processes() == {}
    left = {path.name for path in node.directory.iterdir()}
    assert not {name for name in left if name.endswith((".qcow2", ".link", ".con", ".lie"))}
    done = node.up()
    assert done.returncode == 0, done.stderr
    assert node.all_vote()
