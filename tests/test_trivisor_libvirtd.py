"""A node on the system's libvirt daemon, which restarts, hangs and lets people change its guests.

The daemon is real, and runs in system mode (`qemu:///system`), in namespaces of its own: nothing of
this host's libvirt is touched.  The tests share three guests; each leaves them as it found them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.host.spawn import python_command, python_environment
from tests.faultinject.campaign.processes import following

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make the daemon's namespaces"),
]

URI = "qemu:///system"

# Process 1 of the namespaces reaps, as a host's does: libvirt waits for a QEMU that it has ended.
# QEMU runs as root also when libvirt probes it: see deploy/machine/embed.py.
INIT = """
set -e
for directory in /etc/libvirt /run /var/cache /var/lib /var/log; do
    mount -t tmpfs tmpfs "$directory"
done
mkdir -p /run/lock /var/cache/libvirt /var/lib/libvirt /var/log/libvirt
cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
stdio_handler = "file"
cgroup_controllers = []
END
echo ready
while true; do sleep 3600 & wait "$!"; done
"""


class Host:
    """The namespaces, and libvirt's daemon in them."""

    def __init__(self, init: int) -> None:
        self._enter = ["nsenter", f"--target={init}", "--mount", "--pid"]
        self._init = init

    def run(self, *words: str | os.PathLike[str], timeout: float = 200.0) -> str:
        """Run a command; return what it printed.  Fail if it failed."""
        done = self.attempt(*words, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(
        self, *words: str | os.PathLike[str], timeout: float = 200.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            [*self._enter, *words], env=python_environment(), capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip

    def start_daemon(self) -> None:
        self.run("libvirtd", "--daemon")

    def signal_daemon(self, number: signal.Signals) -> None:
        pid = self.run("cat", "/run/libvirtd.pid").strip()
        self.run("kill", f"-{number.value}", pid)
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            until(lambda: self.attempt("kill", "-0", pid).returncode != 0)

    def virsh(self, *words: str) -> str:
        return self.run("virsh", "-c", URI, *words)


class Node:
    """The node on the daemon."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.directory = directory

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.host.attempt(*python_command("trivisor", *words, "--dir", self.directory))

    def json(self, *words: str) -> dict[str, Any]:
        done = self.attempt(*words, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.attempt("up", "--connect", URI, "--http", "127.0.0.1:0", "--json")

    def status(self) -> dict[str, Any]:
        return self.json("status")

    def guest(self, name: str) -> dict[str, Any]:
        return next(dict(g) for g in self.status()["guests"] if g["name"] == name)

    def domain(self, name: str) -> str:
        return f"trivisor-{self.status()['uuid'][:8]}-{name}"

    def pids(self) -> list[int]:
        return [guest["pid"] for guest in self.status()["guests"]]

    def all_vote(self) -> bool:
        return {guest["state"] for guest in self.status()["guests"]} == {"active"}

    def put(self, value: str) -> None:
        """Write and read a value: the vote goes on."""
        for words in (("PUT", "/kv/a", "--data", value), ("GET", "/kv/a")):
            done = self.attempt("request", *words)
            assert done.returncode == 0, done.stderr
        assert value in done.stdout

    def events(self, name: str) -> list[dict[str, Any]]:
        done = self.attempt("logs", "--json")
        assert done.returncode == 0, done.stderr
        lines = json.loads(done.stdout)["events"]
        return [event for event in lines if event["event"] == name]


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until the condition holds; nothing reports it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Give the namespaces with a daemon that runs; all in them ends with these tests."""
    words = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    with subprocess.Popen(
        following(*words, "sh", "-c", INIT), stdout=subprocess.PIPE, text=True
    ) as unshare:
        try:
            assert unshare.stdout is not None
            assert unshare.stdout.readline() == "ready\n"
            [init] = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
            host = Host(int(init))
            host.start_daemon()
            yield host
        finally:
            unshare.kill()


@pytest.fixture(scope="module")
def node(host: Host, shared_scratch: Path) -> Iterator[Node]:
    """Give a node of three guests on the daemon."""
    node = Node(host, shared_scratch / "system")
    done = node.up()
    assert done.returncode == 0, done.stderr
    try:
        yield node
    finally:
        done = node.attempt("down")
        assert done.returncode == 0, done.stderr
        assert host.virsh("list", "--all", "--name").strip() == ""


def test_guests_are_listed_with_title_and_description(node: Node) -> None:
    listed = node.host.virsh("list", "--title")
    for name in ("g1", "g2", "g3"):
        assert f"Trivisor guest {name} of the node in {node.directory}" in listed
        described = node.host.virsh("desc", node.domain(name))
        assert f"trivisor down --dir {node.directory}" in described
        assert node.status()["uuid"] in described
    status = node.status()
    assert (status["connect"], status["connect_problem"]) == (URI, None)
    assert URI in node.attempt("status").stdout


def test_apparmor_would_let_qemu_use_its_files_and_no_others(node: Node, scratch: Path) -> None:
    """This host may have no AppArmor; libvirt's helper prints the rules that it would load."""
    file = scratch / "g1.xml"
    file.write_text(node.host.virsh("dumpxml", node.domain("g1")))
    uuid = node.host.virsh("domuuid", node.domain("g1")).strip()
    helper = f"/usr/lib/libvirt/virt-aa-helper -d -r -u libvirt-{uuid} <{file}"
    printed = node.host.run("sh", "-c", f"{helper} 2>&1")
    rules = dict(re.findall(r'^  "(.+)" (\w+),$', printed, re.MULTILINE))
    ours = {path: access for path, access in rules.items() if path.startswith(f"{node.directory}/")}
    assert ours == {
        f"{node.directory}/g1.qcow2": "rwk",
        f"{node.directory}/g1.con": "rw",
        f"{node.directory}/g1.link~": "rw",
        f"{node.directory}/image/vmlinux": "r",
        f"{node.directory}/image/initrd": "r",
    }


def change(node: Node, what: str, file: Path) -> None:
    """Change g2 by hand, as an administrator may."""
    domain, host = node.domain("g2"), node.host
    xml = host.virsh("dumpxml", domain)
    match what:
        case "save and restore":
            host.virsh("save", domain, str(file))
            host.attempt("virsh", "-c", URI, "restore", str(file))
        case "snapshot and revert":
            host.virsh("snapshot-create-as", domain, "mine")
            node.put("after the snapshot")
            host.attempt("virsh", "-c", URI, "snapshot-revert", domain, "mine")  # a repair ends it
        case "detach the link":
            channel = xml[xml.index("<channel") : xml.index("</channel>") + len("</channel>")]
            file.write_text(channel)
            host.virsh("detach-device", domain, str(file), "--live")
        case "define and destroy":
            file.write_text(xml)
            host.virsh("define", str(file))
            host.virsh("destroy", domain)
        case "quit":
            # QEMU may end before it has answered: virsh then fails.
            host.attempt("virsh", "-c", URI, "qemu-monitor-command", domain, '{"execute": "quit"}')
        case "copy the disk":
            host.virsh(
                "blockcopy", domain, "vda", str(file), "--transient-job", "--pivot", "--wait"
            )
            host.virsh("destroy", domain)
        case _:
            host.virsh(what, domain)


@pytest.mark.parametrize(
    "what",
    [
        "destroy", "suspend", "reset", "save and restore", "snapshot and revert",
        "detach the link", "define and destroy", "quit", "copy the disk",
    ],
)  # fmt: skip
def test_change_by_hand_is_masked_and_repaired(node: Node, scratch: Path, what: str) -> None:
    node.json("heal", "g2")  # so that the repairs of these tests do not add up
    before = node.guest("g2")["repairs"]["count"]
    change(node, what, scratch / "file")
    node.put(what)
    until(lambda: node.guest("g2")["repairs"]["count"] > before and node.all_vote())
    node.put(f"{what}, repaired")
    assert (
        node.host.virsh("list", "--all", "--name").split()
        == node.host.virsh("list", "--name", "--transient").split()
    )
    assert node.guest("g2")["repairs"]["last_error"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("managedsave",), ("undefine",), ("setmem", "65536"), ("setvcpus", "2"), ("shutdown",),
        ("reboot",), ("dompmsuspend", "mem"), ("migrate", "qemu+tcp://localhost/system", "--live"),
        ("blockjob", "vda"), ("snapshot-create",), ("autostart",),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_change_that_harms_nothing_or_is_refused_costs_no_repair(
    node: Node, words: tuple[str, ...]
) -> None:
    before = node.guest("g2")
    command, *rest = words
    node.host.attempt("virsh", "-c", URI, command, node.domain("g2"), *rest)
    node.put(command)
    until(node.all_vote)
    after = node.guest("g2")
    assert (after["pid"], after["repairs"]["count"]) == (before["pid"], before["repairs"]["count"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_guests_outlive_the_daemon_and_repairs_wait_for_it(
    node: Node, number: signal.Signals
) -> None:
    pids = node.pids()
    node.host.signal_daemon(number)
    until(lambda: node.status()["connect_problem"])
    node.host.run("kill", "-9", str(pids[1]))
    until(lambda: node.guest("g2")["vm"] == "dead")
    before = node.guest("g2")["repairs"]["count"]
    node.put("without the daemon")
    assert "systemctl start libvirtd" in node.attempt("status").stdout
    assert node.guest("g2")["repairs"]["count"] == before
    node.host.start_daemon()
    until(lambda: not node.status()["connect_problem"] and node.all_vote())
    assert node.events("libvirt lost")
    assert node.events("libvirt works again")
    now = node.pids()
    assert (now[0], now[2]) == (pids[0], pids[2])
    # Events arrive again.
    node.host.virsh("suspend", node.domain("g3"))
    until(lambda: node.guest("g3")["vm"] == "paused" or node.guest("g3")["repairs"]["in_progress"])
    until(node.all_vote)
    node.put("with the daemon")


def test_daemon_that_hangs_is_noticed(node: Node) -> None:
    node.host.signal_daemon(signal.SIGSTOP)
    try:
        until(lambda: node.status()["connect_problem"])
        assert "systemctl restart libvirtd" in node.attempt("status").stdout
        node.put("the daemon hangs")
    finally:
        node.host.signal_daemon(signal.SIGCONT)
    until(lambda: not node.status()["connect_problem"])
    node.host.virsh("destroy", node.domain("g1"))
    until(lambda: node.guest("g1")["vm"] == "ready" and node.all_vote())


def test_next_supervisor_waits_for_the_daemon_and_adopts_the_guests(node: Node) -> None:
    before = node.status()
    node.host.signal_daemon(signal.SIGKILL)
    node.host.run("kill", "-9", str(before["supervisor"]["pid"]))
    until(lambda: node.attempt("status").returncode == 0 and node.status()["connect_problem"])
    assert node.status()["phase"] == "starting"
    node.put("neither daemon nor supervisor")
    node.host.start_daemon()
    until(lambda: node.status()["phase"] == "up" and node.all_vote())
    after = node.status()
    assert [guest["pid"] for guest in after["guests"]] == [g["pid"] for g in before["guests"]]
    assert after["voter"]["pid"] == before["voter"]["pid"]


def test_down_needs_no_daemon_and_up_touches_no_other_domain(node: Node, scratch: Path) -> None:
    pids, domain = node.pids(), node.domain("g2")
    node.host.signal_daemon(signal.SIGKILL)
    done = node.attempt("down")
    node.host.start_daemon()
    try:
        assert done.returncode == 0, done.stderr
        for pid in pids:
            assert node.host.attempt("kill", "-0", str(pid)).returncode != 0
        assert not list(node.directory.glob("*.qcow2"))
        file = scratch / "other.xml"
        file.write_text(
            f"<domain type='qemu'><name>{domain}</name><memory>65536</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
        node.host.virsh("define", str(file))
        done = node.up()
        assert done.returncode == 1
        assert f"virsh -c {URI} undefine {domain}" in done.stderr
        assert node.host.virsh("list", "--all", "--name").split() == [domain]
        node.host.virsh("undefine", domain)
    finally:
        done = node.up()
        assert done.returncode == 0, done.stderr
