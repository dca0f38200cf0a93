"""The command as a user types it, on three real guests that the tests of this file share.

Each test leaves the node as it found it: three guests vote.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.host.identity import identify
from deploy.host.spawn import python_command, python_environment
from tests.deploy.conftest import NASTY
from tests.other_user import PROBE, run_as
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode

pytestmark = pytest.mark.vm

UP = ("up", "--http", "127.0.0.1:0")


class Node:
    """A node's directory, and the command on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, *words: str) -> list[str]:
        return python_command("trivisor", *words, "--dir", self.directory)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=python_environment(), capture_output=True, text=True,
            timeout=150,
        )  # fmt: skip

    def json(self, *words: str) -> dict[str, Any]:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.run(*UP, "--allow-faults", "--json")

    def status(self) -> dict[str, Any]:
        return self.json("status")

    def guest(self, name: str) -> dict[str, Any]:
        return next(dict(g) for g in self.status()["guests"] if g["name"] == name)

    def all_vote(self) -> bool:
        return {guest["state"] for guest in self.status()["guests"]} == {"active"}

    def guest_pids(self) -> list[int]:
        return [guest["pid"] for guest in self.status()["guests"]]

    def heal(self, name: str) -> dict[str, Any]:
        healed = self.json("heal", name)
        assert self.guest(name)["state"] == "active"
        return healed

    def put(self, key: str, value: str) -> None:
        done = self.run("request", "PUT", f"/kv/{key}", "--data", value)
        assert done.returncode == 0, done.stderr

    def get(self, key: str) -> dict[str, Any]:
        return self.json("request", "GET", f"/kv/{key}")

    def processes(self) -> dict[int, str]:
        """Processes whose command line contains this directory, except pytest's own."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    if os.fsencode(self.directory) in line:
                        found[int(entry.name)] = line.replace(b"\0", b" ").decode()
        return found


def alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    return identify(pid) is not None


@pytest.fixture(scope="module")
def node(shared_scratch: Path) -> Iterator[Node]:
    """Give a node of three guests, brought up by `trivisor up`; taken down by `trivisor down`.

    So every command of these tests meets a directory whose name has to be encoded everywhere, and
    is as long as a node's can be.
    """
    longest = 107 - len("/supervisor.sock")
    name = f"{NASTY}c".ljust(longest - len(os.fsencode(shared_scratch / NASTY)) + len(NASTY), "c")
    assert len(os.fsencode(shared_scratch / name)) == longest
    node = Node(shared_scratch / name)
    done = node.up()
    assert done.returncode == 0, done.stderr
    try:
        yield node
    finally:
        node.run("down")
    assert node.processes() == {}


@pytest.mark.readme
def test_up_returns_when_all_guests_vote(node: Node) -> None:
    status = node.status()
    assert (status["vote"], status["status"], status["phase"]) == ("2/3", "ready", "up")
    assert [(guest["name"], guest["state"]) for guest in status["guests"]] == [
        ("g1", "active"), ("g2", "active"), ("g3", "active"),
    ]  # fmt: skip
    assert all("qemu" in Path(f"/proc/{pid}/exe").readlink().name for pid in node.guest_pids())
    assert alive(status["voter"]["pid"])
    assert alive(status["supervisor"]["pid"])
    assert status["accel"] in ("kvm", "tcg")
    assert len(status["image"]) == 64
    text = node.run("status").stdout
    assert all(word in text for word in ("ready", "g1", "g2", "g3", "active"))


@pytest.mark.readme
def test_requests_are_voted_by_command_and_by_http(node: Node) -> None:
    node.put("colour", "blue")
    reply = node.get("colour")
    assert (reply["status"], reply["body"]) == (200, "blue")
    assert reply["vote"]["agreed"] >= 2
    url = f"http://{node.status()['http']}/kv/colour"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"blue"
        assert answer.headers["Trivisor-Vote"].startswith("2/3")
        assert answer.headers["Cache-Control"] == "no-cache"
    head = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(head, timeout=10) as answer:
        assert (answer.headers["Content-Length"], answer.read()) == ("4", b"")


@pytest.mark.readme
def test_second_up_is_rejected_and_changes_nothing(node: Node) -> None:
    wait_until(lambda: node.status()["voter"]["standby"] is not None)  # it starts late
    before = node.processes()
    done = node.up()
    assert done.returncode == ExitCode.ALREADY_UP
    assert str(node.status()["supervisor"]["pid"]) in done.stderr
    assert node.processes() == before


# ---- faults and repair


@pytest.mark.readme
def test_crash_ends_a_process_and_is_masked_until_healed(node: Node) -> None:
    pid = node.guest("g2")["pid"]
    assert str(pid) in node.json("inject", "crash", "g2")["proof"]
    assert not alive(pid)
    node.put("colour", "red")
    assert node.get("colour")["body"] == "red"
    guest = node.guest("g2")
    assert (guest["state"], guest["pid"], guest["fault"]["kind"]) == ("dead", None, "crash")
    assert node.heal("g2")["fault"] == "crash"
    assert node.guest("g2")["pid"] not in (None, pid)


@pytest.mark.readme
def test_liar_is_outvoted_and_named(node: Node) -> None:
    node.put("colour", "green")
    node.json("inject", "corrupt-reply", "g3")
    assert node.get("colour")["body"] == "green"
    wait_until(lambda: node.guest("g3")["state"] == "expelled")
    replica = node.guest("g3")["replica"]
    assert replica["reason"] == "dissent"
    assert replica["dissents"] >= 1
    node.heal("g3")


@pytest.mark.readme
def test_flipped_bit_of_state_is_detected_when_it_is_read(node: Node) -> None:
    proof = node.json("inject", "corrupt-state", "g1")["proof"]
    assert "read back" in proof
    key = proof.split()[1].rstrip(":")
    assert node.guest("g1")["state"] == "active"  # latent until it is read
    assert node.get(key)["status"] == 200
    wait_until(lambda: node.guest("g1")["state"] == "expelled")
    assert node.guest("g1")["replica"]["reason"] == "dissent"
    node.heal("g1")


@pytest.mark.readme
def test_requests_are_rejected_with_their_own_exit_code_without_a_majority(node: Node) -> None:
    node.put("colour", "kept")
    node.json("inject", "crash", "g1")
    node.json("inject", "hang", "g2")
    # The first request after the hang may be ordered before the voter notices it.
    node.run("request", "PUT", "/kv/x", "--data", "1", "--timeout", "15")
    wait_until(lambda: node.status()["status"] == "refusing")
    done = node.run("request", "GET", "/kv/colour", "--timeout", "3")
    assert done.returncode == ExitCode.NO_MAJORITY
    assert "no majority" in done.stderr
    node.heal("g1")
    assert node.get("colour")["body"] == "kept"
    node.heal("g2")


@pytest.mark.readme
def test_killed_guest_is_repaired_automatically(node: Node) -> None:
    pid = node.guest("g3")["pid"]
    os.kill(pid, signal.SIGKILL)
    node.put("colour", "violet")
    wait_until(lambda: node.guest("g3")["state"] == "active" and node.guest("g3")["pid"] != pid)
    assert node.guest("g3")["repairs"]["count"] >= 1


@pytest.mark.readme
def test_logs_show_events_and_consoles(node: Node) -> None:
    events = node.run("logs").stdout
    assert "repaired" in events
    assert "fault injected" in events
    assert "trivisor: ready" in node.run("logs", "g1").stdout
    assert node.run("logs", "nonsense").returncode == ExitCode.USAGE
    assert node.run("logs", "-n", "-1").returncode == ExitCode.USAGE
    assert node.run("logs", "g1", "-n", "0").stdout == ""
    assert len(node.json("logs", "g1", "-n", "2")["lines"]) == 2
    assert len(node.json("logs", "-n", "3")["events"]) == 3
    assert "listening" in node.json("logs", "voter")["lines"][0]


@pytest.mark.readme
def test_inject_names_the_guests_when_the_guest_is_unknown(node: Node) -> None:
    done = node.run("inject", "crash", "g7")
    assert done.returncode == ExitCode.USAGE
    assert "it has g1, g2, g3" in done.stderr


# ---- voter, supervisor and watchdog die


@pytest.mark.readme
def test_no_client_notices_that_voter_and_supervisor_are_killed(node: Node) -> None:
    """Each request increments a counter, so none may be lost or executed twice."""
    before, guests = node.status(), node.guest_pids()
    killed = (("voter",), ("supervisor",), ("voter", "supervisor"), ("voter",))
    with counting(node) as count:
        for names in killed:
            status, counted = node.status(), count()
            for name in names:
                os.kill(status[name]["pid"], signal.SIGKILL)
            wait_until(lambda counted=counted: count() > counted)  # type: ignore[misc]
            wait_until(lambda: node.status()["phase"] == "up" and node.all_vote())
            after = node.status()
            assert all(after[name]["pid"] != status[name]["pid"] for name in names)
    assert after["supervisor"]["restarts"] == sum("supervisor" in names for names in killed)
    assert node.guest_pids() == guests
    assert after["http"] == before["http"]
    assert not after["voter"]["abandoned"]
    assert "supervisor restarted" in node.run("logs").stdout
    # The supervisor fully owns what it took over.
    node.json("inject", "crash", "g1")
    node.heal("g1")


@contextlib.contextmanager
def counting(node: Node) -> Iterator[Callable[[], int]]:
    """Make requests until the end of the block; give a function that returns their number.

    Raises AssertionError at the end if a request failed, was lost or was executed twice.
    """
    command = python_command("tests.deploy.counting", node.directory / "native.sock")
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command, env=python_environment(), stdin=subprocess.PIPE, stdout=output,
            stderr=subprocess.STDOUT, text=True,
        ) as client,
    ):  # fmt: skip

        def count() -> int:
            # pread: the file's offset is the client's.
            text = os.pread(output.fileno(), 1 << 20, 0).decode()
            assert client.poll() is None, text
            return text.count("\n")

        yield count
        assert client.stdin is not None
        client.stdin.close()
        assert client.wait(timeout=60) == 0, os.pread(output.fileno(), 1 << 20, 0).decode()


def kill_all(node: Node, *, watchdog: bool = True) -> None:
    """Kill the node's processes at once, as a power failure does."""
    status = node.status()
    pids = {status["voter"]["pid"], status["supervisor"]["pid"], *node.guest_pids()}
    pids |= node.processes().keys()
    if not watchdog:
        pids -= {status["supervisor"]["watchdog"]}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)))


