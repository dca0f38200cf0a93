"""The command as a user types it, on three real guests that the tests of this file share.

Each test leaves the node as it found it: three guests that vote.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.host.identity import identify
from voter.commands.terminal import ExitCode

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[1]


class Node:
    """A node's directory, and the command on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *words: str, timeout: float = 150.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trivisor", *words, "--dir", str(self.directory)],
            cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def json(self, *words: str) -> dict[str, Any]:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def up(self) -> subprocess.CompletedProcess[str]:
        # A deadline is no measurement: three guests on two busy cores have taken a minute to boot.
        words = ("--http", "127.0.0.1:0", "--allow-faults", "--boot-deadline", "120")
        return self.run("up", *words, "--json")

    def guest(self, name: str) -> dict[str, Any]:
        return next(dict(g) for g in self.json("status")["guests"] if g["name"] == name)

    def states(self) -> list[str]:
        return [guest["state"] for guest in self.json("status")["guests"]]

    def put(self, key: str, value: str) -> int:
        return self.run("request", "PUT", f"/kv/{key}", "--data", value).returncode

    def get(self, key: str) -> dict[str, Any]:
        return self.json("request", "GET", f"/kv/{key}")

    def processes(self) -> dict[int, str]:
        """Processes that name this directory on their command line, but for pytest's own."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    if os.fsencode(self.directory) in line:
                        found[int(entry.name)] = line.replace(b"\0", b" ").decode()
        return found


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until the condition holds; the command gives no event for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that init has not reaped yet does not."""
    return identify(pid) is not None


@pytest.fixture(scope="module")
def node(shared_scratch: Path) -> Iterator[Node]:
    """Give a node of three guests, brought up by `trivisor up`; taken down by `trivisor down`."""
    it = Node(shared_scratch / "cli")
    done = it.up()
    assert done.returncode == 0, done.stderr
    try:
        yield it
    finally:
        it.run("down")
    assert it.processes() == {}


def test_up_returns_when_all_guests_vote(node: Node) -> None:
    said = node.json("status")
    assert (said["vote"], said["standing"], said["phase"]) == ("2/3", "ready", "up")
    assert [(g["name"], g["state"]) for g in said["guests"]] == [
        ("g1", "active"), ("g2", "active"), ("g3", "active"),
    ]  # fmt: skip
    assert all(
        b"qemu" in Path(f"/proc/{g['pid']}/exe").readlink().name.encode() for g in said["guests"]
    )
    assert alive(said["voter"]["pid"])
    assert alive(said["supervisor"]["pid"])
    assert said["accel"] in ("kvm", "tcg")
    assert len(said["image"]) == 64


def test_status_for_people_shows_the_same(node: Node) -> None:
    done = node.run("status")
    assert done.returncode == 0
    assert "ready" in done.stdout
    assert all(name in done.stdout for name in ("g1", "g2", "g3", "active"))


def test_requests_go_through_the_vote_by_command_and_by_http(node: Node) -> None:
    assert node.put("colour", "blue") == 0
    said = node.get("colour")
    assert (said["status"], said["body"]) == (200, "blue")
    assert said["vote"]["agreed"] >= 2
    url = f"http://{node.json('status')['http']}/kv/colour"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"blue"
        assert answer.headers["Trivisor-Vote"].startswith("2/3")


def test_a_second_up_is_refused_and_harms_nothing(node: Node) -> None:
    until(lambda: node.json("status")["voter"]["standby"] is not None)  # it takes its time
    before = node.processes()
    done = node.up()
    assert done.returncode == ExitCode.ALREADY_UP
    assert str(node.json("status")["supervisor"]["pid"]) in done.stderr
    assert node.processes() == before


def test_a_crash_is_a_process_gone_and_is_masked_until_healed(node: Node) -> None:
    pid = node.guest("g2")["pid"]
    said = node.json("inject", "crash", "g2")
    assert str(pid) in said["proof"]
    assert not alive(pid)
    assert node.put("colour", "red") == 0
    assert node.get("colour")["body"] == "red"
    guest = node.guest("g2")
    assert (guest["state"], guest["pid"], guest["fault"]["kind"]) == ("dead", None, "crash")
    assert node.json("heal", "g2")["fault"] == "crash"
    after = node.guest("g2")
    assert after["state"] == "active"
    assert after["pid"] not in (None, pid)


