"""The steps of ``./run test --kvm``, on a host whose /dev/kvm works.

Each step uses Trivisor as a user does, and is judged by conditions, not by times.  Its
result is "ok", "failed" with the reason, or "not reached".  Steps after a failed one still run,
unless they need the node and it did not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from deploy.host.search import command_line, other_pids
from deploy.host.spawn import python_command, python_environment
from deploy.machine.accel import decide, read_facts
from deploy.node.records import cache_directory
from faultinject.host_facts import describe_host
from guests.image import build_image
from tests.kvm.guest_steps import flip_code, read_clocks
from tests.kvm.record import Step
from tests.project.tree import ROOT

__all__ = ["STEPS", "run_steps"]

LIMIT = 3600.0
"""Seconds for one command or condition: a hang, not a slow host."""
GUESTS = ("g1", "g2", "g3")
REQUESTS = 40
CAMPAIGN = Path(__file__).with_name("campaign.toml")

Facts = dict[str, Any]


class StepFailed(Exception):
    """A step's condition does not hold."""


def require(condition: object, text: str) -> None:
    """Raise StepFailed with this text unless the condition holds."""
    if not condition:
        raise StepFailed(text)


class Bench:
    """What the steps share: the node's directory, the commands, the log."""

    def __init__(self, scratch: Path, log: Callable[[str], None], package: Path | None) -> None:
        self.scratch = scratch
        self.node = scratch / "n"
        self.log = log
        self.package = package
        self.up = False

    def trivisor(self, *words: str | Path) -> str:
        """Run a command of Trivisor, log it; return its output.  Raises StepFailed."""
        return self.run("trivisor", *words, command=python_command("trivisor", *words))

    def run(self, *words: str | Path, command: list[str] | None = None) -> str:
        """Run a command, log it; return its output.  Raises StepFailed."""
        self.log(f"$ {' '.join(map(str, words))}")
        began = time.monotonic()
        done = subprocess.run(
            command or words, env=python_environment(), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=LIMIT,
        )  # fmt: skip
        seconds = time.monotonic() - began
        output = done.stdout
        with contextlib.suppress(ValueError):
            output = json.dumps(json.loads(output))  # in one line
        for line in (done.stderr + output).splitlines():
            self.log(f"  {line}")
        self.log(f"  exit status {done.returncode} after {seconds:.1f} s")
        if done.returncode:
            raise StepFailed(f"{words[:2]}: exit status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def json(self, *words: str) -> Facts:
        """Run a command on the node with --json; return what it prints."""
        return dict(json.loads(self.trivisor(*words, "--json", "--dir", self.node)))

    def guest(self, name: str) -> Facts:
        """Return a guest's status, not logged."""
        done = subprocess.run(
            python_command("trivisor", "status", "--json", "--dir", self.node),
            env=python_environment(), capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        require(done.returncode == 0, f"trivisor status: {done.stderr}")
        return next(each for each in json.loads(done.stdout)["guests"] if each["name"] == name)

    def wait(self, name: str, what: str, condition: Callable[[Facts], bool]) -> float:
        """Wait until a guest's status meets a condition; return the seconds."""
        began = time.monotonic()
        while not condition(found := self.guest(name)):
            if time.monotonic() - began > LIMIT:
                raise StepFailed(f"{name} never {what}: {found}")
        return round(time.monotonic() - began, 2)

    def restores(self, name: str) -> list[Facts]:
        """Return how a guest was restored so far, from the supervisor's log."""
        lines = (self.node / "supervisor.log").read_text(errors="replace").splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [
            {"path": event["path"], "seconds": event["seconds"]}
            for event in events
            if event.get("event") == "guest restored" and event["guest"] == name
        ]

    def request(self, method: str, key: str, value: str = "") -> tuple[int, str, str, float]:
        """Return status, body and vote of a request by HTTP, and its seconds."""
        address = json.loads((self.node / "running.json").read_text())["http"]
        data = value.encode() if method == "PUT" else None
        request = urllib.request.Request(f"http://{address}/kv/{key}", data=data, method=method)
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as reply:
                status, vote, body = reply.status, reply.headers["Trivisor-Vote"], reply.read()
        except urllib.error.HTTPError as error:
            status, vote, body = error.code, error.headers.get("Trivisor-Vote", ""), error.read()
        return status, body.decode(errors="replace"), str(vote), time.monotonic() - began

    @contextlib.contextmanager
    def load(self, facts: Facts) -> Iterator[None]:
        """Make requests, one after the other, until the block ends; then check all replies."""
        stop, wrong, took = threading.Event(), list[str](), list[float]()

        def work() -> None:
            number = 0
            while number == 0 or not stop.is_set():
                number += 1
                for method, wanted in (("PUT", (200, 201, 204)), ("GET", (200,))):
                    status, body, vote, seconds = self.request(method, "load", f"v{number}")
                    took.append(seconds)
                    if status not in wanted or (method == "GET" and body != f"v{number}"):
                        wrong.append(f"{method} v{number}: {status} {body} {vote}")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        facts |= {"requests": len(took), "slowest": round(max(took, default=0.0), 2)}
        require(took and not wrong, f"{len(wrong)} of {len(took)} requests: {wrong[:5]}")


# ---- the steps: each returns what was observed, or raises StepFailed


def host(_bench: Bench) -> Facts:
    """Describe the host; without /dev/kvm nothing of this can work."""
    facts: Facts = msgspec.to_builtins(describe_host(accel="", load_before=os.getloadavg()[0]))
    facts |= msgspec.to_builtins(asyncio.run(read_facts()))
    release = Path("/etc/os-release").read_text()
    facts["system"] = release.partition('PRETTY_NAME="')[2].partition('"')[0]
    facts["init"] = Path("/proc/1/comm").read_text().strip()
    facts["libvirt"] = _output("dpkg-query", "-W", "-f", "${Version}", "libvirt0")
    clock = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    facts["clock"] = clock.read_text().strip()
    require(facts["device"], "there is no /dev/kvm")
    return facts


def accelerator(bench: Bench) -> Facts:
    """Let Trivisor choose: it boots a guest under KVM, if that is slow also one under TCG."""
    image = build_image(cache_directory() / "images", progress=bench.log)
    choice = asyncio.run(decide(image, cache_directory(), "auto", bench.log))
    require(choice.name == "kvm", f"{choice.name} was chosen: {choice.reason}")
    return msgspec.to_builtins(choice)  # type: ignore[no-any-return]


def start(bench: Bench) -> Facts:
    """Start a node of three guests."""
    bench.trivisor(
        "up", "--accel", "kvm", "--allow-faults", "--http", "127.0.0.1:0", "--dir", bench.node
    )
    bench.up = True
    states = {name: bench.guest(name)["state"] for name in GUESTS}
    require(set(states.values()) == {"active"}, f"not all guests vote: {states}")
    log = (bench.node / "supervisor.log").read_text(errors="replace")
    return {"states": states, "ready": re.findall(r"g\d ready in [\d.]+ s", log)}


def used(bench: Bench) -> Facts:
    """Check that each guest's processor is KVM's, not QEMU's translator."""
    facts = {}
    for name in GUESTS:
        pid = bench.guest(name)["pid"]
        files = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
        require(any("kvm-vcpu" in each for each in files), f"{name} has no KVM processor")
        words = command_line(pid)
        facts[name] = {word: words[words.index(word) + 1] for word in ("-accel", "-cpu")}
    return facts


def vote(bench: Bench) -> Facts:
    """Write and read values; every reply states its vote."""
    took, votes = [], set()
    for number in range(REQUESTS // 2):
        status, _, seen, seconds = bench.request("PUT", f"k{number}", f"v{number}")
        require(status == 201, f"PUT k{number}: {status}")
        took.append(seconds)
        status, body, seen, seconds = bench.request("GET", f"k{number}")
        require((status, body) == (200, f"v{number}"), f"GET k{number}: {status} {body}")
        took.append(seconds)
        votes.add(seen.partition("; seq")[0])
    require(votes <= {"2/3", "3/3"}, f"votes: {votes}")
    took.sort()
    middle, last = took[len(took) // 2], took[-1]
    return {"requests": len(took), "p50": round(middle, 3), "slowest": round(last, 3)}


def snapshot(bench: Bench) -> Facts:
    """Find the clean snapshot on each guest's disk."""
    facts = {}
    for name in GUESTS:
        disk = str(bench.node / f"{name}.qcow2")
        text = _output("qemu-img", "snapshot", "-U", "-l", disk)
        found = re.search(r"\bclean\s+([\d.]+ \w+)", text)
        require(found, f"{name} has no snapshot: {text}")
        assert found is not None
        facts[name] = found[1]
    return facts


def kill(bench: Bench) -> Facts:
    """Kill a guest's QEMU under load: masked, and repaired automatically."""
    facts: Facts = {}
    before = bench.guest("g2")["pid"]
    with bench.load(facts):
        os.kill(before, signal.SIGKILL)
        facts["repaired_after"] = bench.wait(
            "g2", "voted again", lambda g: g["state"] == "active" and g["pid"] != before
        )
    return facts | {"restores": bench.restores("g2")}


def hang(bench: Bench) -> Facts:
    """Stop a guest's processor under load: noticed, masked, repaired in place."""
    facts: Facts = {}
    count = len(bench.restores("g3"))
    with bench.load(facts):
        facts["proof"] = bench.json("inject", "hang", "g3")["proof"]
        facts["noticed_after"] = bench.wait("g3", "left", lambda g: g["state"] != "active")
        facts["votes_after"] = bench.json("heal", "g3")["seconds"]
    return facts | {"restores": bench.restores("g3")[count:]}


def restore(bench: Bench) -> Facts:
    """Restore a guest that lied, three times; each time its QEMU continues."""
    votes: list[float] = []
    count = len(bench.restores("g1"))
    for number in range(3):
        bench.trivisor("inject", "corrupt-reply", "g1", "--dir", bench.node)
        status, _, _, _ = bench.request("PUT", "lie", f"v{number}")
        require(status in (200, 201, 204), f"PUT lie: {status}")
        bench.wait("g1", "was expelled", lambda g: g["state"] == "expelled")
        votes.append(bench.json("heal", "g1")["seconds"])
    restores = bench.restores("g1")[count:]
    require({each["path"] for each in restores} == {"loadvm"}, f"not in place: {restores}")
    return {"votes_after": votes, "restores": restores}


def flip_state(bench: Bench) -> Facts:
    """Flip a bit of a value in a guest's memory: the vote on that value names the guest."""
    proof = str(bench.json("inject", "corrupt-state", "g1")["proof"])
    key = proof.partition("key ")[2].partition(":")[0]
    status, _, seen, _ = bench.request("GET", key)
    require(status == 200, f"GET {key}: {status}")
    noticed = bench.wait("g1", "was expelled", lambda g: g["state"] == "expelled")
    replica = bench.guest("g1")["replica"]
    healed = bench.json("heal", "g1")
    return {
        "proof": proof, "vote": seen, "noticed_after": noticed, "reason": replica["reason"],
        "votes_after": healed["seconds"],
    }  # fmt: skip


def flip_memory(bench: Bench) -> Facts:
    """Flip bits of registers and all over a guest's memory: no client notices."""
    facts: Facts = {}
    for kind in ("flip-register", "flip-ram"):
        with bench.load(load := dict[str, Any]()):
            load["proof"] = bench.json("inject", kind, "g2")["proof"]
            load["votes_after"] = bench.json("heal", "g2")["seconds"]
        facts[kind] = load
    return facts


def stop(bench: Bench) -> Facts:
    """Take the node down; nothing of it runs on."""
    bench.trivisor("down", "--dir", bench.node)
    bench.up = False
    left = [pid for pid in other_pids() if str(bench.node) in " ".join(command_line(pid))]
    require(not left, f"still running: {left}")
    return {}


def guest_clock(bench: Bench) -> Facts:
    """Restore a guest and compare its clocks."""
    return asyncio.run(read_clocks(bench.scratch, bench.log))


def flip_in_code(bench: Bench) -> Facts:
    """Flip a bit of code that a guest executes: it acts at once, unlike under TCG."""
    return asyncio.run(flip_code(bench.scratch, "kvm", bench.log))


def campaign(bench: Bench) -> Facts:
    """Run a short campaign: missions with faults on its own node."""
    out = bench.scratch / "campaign"
    bench.trivisor("campaign", "run", CAMPAIGN, "--out", out, "--workers", "1")
    status = json.loads(bench.trivisor("campaign", "status", out, "--json"))
    return dict(status)


def package(bench: Bench) -> Facts:
    """Install the Debian package, make a voted request under systemd, stop, start and purge it."""
    assert bench.package is not None
    url = "http://127.0.0.1:8080/kv/colour"
    put = ("curl", "-sS", "-i", "-X", "PUT", "--data", "blue", url)
    facts: Facts = {}
    began = time.monotonic()
    bench.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "install", "-y",
              bench.package)  # fmt: skip
    facts["installed_after"] = round(time.monotonic() - began, 1)
    try:
        _until_answered(bench, *put, answer=r"HTTP/1.1 201(?s:.*)Trivisor-Vote: [23]/3")
        facts["request_after"] = round(time.monotonic() - began, 1)
        status = json.loads(bench.run("/usr/bin/trivisor", "status", "--json"))
        require(status["accel"] == "kvm", f"accelerator {status['accel']}")
        for unit in ("trivisor.service", "trivisor-voter.service"):
            facts[unit] = _output("systemctl", "show", "-P", "ActiveState", unit)
            require(facts[unit] == "active", f"{unit} is {facts[unit]}")
            security = _output("systemd-analyze", "security", "--no-pager", unit)
            facts[f"{unit} security"] = security.splitlines()[-1]
        began = time.monotonic()
        bench.run("systemctl", "restart", "trivisor.service")
        _until_answered(bench, "curl", "-sS", "-i", url, answer=r"HTTP/1.1 200(?s:.*)blue")
        facts["answers_after_restart"] = round(time.monotonic() - began, 1)
    finally:
        bench.run("journalctl", "--no-pager", "-q", "-o", "short-monotonic", "-n", "100",
                  "-u", "trivisor*")  # fmt: skip
        bench.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "purge", "-y",
                  "trivisor")  # fmt: skip
    require(not Path("/var/lib/trivisor").exists(), "purge left /var/lib/trivisor")
    return facts


def _until_answered(bench: Bench, *words: str, answer: str) -> None:
    """Run a command until it prints the answer: a node that starts refuses requests."""
    began = time.monotonic()
    while True:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if re.search(answer, done.stdout):
            bench.log(f"$ {' '.join(words)}")
            for line in done.stdout.splitlines():
                bench.log(f"  {line}")
            return
        if time.monotonic() - began > LIMIT:
            raise StepFailed(f"{words}: {done.stdout}{done.stderr}")
        time.sleep(1)  # nothing reports that it serves


Need = Literal["nothing", "node", "package"]

STEPS: tuple[tuple[str, Callable[[Bench], Facts], Need], ...] = (
    ("host", host, "nothing"),
    ("accelerator", accelerator, "nothing"),
    ("start", start, "nothing"),
    ("kvm is used", used, "node"),
    ("vote", vote, "node"),
    ("snapshot", snapshot, "node"),
    ("kill", kill, "node"),
    ("hang", hang, "node"),
    ("restore", restore, "node"),
    ("flip a bit of the state", flip_state, "node"),
    ("flip bits of registers and memory", flip_memory, "node"),
    ("stop", stop, "node"),
    ("clocks after a restore", guest_clock, "nothing"),
    ("flip a bit of code", flip_in_code, "nothing"),
    ("campaign", campaign, "nothing"),
    ("Debian package", package, "package"),
)
"""Name, function, and what the step needs: the running node, or a Debian package to install."""


def run_steps(
    scratch: Path, log: Callable[[str], None], *, package: Path | None = None
) -> Iterator[Step]:
    """Run all steps and yield the result of each; leave nothing running.

    Without a `package` the steps that install it are left out.
    """
    bench = Bench(scratch, log, package)
    try:
        for name, function, need in STEPS:
            if need != "package" or package is not None:
                yield _run(bench, name, function, need)
    finally:
        if bench.node.exists():
            with contextlib.suppress(StepFailed):
                bench.trivisor("down", "--dir", bench.node)


def _run(bench: Bench, name: str, function: Callable[[Bench], Facts], need: Need) -> Step:
    bench.log(f"==> {name}")
    if need == "node" and not bench.up:
        return Step(name=name, result="not reached", output="the node is not up")
    began = time.monotonic()
    try:
        seen = function(bench)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the record
        seconds = round(time.monotonic() - began, 1)
        for file in sorted(bench.node.glob("*.log")):
            lines = file.read_text(errors="replace").splitlines()[-30:]
            bench.log("\n".join([f"end of {file.name}:", *lines]))
        output = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
        return Step(name=name, result="failed", seconds=seconds, output=output)
    seconds = round(time.monotonic() - began, 1)
    return Step(name=name, result="ok", seconds=seconds, seen=seen)


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{' '.join(words)}: {done.stderr}")
    return done.stdout.strip()