@pytest.mark.readme
def test_up_takes_over_from_a_killed_supervisor_without_a_watchdog(node: Node) -> None:
    node.put("colour", "white")
    before, guests = node.status(), node.guest_pids()
    os.kill(before["supervisor"]["watchdog"], signal.SIGKILL)
    wait_until(lambda: node.status()["supervisor"]["watchdog"] is None)
    pid = before["supervisor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    assert node.get("colour")["body"] == "white"
    done = node.run("status", "--json")
    assert done.returncode == ExitCode.NOT_UP
    assert json.loads(done.stdout)["orphans"].keys() == {"voter", "proxy", "g1", "g2", "g3"}
    assert node.run(*UP).returncode == ExitCode.ALREADY_UP, "with other options"
    assert node.up().returncode == 0
    after = node.status()
    assert after["voter"]["pid"] == before["voter"]["pid"]
    assert node.guest_pids() == guests
    # Only the voter has its sockets now; the next voter makes new ones.
    os.kill(after["voter"]["pid"], signal.SIGKILL)
    wait_until(node.all_vote)
    assert node.status()["http"] == before["http"]
    assert node.get("colour")["body"] == "white"


@pytest.mark.readme
def test_up_restores_all_acknowledged_requests_after_a_power_failure(node: Node) -> None:
    for number in range(20):
        node.put(f"power-{number}", str(number))
    kill_all(node)
    assert node.run("status").returncode == ExitCode.NOT_UP
    done = node.up()
    assert done.returncode == 0, done.stderr
    for number in range(20):
        assert node.get(f"power-{number}")["body"] == str(number)
    durability = node.status()["durability"]
    assert durability["kind"] == "fsync"
    assert durability["journal"]


@pytest.mark.readme
def test_node_comes_back_automatically_after_all_but_the_watchdog_died(node: Node) -> None:
    node.put("colour", "grey")
    http = node.status()["http"]
    kill_all(node, watchdog=False)
    wait_until(node.all_vote, seconds=120)
    assert node.status()["http"] == http
    assert node.get("colour")["body"] == "grey"


def test_damaged_record_hides_no_process_and_costs_no_journal(node: Node) -> None:
    node.put("colour", "ochre")
    record = node.directory / "node.json"
    record.write_text(re.sub(r'("boot_deadline": )[0-9.]+', r"\1null", record.read_text()))
    for words in (("status",), ("request", "GET", "/kv/colour")):
        assert node.run(*words).returncode == 0
    assert str(record) in node.run("status").stderr
    done = node.run("down")
    assert done.returncode == 0, done.stderr
    assert node.processes() == {}
    for command in (("status",), ("down",), UP, (*UP, "--fresh", "--yes")):
        done = node.run(*command)
        assert done.returncode == ExitCode.FOREIGN
        assert "boot_deadline" in done.stderr and f"mv {shlex.quote(str(record))} " in done.stderr
    record.rename(f"{record}.damaged")
    done = node.up()
    assert done.returncode == 0, done.stderr
    assert node.get("colour")["body"] == "ochre"


# ---- down


@pytest.mark.readme
def test_down_leaves_nothing_even_if_the_supervisor_was_killed(node: Node) -> None:
    """The next test needs the directory of this node; the fixture's `down` finds it down."""
    pid = node.status()["supervisor"]["pid"]
    # Another program's process that names the directory, as an editor or a log viewer does.
    words = [sys.executable, "-c", "import time; time.sleep(300)", str(node.directory / "g1.qcow2")]
    with subprocess.Popen(words) as bystander:
        os.kill(pid, signal.SIGKILL)  # `down` comes before the watchdog restarts it
        done = node.run("down")
        assert done.returncode == 0, done.stderr
        assert node.processes().keys() == {bystander.pid}
        assert bystander.poll() is None
        bystander.kill()
    assert node.run("down").returncode == ExitCode.NOT_UP
    assert node.run("status").returncode == ExitCode.NOT_UP
    assert not list(node.directory.glob("*.sock"))


@pytest.mark.readme
def test_journal_is_deleted_only_after_confirmation(node: Node) -> None:
    """Needs a node that is down; starts none."""
    journal = node.directory / "journal"
    assert journal.is_dir()
    done = node.run(*UP, "--durability", "none")
    assert done.returncode == ExitCode.FAILED
    assert "--dir" in done.stderr
    done = node.run(*UP, "--fresh")
    assert done.returncode == ExitCode.USAGE
    assert str(journal) in done.stderr
    done = node.run(*UP, "--fresh", "--yes", "--service", "nonsense")
    assert done.returncode == ExitCode.USAGE
    assert journal.is_dir(), "the service is checked first"
    broken = node.directory.with_name("broken.py")
    broken.write_text("raise RuntimeError('cannot be loaded in a guest')\n")
    done = node.run(*UP, "--fresh", "--yes", "--service", str(broken))
    assert done.returncode == ExitCode.FAILED
    assert "never became ready: its agent ended" in done.stderr
    assert not journal.exists()
    assert node.processes() == {}


# ---- starts that do not succeed


def test_ctrl_c_before_ready_takes_everything_down_again(shared_scratch: Path) -> None:
    node = Node(shared_scratch / "stop")
    with subprocess.Popen(
        node.command(*UP), env=python_environment(), stderr=subprocess.PIPE, text=True
    ) as up:
        wait_until(lambda: any("qemu" in line for line in node.processes().values()), seconds=90)
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=60)
    assert up.returncode == ExitCode.INTERRUPTED, errors
    assert "Traceback" not in errors
    assert node.processes() == {}
    assert node.run("status").returncode == ExitCode.NOT_UP