def test_a_liar_is_outvoted_and_named(node: Node) -> None:
    node.put("colour", "green")
    node.json("inject", "corrupt-reply", "g3")
    said = node.get("colour")
    assert said["body"] == "green"
    until(lambda: node.guest("g3")["state"] == "expelled")
    assert node.guest("g3")["replica"]["reason"] == "dissent"
    assert node.guest("g3")["replica"]["dissents"] >= 1
    node.json("heal", "g3")
    assert node.states() == ["active"] * 3


@pytest.mark.parametrize("kind,state", [("hang", "paused"), ("garbage", "expelled")])
def test_other_faults_are_masked_and_healed(node: Node, kind: str, state: str) -> None:
    pid = node.guest("g1")["pid"]
    node.json("inject", kind, "g1")
    assert node.put("n", kind) == 0
    assert node.get("n")["body"] == kind
    until(lambda: node.guest("g1")["state"] == state)
    assert node.guest("g1")["pid"] == pid
    node.json("heal", "g1")
    assert node.states() == ["active"] * 3


def test_a_slow_guest_still_votes(node: Node) -> None:
    node.json("inject", "slow", "g2")
    assert node.put("n", "slow") == 0
    until(lambda: node.guest("g2")["replica"]["state"] == "active")
    node.json("heal", "g2")
    # On a busy host it may have been too slow just before, and be on its way back.
    until(lambda: node.states() == ["active"] * 3)


def test_a_flipped_bit_of_state_is_found_when_it_is_read(node: Node) -> None:
    proof = node.json("inject", "corrupt-state", "g1")["proof"]
    assert "read back" in proof
    key = proof.split()[1].rstrip(":")
    assert node.guest("g1")["state"] == "active"  # latent until it is read
    assert node.get(key)["status"] == 200
    until(lambda: node.guest("g1")["state"] == "expelled")
    assert node.guest("g1")["replica"]["reason"] == "dissent"
    node.json("heal", "g1")
    assert node.states() == ["active"] * 3


def test_with_two_guests_bad_requests_are_refused_with_a_code_of_their_own(node: Node) -> None:
    node.put("colour", "kept")
    node.json("inject", "crash", "g1")
    node.json("inject", "hang", "g2")
    # The first request after the hang may be ordered before the voter knows of it.
    node.run("request", "PUT", "/kv/x", "--data", "1", "--timeout", "15")
    until(lambda: node.json("status")["standing"] == "refusing")
    done = node.run("request", "GET", "/kv/colour", "--timeout", "3")
    assert done.returncode == ExitCode.NO_MAJORITY
    assert "no majority" in done.stderr
    node.json("heal", "g1")
    assert node.get("colour")["body"] == "kept"
    node.json("heal", "g2")
    assert node.states() == ["active"] * 3


def test_a_guest_that_dies_unasked_is_put_back_by_itself(node: Node) -> None:
    pid = node.guest("g3")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert node.put("colour", "violet") == 0
    until(lambda: node.guest("g3")["state"] == "active" and node.guest("g3")["pid"] != pid)
    assert node.guest("g3")["repairs"]["count"] >= 1


def test_logs_show_what_happened_and_what_a_guest_said(node: Node) -> None:
    said = node.run("logs").stdout
    assert "repaired" in said
    assert "fault injected" in said
    assert "trivisor: ready" in node.run("logs", "g1").stdout
    assert node.run("logs", "nonsense").returncode == ExitCode.FAILED


def test_faults_of_an_unknown_guest_are_told(node: Node) -> None:
    done = node.run("inject", "crash", "g7")
    assert done.returncode == ExitCode.FAILED
    assert "it has g1, g2, g3" in done.stderr


