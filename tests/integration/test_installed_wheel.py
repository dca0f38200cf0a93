"""The wheel, installed by an ordinary user in a clean virtual environment: it runs everything.

The environment has the libraries that the wheel's metadata names, and no others.  They are those of
the tests, so nothing is downloaded.  The user's account is in files that only these processes see.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from deploy.host.install import runs_systems_python
from deploy.node.records import cache_directory
from guests.image import build_image
from tests.docs.pages import TUTORIAL, SavedFile, steps
from tests.project.tree import ROOT

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
    pytest.mark.skipif(not runs_systems_python(), reason="another user may not reach this Python"),
]

USER, SUBORDINATE = 64123, 640_000_000
ACCOUNTS = {
    "passwd": "someone:x:{user}:{user}::{home}:/bin/sh",
    "group": "someone:x:{user}:",
    "subuid": "someone:{subordinate}:65536",
    "subgid": "someone:{subordinate}:65536",
}
# $1 is the folder of account files, $2 and $3 a directory and where to show it; then the command.
ENTER = """
set -e
for name in passwd group subuid subgid; do mount --bind "$1/$name" "/etc/$name"; done
mount --bind -o ro "$2" "$3"
cd "$4"; shift 4
exec setpriv --reuid=someone --regid=someone --init-groups env -i "$@"
"""


class Machine(NamedTuple):
    """A user's home, with account files and the test's libraries beside it."""

    top: Path

    @property
    def empty(self) -> Path:
        """The directory in which commands run."""
        return self.top / "home/empty"

    @property
    def environment(self) -> Path:
        """The virtual environment with the wheel."""
        return self.top / "home/environment"

    def run(self, *words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, with no more environment than a login has."""
        modules = sysconfig.get_path("platlib")
        places = (self.top / "accounts", modules, self.top / "modules", self.empty)
        path = f"PATH={self.environment / 'bin'}:/usr/bin:/bin"
        login = [f"HOME={self.top / 'home'}", path, "LANG=C.UTF-8"]
        return subprocess.run(
            ["unshare", "--mount", "bash", "-c", ENTER, "enter", *map(str, places), *login, *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip

    def check(self, *words: str, seconds: float = 300) -> str:
        """Run a command, which must succeed; return its output."""
        done = self.run(*words, seconds=seconds)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def dependencies(name: str) -> set[str]:
    """Return the libraries that a library's metadata names, directly or not, without extras."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for text in importlib.metadata.requires(waiting.pop()) or ():
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            if wanted.name.lower() not in found:
                found.add(wanted.name.lower())
                waiting.append(wanted.name)
    return found


def link_libraries(machine: Machine) -> None:
    """Show the environment just the libraries that Trivisor depends on."""
    modules = Path(sysconfig.get_path("platlib"))
    (target,) = machine.environment.glob("lib/python3.*/site-packages")
    for name in dependencies("trivisor"):
        files = importlib.metadata.distribution(name).files or ()
        tops = {path.parts[0] for path in files} - {"..", "__pycache__"}
        if name == "libvirt-python":
            tops = {path.name for path in modules.glob("libvirt*")}
        for top in tops:
            link = target / top
            if not link.is_symlink():
                link.symlink_to(machine.top / "modules" / top)


@pytest.fixture(scope="module")
def machine(shared_scratch: Path) -> Iterator[Machine]:
    """Give a user with the wheel installed, in an empty directory; a node is ended afterwards."""
    top = shared_scratch / "wheel"
    machine = Machine(top)
    for folder in (machine.empty, top / "accounts", top / "modules", top / "dist"):
        folder.mkdir(parents=True)
    shared_scratch.chmod(0o755)
    for name, line in ACCOUNTS.items():
        text = Path("/etc", name).read_text() if Path("/etc", name).exists() else ""
        added = line.format(user=USER, subordinate=SUBORDINATE, home=top / "home")
        (top / "accounts" / name).write_text(f"{text.rstrip()}\n{added}\n")
    # Debian's packages are downloaded already; the image is built from the wheel's sources.
    build_image(cache_directory() / "images", progress=print)
    images = top / "home/.cache/trivisor/images"
    for packages in (cache_directory() / "images").glob("packages-*[0-9a-f]"):
        shutil.copytree(packages, images / packages.name)
    for path in (top / "home", *(top / "home").rglob("*")):
        os.chown(path, USER, USER)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(top / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    machine.check("/usr/bin/python3", "-m", "venv", str(machine.environment))
    link_libraries(machine)
    (wheel,) = (top / "dist").glob("*.whl")
    machine.check("pip", "install", "--no-index", "--no-cache-dir", str(wheel))
    try:
        yield machine
    finally:
        machine.run("trivisor", "down")


def test_wheel_calculates_and_checks_the_host(machine: Machine) -> None:
    assert "0.9259259" in machine.check(
        "trivisor", "model", "bound", "--design", "2of3", "--rm", ".9"
    )
    figure = machine.top / "home/figure.svg"
    machine.check("trivisor", "model", "figure", "7", "--out", str(figure))
    assert "<svg" in figure.read_text()
    assert json.loads(machine.check("trivisor", "doctor", "--json"))["ok"]
    example = machine.environment / "share/doc/trivisor/examples/counter.py"
    machine.check("trivisor", "service", "check", str(example))
    assert list(machine.empty.iterdir()) == []


def test_wheel_starts_and_stops_a_node(machine: Machine) -> None:
    machine.check("trivisor", "up", "--http", "127.0.0.1:0")
    machine.check("trivisor", "request", "PUT", "/kv/colour", "--data", "blue")
    assert "blue" in machine.check("trivisor", "request", "GET", "/kv/colour")
    machine.check("trivisor", "down")
    assert machine.run("trivisor", "status").returncode == 5
    assert list(machine.empty.iterdir()) == []


def test_wheel_runs_the_demo(machine: Machine) -> None:
    assert "claims hold" in machine.check("trivisor", "demo", "--requests", "60", seconds=600)


def test_wheel_runs_the_tutorials_campaign_and_draws_its_figure(machine: Machine) -> None:
    """With one mission in place of ten or twenty."""
    for name, text in (
        (each.name, each.text) for each in steps(TUTORIAL) if isinstance(each, SavedFile)
    ):
        deterministic = text.replace("join(self.items)", "join(sorted(self.items))")
        path = machine.empty / name
        path.write_text(re.sub(r"missions = \d+", "missions = 1", deterministic))
    machine.check(
        "trivisor", "campaign", "run", "shopping.toml", "--out", "shopping", "--workers", "1"
    )
    report = machine.empty / "shopping/report.html"
    assert report.stat().st_uid == USER
    assert "</html>" in report.read_text()
    rows = json.loads(machine.check("trivisor", "campaign", "status", "shopping", "--json"))
    assert rows["done"] == rows["total"] == 4, rows
    words = ("trivisor", "model", "figure", "7", "--results", "shopping", "--out", "figure7.svg")
    assert "no point" not in machine.check(*words)