def test_guest_that_never_becomes_ready_is_reported_with_its_console(shared_scratch: Path) -> None:
    service = shared_scratch / "broken.py"
    service.write_text("raise RuntimeError('cannot be loaded in a guest')\n")
    node = Node(shared_scratch / "never")
    done = node.run(*UP, "--service", str(service), "--guests", "1", "--boot-deadline", "600")
    assert done.returncode == ExitCode.FAILED
    assert "never became ready" in done.stderr
    assert "cannot be loaded in a guest" in done.stderr
    assert "cannot be loaded in a guest" in node.run("logs", "g1").stdout
    assert "never became ready" in node.run("logs").stdout
    assert node.processes() == {}


# ---- a full disk, a moved directory


def fill(file: Path) -> None:
    """Write a file until its file system is full."""
    with file.open("wb", buffering=0) as writer, contextlib.suppress(OSError):
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    writer.write(bytes(size))


@pytest.fixture
def small_disk(shared_scratch: Path) -> Iterator[Path]:
    """Give a file system of 500 MiB: three guests and their template need 410."""
    disk = shared_scratch / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=500m,mode=700", "trivisor", str(disk)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_node_survives_a_full_disk_and_is_found_where_it_was_moved(small_disk: Path) -> None:
    node, moved = Node(small_disk / "n"), Node(small_disk / "moved")
    try:
        done = node.up()
        assert done.returncode == 0, done.stderr
        node.put("colour", "blue")
        before = node.status()
        fill(small_disk / "fill")
        for pid in (before["voter"]["pid"], before["guests"][0]["pid"]):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "MiB are free" in (node.status()["storage"] or ""))
        wait_until(lambda: node.status()["voter"]["pid"] not in (None, before["voter"]["pid"]))
        os.kill(before["supervisor"]["pid"], signal.SIGKILL)
        assert node.get("colour")["body"] == "blue"
        wait_until(lambda: node.status()["supervisor"]["pid"] != before["supervisor"]["pid"])
        wait_until(lambda: node.status()["phase"] == "up")
        assert "MiB are free" in node.run("status").stdout
        assert node.guest("g1")["repairs"]["count"] == 0
        (small_disk / "fill").unlink()
        wait_until(node.all_vote)
        fill(small_disk / "fill")
        guests = node.guest_pids()
        node.directory.rename(moved.directory)
        assert node.run("down").returncode == ExitCode.NOT_UP
        assert moved.guest_pids() == guests
        wait_until(lambda: "was moved" in (moved.status()["storage"] or ""))
        done = moved.run("down")
        assert done.returncode == 0, done.stderr
        assert node.processes() == {}
        assert moved.run("status").returncode == ExitCode.NOT_UP
    finally:
        for each in (node, moved):
            each.run("down")