def test_a_killed_supervisor_comes_back_by_itself_and_takes_over(node: Node) -> None:
    node.put("colour", "black")
    before = node.json("status")
    for number in range(1, 3):
        pid = node.json("status")["supervisor"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert node.get("colour")["body"] == "black"
        until(lambda: node.json("status")["phase"] == "up")  # the command waits for the next one
        after = node.json("status")
        assert after["supervisor"]["pid"] != pid
        assert after["supervisor"]["restarts"] == number
        assert after["voter"]["pid"] == before["voter"]["pid"]
        assert [g["pid"] for g in after["guests"]] == [g["pid"] for g in before["guests"]]
        assert after["http"] == before["http"]
    assert "supervisor restarted" in node.run("logs").stdout
    # What it took over is fully its own: it can break it and put it back.
    node.json("inject", "crash", "g1")
    node.json("heal", "g1")
    assert node.states() == ["active"] * 3


def test_no_client_sees_that_voter_and_supervisor_are_killed(node: Node) -> None:
    """Checked requests all the while: each adds one, so that none may be lost or done twice."""
    before = node.json("status")
    with counting(node) as counts:
        for names in (("voter",), ("supervisor",), ("voter", "supervisor"), ("voter",)):
            status = node.json("status")
            told = counts()
            for name in names:
                os.kill(status[name]["pid"], signal.SIGKILL)
            until(lambda told=told: counts() > told)  # type: ignore[misc]
            until(lambda: node.states() == ["active"] * 3)
            after = node.json("status")
            assert all(after[name]["pid"] != status[name]["pid"] for name in names)
    assert [g["pid"] for g in after["guests"]] == [g["pid"] for g in before["guests"]]
    assert after["http"] == before["http"]
    assert not after["voter"]["abandoned"]


@contextlib.contextmanager
def counting(node: Node) -> Iterator[Callable[[], int]]:
    """Have requests made until the end of the block; give how many there were.

    Raises AssertionError at the end if a request failed, was lost or was done twice.
    """
    words = [sys.executable, "-m", "tests.deploy.counting", str(node.directory / "native.sock")]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, text=True
        ) as client,
    ):

        def count() -> int:
            # pread: the file's offset is the client's.
            text = os.pread(said.fileno(), 1 << 20, 0).decode()
            assert client.poll() is None, text
            return text.count("\n")

        yield count
        assert client.stdin is not None
        client.stdin.close()
        assert client.wait(timeout=60) == 0, os.pread(said.fileno(), 1 << 20, 0).decode()


def kill_all(node: Node, *, watchdog: bool = True) -> None:
    """Kill the node's processes in one moment, as a power failure does."""
    status = node.json("status")
    pids = [status["voter"]["pid"], *(g["pid"] for g in status["guests"])]
    pids += [status["supervisor"]["pid"], *node.processes()]
    meant = {*pids} - ({status["supervisor"]["watchdog"]} if not watchdog else set())
    for pid in meant:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in meant:
        until(lambda pid=pid: not alive(pid))  # type: ignore[misc]


