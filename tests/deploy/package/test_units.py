"""The units as files: their hardening, and what they agree on with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.commands.prepare import HTTP_UNIT
from deploy.node.records import Layout
from deploy.supervisor.managed_voter import VOTER_UNIT
from tests.project.tree import ROOT
from voter.commands.terminal import SYSTEM_DIRECTORY, SYSTEM_SOCKETS
from voter.sockets import KINDS

UNITS = ROOT / "deploy/package/systemd"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="Debian's package systemd is not installed"
)


def values(unit: str, key: str) -> list[str]:
    """Return what a unit file sets a key to, word by word."""
    lines = (UNITS / unit).read_text().splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]
    return [word for value in found for word in value.split()]


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "limit"), [("trivisor-voter.service", 2.5), ("trivisor.service", 5.0)]
)
def test_exposure_to_the_rest_of_the_host_is_small(unit: str, limit: float) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"./{unit}"],
        cwd=UNITS, capture_output=True, text=True, check=True,
    )  # fmt: skip
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert score is not None, done.stdout
    assert float(score[1]) <= limit


@needs_systemd
def test_systemd_understands_every_line_of_every_unit(scratch: Path) -> None:
    for path in UNITS.iterdir():
        text = re.sub(r"(Exec\w+=)/\S+/trivisor\S*", r"\1/bin/true", path.read_text())
        (scratch / path.name).write_text(text)
    units = [f"./{path.name}" for path in UNITS.iterdir()]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=scratch, capture_output=True, text=True,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "trivisor" in line]
    assert ours == [], done.stderr


def test_sockets_have_the_names_that_the_voter_serves_and_the_paths_of_the_node() -> None:
    sockets = sorted(UNITS.glob("*.socket"))
    names = [name for path in sockets for name in values(path.name, "FileDescriptorName")]
    assert len(names) == len(sockets) == 3
    assert set(names) <= set(KINDS)
    node = Layout(SYSTEM_DIRECTORY)
    assert values("trivisor-native.socket", "ListenStream") == [str(node.native_socket)]
    assert values("trivisor-control.socket", "ListenStream") == [str(node.voter_control)]
    assert node.supervisor_socket.parent == SYSTEM_SOCKETS
    for path in sockets:
        assert values(path.name, "Service") == [VOTER_UNIT]
    assert (UNITS / HTTP_UNIT).exists()


def test_no_other_service_inherits_the_sockets_of_the_voter() -> None:
    # systemd clears O_NONBLOCK of a socket whenever it passes it on, and the voter would block.
    inherit = [path.name for path in UNITS.glob("*.service") if values(path.name, "Sockets")]
    assert inherit == [VOTER_UNIT]
    assert values(VOTER_UNIT, "NonBlocking") == ["yes"]


def test_restart_of_the_supervisor_restarts_no_voter() -> None:
    # An automatic restart also reaches units that are bound to the restarted one.
    for key in ("PartOf", "BindsTo", "Requires", "Requisite"):
        assert "trivisor.service" not in values(VOTER_UNIT, key)
    assert values(VOTER_UNIT, "StopWhenUnneeded") == ["yes"]
    assert VOTER_UNIT in values("trivisor.service", "Wants")
    assert VOTER_UNIT not in values("trivisor.service", "Requires")


def test_directories_and_users_are_those_of_the_units() -> None:
    users = (ROOT / "deploy/package/sysusers.conf").read_text().splitlines()
    made = {line.split()[1] for line in users if line.startswith("u ")}
    for path in UNITS.glob("*.service"):
        assert set(values(path.name, "User")) <= made
        assert values(path.name, "User"), path.name
    kept = (ROOT / "deploy/package/tmpfiles.conf").read_text()
    owners = {line.split()[1]: line.split()[2:5] for line in kept.splitlines() if line[:1] == "d"}
    assert owners[str(SYSTEM_DIRECTORY)] == ["2710", "trivisor", "trivisor-voter"]
    assert owners[str(SYSTEM_SOCKETS)] == ["2755", "trivisor", "trivisor"]
    assert values(VOTER_UNIT, "StateDirectory") == [Layout(SYSTEM_DIRECTORY).journal.name]
    assert values(VOTER_UNIT, "StateDirectoryMode") == ["0700"]