def _credentials(pid: int) -> dict[str, list[str]]:
    """The fields of a process's status in /proc, each as a list of words."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def test_qemu_is_confined(node: Node) -> None:
    """On every host: a seccomp filter, no way to more rights."""
    for pid in node.guest_pids():
        found = _credentials(pid)
        assert found["Seccomp"] == ["2"]
        assert found["NoNewPrivs"] == ["1"]
        if node.status()["isolation"] is None:
            assert int(found["CapEff"][0], 16) == int(found["CapPrm"][0], 16) == 0
            assert found["Uid"][0] not in ("0", str(os.geteuid()))


def test_guest_that_escapes_into_its_qemu_reaches_nothing_of_others(node: Node) -> None:
    """A probe with the user, group and groups of guest 1's QEMU tries everything in reach.

    It lacks QEMU's seccomp filter, so it may do more than a guest that escapes could.
    """
    status = node.status()
    if status["isolation"] is not None:
        assert os.geteuid() != 0 or "closed" not in status["isolation"], status["isolation"]
        pytest.skip(status["isolation"])
    node.put("before", "escape")
    own, other, third = node.guest_pids()
    directory, root = node.directory, node.directory / "r"
    monitors = list((root / "lib/qemu").glob("domain-*/monitor.sock"))
    assert len(monitors) == 3
    (mine,) = (each for each in monitors if each.parent.name.endswith("-g1"))
    files = [
        *(directory / "journal").iterdir(),
        *(directory / name for name in ("node.json", "running.json", "machines.json")),
        *(directory / name for name in ("g2.qcow2", "g3.qcow2", "supervisor.log", "voter.log")),
        *(each.parent / "master-key.aes" for each in monitors if each != mine),
    ]
    sockets = [
        *(directory / name for name in ("control.sock", "supervisor.sock", "native.sock")),
        *(directory / f"{guest}.{kind}" for guest in ("g2", "g3") for kind in ("link", "con")),
        directory / "proxy.sock", directory / "g1.lie", directory / "g2.lie",
        *(each for each in monitors if each != mine),
    ]  # fmt: skip
    processes = [other, third, status["voter"]["pid"], status["supervisor"]["pid"]]
    attempts = [
        ["list", str(directory)], ["list", str(directory / "journal")],
        ["make", str(directory / "new")], ["make", str(root / "lib/qemu/new")],
        *(["read", str(path)] for path in files), *(["write", str(path)] for path in files),
        *(["write", str(directory / "image" / name)] for name in ("vmlinux", "initrd")),
        *(["connect", str(path)] for path in sockets),
        *([kind, str(pid)] for pid in processes for kind in ("kill", "attach")),
        *(["read", f"/proc/{pid}/{name}"] for pid in processes for name in ("mem", "environ")),
        *(["list", f"/proc/{pid}/fd"] for pid in processes),
    ]  # fmt: skip
    allowed = [["read", str(directory / "g1.qcow2")], ["write", str(directory / "g1.qcow2")],
               ["read", str(directory / "image" / "initrd")], ["list", str(mine.parent)],
               ["kill", str(own)]]  # fmt: skip
    found = _credentials(own)
    reached = json.loads(
        run_as(
            PROBE, json.dumps([*attempts, *allowed]), uid=int(found["Uid"][0]),
            gid=int(found["Gid"][0]), groups=[int(group) for group in found["Groups"]],
        )
    )  # fmt: skip
    assert reached == allowed
    assert node.all_vote()