def test_up_takes_over_from_a_killed_supervisor_without_a_watchdog(node: Node) -> None:
    node.put("colour", "white")
    before = node.json("status")
    os.kill(before["supervisor"]["watchdog"], signal.SIGKILL)
    until(lambda: node.json("status")["supervisor"]["watchdog"] is None)
    pid = before["supervisor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert node.get("colour")["body"] == "white"
    done = node.run("status", "--json")
    assert done.returncode == ExitCode.NOT_UP
    assert json.loads(done.stdout)["orphans"].keys() == {"voter", "proxy", "g1", "g2", "g3"}
    # Other options than those it runs with: refused, and it goes on.
    done = node.run("up", "--http", "127.0.0.1:0")
    assert done.returncode == ExitCode.ALREADY_UP
    assert node.up().returncode == 0
    after = node.json("status")
    assert after["voter"]["pid"] == before["voter"]["pid"]
    assert [g["pid"] for g in after["guests"]] == [g["pid"] for g in before["guests"]]
    assert after["http"] == before["http"]
    # Its sockets are the voter's alone now; the next voter binds them anew.
    os.kill(after["voter"]["pid"], signal.SIGKILL)
    until(lambda: node.states() == ["active"] * 3)
    assert node.json("status")["http"] == before["http"]
    assert node.get("colour")["body"] == "white"


def test_after_a_loss_of_power_up_comes_back_with_all_that_was_acknowledged(node: Node) -> None:
    for number in range(20):
        assert node.put(f"power-{number}", str(number)) == 0
    kill_all(node)
    assert node.run("status").returncode == ExitCode.NOT_UP
    done = node.up()
    assert done.returncode == 0, done.stderr
    for number in range(20):
        assert node.get(f"power-{number}")["body"] == str(number)
    durability = node.json("status")["durability"]
    assert durability["kind"] == "fsync"
    assert durability["journal"]


def test_node_comes_back_automatically_after_all_but_the_watchdog_died(node: Node) -> None:
    node.put("colour", "grey")
    http = node.json("status")["http"]
    kill_all(node, watchdog=False)
    until(lambda: node.states() == ["active"] * 3, 120)
    assert node.json("status")["http"] == http
    assert node.get("colour")["body"] == "grey"


def test_down_leaves_nothing_also_where_the_supervisor_is_gone(node: Node) -> None:
    """The last test of this node but for journals; the fixture's own `down` finds it down."""
    pid = node.json("status")["supervisor"]["pid"]
    # Somebody else's process that speaks of the directory, as an editor or a log viewer does.
    words = [sys.executable, "-c", "import time; time.sleep(300)", str(node.directory / "g1.qcow2")]
    with subprocess.Popen(words) as bystander:
        os.kill(pid, signal.SIGKILL)  # `down` comes before its watchdog restarts it
        done = node.run("down")
        assert done.returncode == 0, done.stderr
        assert node.processes().keys() == {bystander.pid}
        assert bystander.poll() is None
        bystander.kill()
    assert node.run("down").returncode == ExitCode.NOT_UP
    assert node.run("status").returncode == ExitCode.NOT_UP
    assert not list(node.directory.glob("*.sock"))


def test_a_journal_is_thrown_away_only_if_that_is_said_twice(node: Node) -> None:
    """After the node is down; nothing is started."""
    journal = node.directory / "journal"
    assert journal.is_dir()
    done = node.run("up", "--http", "127.0.0.1:0", "--durability", "none")
    assert done.returncode == ExitCode.FAILED
    assert "--fresh" in done.stderr
    done = node.run("up", "--http", "127.0.0.1:0", "--fresh")
    assert done.returncode == ExitCode.USAGE
    assert str(journal) in done.stderr
    assert journal.is_dir()
    # A service that is none ends `up` before anything is started.
    done = node.run("up", "--fresh", "--yes", "--service", "nonsense")
    assert done.returncode == ExitCode.USAGE
    assert journal.is_dir()
    done = node.run("up", "--fresh", "--yes", "--boot-deadline", "0.01", "--http", "127.0.0.1:0")
    assert done.returncode == ExitCode.FAILED
    assert "never became ready" in done.stderr
    assert not journal.exists()
    assert node.processes() == {}


def test_ctrl_c_before_ready_takes_everything_down_again(shared_scratch: Path) -> None:
    node = Node(shared_scratch / "stop")
    words = [sys.executable, "-m", "trivisor", "up", "--http", "127.0.0.1:0"]
    with subprocess.Popen(
        [*words, "--dir", str(node.directory)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as up:
        until(lambda: any("qemu" in line for line in node.processes().values()), 90)
        up.send_signal(signal.SIGINT)
        _, said = up.communicate(timeout=60)
    assert up.returncode == ExitCode.INTERRUPTED, said
    assert "Traceback" not in said
    assert node.processes() == {}
    assert node.run("status").returncode == ExitCode.NOT_UP


def test_a_guest_that_never_comes_up_is_told_with_its_last_words(shared_scratch: Path) -> None:
    service = shared_scratch / "broken.py"
    service.write_text("raise RuntimeError('cannot be loaded in a guest')\n")
    node = Node(shared_scratch / "never")
    done = node.run(
        "up", "--http", "127.0.0.1:0", "--service", str(service), "--guests", "1",
        "--boot-deadline", "20",
    )  # fmt: skip
    assert done.returncode == ExitCode.FAILED
    assert "never became ready" in done.stderr
    assert "cannot be loaded in a guest" in done.stderr
    assert node.processes() == {}
