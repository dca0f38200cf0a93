"""The commands on a host whose node systemd runs."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest
from click.testing import CliRunner

import trivisor
from deploy.commands.control_client import NotUp
from deploy.commands.doctor import host_checks
from deploy.node.records import Layout
from voter.commands import terminal
from voter.commands.terminal import SYSTEM_DIRECTORY, CommandError, default_directory


@pytest.mark.parametrize(("command", "instead"), [("up", "start"), ("down", "stop")])
def test_up_and_down_refer_to_systemctl(command: str, instead: str) -> None:
    done = CliRunner().invoke(trivisor.command, [command, "--dir", str(SYSTEM_DIRECTORY)])
    assert isinstance(done.exception, CommandError)
    assert f"systemctl {instead} trivisor" in done.exception.remedy
    assert done.exception.error_code == "TV0711"


@pytest.fixture
def sockets(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory of the sockets of such a node; no other directory is chosen."""
    monkeypatch.setattr(terminal, "SYSTEM_SOCKETS", scratch / "run")
    monkeypatch.delenv("TRIVISOR_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch))
    return scratch / "run"


@pytest.mark.parametrize(
    ("user", "groups", "chosen"), [(0, [], True), (1000, [4711], True), (1000, [1000], False)]
)
def test_root_and_operators_find_it_without_an_option(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, user: int, groups: list[int], chosen: bool
) -> None:
    own = sockets.parent / "trivisor/default"
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "getegid", lambda: user)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    entry = grp.struct_group(("trivisor", "x", 4711, []))
    monkeypatch.setattr(grp, "getgrnam", {"trivisor": entry}.__getitem__)
    assert default_directory() == own  # not installed
    sockets.mkdir()
    assert default_directory() == (SYSTEM_DIRECTORY if chosen else own)
    monkeypatch.setenv("TRIVISOR_DIR", "/elsewhere")
    assert default_directory() == Path("/elsewhere")


def test_host_without_the_group_has_no_such_node(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert default_directory() == sockets.parent / "trivisor/default"


def test_only_its_own_sockets_count_as_stale(scratch: Path) -> None:
    node = Layout(SYSTEM_DIRECTORY)
    assert node.native_socket.parent != node.directory
    assert node.native_socket not in node.stale_sockets()
    assert node.command("status").startswith("trivisor status")
    assert "systemctl start trivisor" in node.start_hint
    assert "trivisor up" in Layout(scratch).start_hint


@pytest.mark.parametrize("command", [["status"], ["logs"]])
def test_operator_who_may_not_read_its_files_learns_that_no_node_runs(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(Layout, "closed", True)  # root, as in CI, may read everything
    words = [*command, "--dir", str(sockets.parent / "node")]
    done = CliRunner().invoke(trivisor.command, words)
    assert isinstance(done.exception, NotUp)


def test_remedies_name_the_options_file_of_the_systems_node(scratch: Path) -> None:
    system, own = Layout(SYSTEM_DIRECTORY), Layout(scratch)
    assert system.option("guests", "3").startswith("`guests = 3`")
    assert system.option("vote", "2/3").startswith('`vote = "2/3"`')
    assert system.option("allow-faults").startswith("`allow-faults = true`")
    assert own.option("vote", "2/3") == "--vote 2/3"
    assert own.option("allow-faults") == "--allow-faults"
    for remedy in (system.empty_hint, system.faults_hint, system.option("vote", "2/3")):
        assert "--" not in remedy  # nobody types a command with options there
    assert str(system.journal) in system.empty_hint


@pytest.mark.parametrize("words", [["status"], ["down"], ["logs"], ["request", "GET", "/"]])
@pytest.mark.parametrize("installed", [True, False])
def test_stranger_learns_who_may_operate_the_systems_node(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], installed: bool
) -> None:
    monkeypatch.setattr(terminal, "_operates_system", lambda: False)
    if installed:
        sockets.mkdir()
    done = CliRunner().invoke(trivisor.command, words)
    assert isinstance(done.exception, NotUp | CommandError)
    assert done.exception.remedy
    assert ("usermod -aG trivisor" in done.exception.remedy) == installed


def test_doctor_demands_for_the_systems_node_nothing_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = host_checks(SYSTEM_DIRECTORY)
    assert "state directory" not in checks or os.access(SYSTEM_DIRECTORY, os.W_OK)
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert checks["account libvirt-qemu"]().result == "warning"
    assert host_checks(Path("/nowhere"))["account libvirt-qemu"]().result == "missing"
