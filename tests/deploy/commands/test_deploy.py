"""``trivisor deploy`` against an SSH server that plays a host."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trivisor
from deploy.remote.package import read_package
from tests.deploy.remote.fake_host import INSTALLED, FakeHost, facts_of, new_key
from tests.deploy.remote.fake_package import SETTINGS, build_package
from voter.commands.terminal import ExitCode

PASSWORD = "correct horse"


class Script:
    """The answers of a host.  ``log`` is the transaction's, ``sudo`` how it answers `sudo -n`."""

    def __init__(self) -> None:
        self.facts = facts_of()
        self.later = ""  # what it prints after a transaction
        self.log = "@result ok\n"
        self.sudo = 0
        self.refusal = (1, "sudo: 1 incorrect password attempt")
        self.begin = (0, "")
        self.place = (0, "@place /var/tmp/trivisor-deploy-1000\n")
        self.inputs: dict[str, bytes] = {}

    def __call__(self, command: str, given: bytes) -> tuple[int, str]:
        self.inputs[command] = given
        words = command.replace("'", " ").split()
        if "-k" in words and not given.startswith(PASSWORD.encode() + b"\n"):
            return self.refusal
        if "facts" in words:
            return 0, self.facts
        if "place" in words:
            return self.place
        if "begin" in words:
            return self.begin
        if "follow" in words:
            self.facts = self.later or self.facts
            return 0, self.log
        if "verify" in words:
            return 0, "@smoke 404 2/3;dissent=;seq=7 not found\n"
        if "-n" in words:
            return self.sudo, "" if self.sudo == 0 else "sudo: a password is required\n"
        return 0, ""


class Setup:
    """A host, a package, and the command."""

    def __init__(self, host: FakeHost, home: Path, script: Script) -> None:
        self.host = host
        self.script = script
        self.package = build_package(home / "trivisor_0.1.0_amd64.deb")
        self.known = host.known(home / "known")
        self.record = {"record": [f"package {read_package(self.package).sha256}"]}

    def run(self, *words: str, package: bool = True) -> int:
        named = ["--package", str(self.package)] if package else []
        with pytest.raises(SystemExit) as caught:
            trivisor.main(
                ["deploy", f"admin@127.0.0.1:{self.host.port}", "--known-hosts", str(self.known),
                 *named, *words]
            )  # fmt: skip
        assert isinstance(caught.value.code, int)
        return caught.value.code

    def changed(self) -> bool:
        """Return whether the host was asked to change anything."""
        return any("begin" in command or "tar -x" in command for command in self.host.commands)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script) -> Iterator[Setup]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / ".ssh").mkdir()
    key = new_key(tmp_path / ".ssh/id_ed25519")
    with FakeHost(new_key(tmp_path / "host_key"), key, script) as host:
        yield Setup(host, tmp_path, script)


def test_wrong_words_are_rejected_before_anything_is_connected(setup: Setup) -> None:
    for words in (
        ["--vote", "4/3"], ["--vote", "2/3", "--guests", "5"], ["--purge"], ["--memory", "1"],
        ["--http", "nowhere"], ["--http", "localhost:80"], ["--http", "127.0.0.1:0"],
        ["--service", "missing.py"], ["--service", "nonsense"],
    ):  # fmt: skip
        assert setup.run(*words) == ExitCode.USAGE
    assert setup.run("--remove") == ExitCode.USAGE  # with a package
    assert setup.run("--remove", "--vote", "2/3", package=False) == ExitCode.USAGE
    assert setup.host.commands == []


def test_service_that_is_not_python_is_rejected(setup: Setup, tmp_path: Path) -> None:
    for name, text in (("a.py", "def"), ("b.py", "\0"), ("a b.py", "x = 1")):
        (tmp_path / name).write_text(text)
        assert setup.run("--service", str(tmp_path / name)) == ExitCode.USAGE
    assert setup.host.commands == []


def test_missing_package_names_the_command_that_makes_it(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.run(package=False) == ExitCode.CANNOT_RUN_HERE
    assert "./run package" in capsys.readouterr().err
    assert setup.host.commands == []


def test_newest_package_in_dist_is_the_default(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    setup.package.rename(tmp_path / "dist" / setup.package.name)
    assert setup.run("--dry-run", package=False) == ExitCode.OK


def test_without_paramiko_the_error_names_pips_command(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    assert setup.run() == ExitCode.CANNOT_RUN_HERE
    assert "pip install paramiko" in capsys.readouterr().err


def test_dry_run_changes_nothing_and_needs_no_password(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.sudo = 1
    assert setup.run("--dry-run", "--json", "--http", "0.0.0.0:80") == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    assert (result["changed"], result["dry_run"], result["reply"]) == (False, True, None)
    assert any("trivisor-deploy.conf" in step for step in result["steps"])
    assert not setup.changed()


def test_deployed_host_is_left_alone_and_asked_for_a_vote(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.sudo = 1  # no password is needed for that
    script.facts = facts_of(INSTALLED | setup.record, settings=SETTINGS)
    assert setup.run("--json") == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    assert (result["changed"], result["steps"]) == (False, [])
    assert result["reply"] == {"status": 404, "vote": "2/3;dissent=;seq=7"}
    assert not setup.changed()


def test_sudo_password_comes_from_standard_input_and_is_in_no_command(
    setup: Setup, script: Script, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script.sudo = 1
    script.later = facts_of(INSTALLED | setup.record, settings=SETTINGS)
    script.log = "@step one\n@smoke 404 2/3;dissent=;seq=1 x\n@result ok\n"
    assert setup.run() == ExitCode.USAGE  # nobody to ask
    asked = capsys.readouterr().err
    assert "--ask-sudo-password" in asked and "error TV0757: " in asked
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
    assert setup.run("--ask-sudo-password") == ExitCode.OK
    assert setup.changed()
    printed = capsys.readouterr()
    assert "vote 2/3;dissent=;seq=1" in printed.err
    assert PASSWORD not in printed.err + printed.out + "".join(setup.host.commands)


@pytest.mark.parametrize(
    "refusal,words",
    [
        ("sudo: 1 incorrect password attempt", "does not accept this password"),
        ("admin is not in the sudoers file.", "may not use sudo"),
        ("Sorry, user admin is not allowed to execute '/bin/sh' as root", "may not use sudo"),
        ("sudo: sorry, you must have a tty to run sudo", "requires a terminal"),
    ],
)
def test_sudo_that_refuses_is_an_error_and_nothing_is_changed(
    refusal: str, words: str, setup: Setup, script: Script, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script.sudo, script.refusal = 1, (1, refusal)
    monkeypatch.setattr(sys, "stdin", io.StringIO("wrong\n"))
    assert setup.run("--ask-sudo-password") in (ExitCode.FAILED, ExitCode.CANNOT_RUN_HERE)
    error = capsys.readouterr().err
    assert words in error and "wrong" not in error
    assert "error TV0757: " in error
    assert not setup.changed()


def test_user_without_sudo_on_the_host_is_referred_to_root(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.facts = facts_of({"sudo": []})
    assert setup.run() == ExitCode.CANNOT_RUN_HERE
    assert "deploy as root" in capsys.readouterr().err


def test_host_that_cannot_run_a_node_is_left_alone(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.facts = facts_of({"os": ["ubuntu 24.04"], "os_name": ["Ubuntu 24.04"]})
    assert setup.run() == ExitCode.CANNOT_RUN_HERE
    assert "Ubuntu 24.04" in capsys.readouterr().err
    assert not setup.changed()


def test_other_settings_on_the_host_need_consent(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.facts = facts_of(INSTALLED | setup.record, settings='vote = "3/3"\n')
    assert setup.run("--vote", "2/3") == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "error TV0720: " in error
    assert '-vote = "3/3"' in error and '+vote = "2/3"' in error and "--yes" in error
    assert not setup.changed()
    script.later = facts_of(INSTALLED | setup.record, settings='vote = "2/3"\nguests = 3\n')
    script.log = "@smoke 404 2/3;dissent=;seq=1 x\n@result ok\n"
    assert setup.run("--vote", "2/3", "--yes") == ExitCode.OK
    assert setup.changed()


def test_host_that_has_something_else_after_the_transaction_is_an_error(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.log = "@smoke 404 2/3;dissent=;seq=1 x\n@result ok\n"
    assert setup.run() == ExitCode.FAILED
    assert "error TV0767: the host does not have what was deployed" in capsys.readouterr().err


def test_reply_without_a_vote_is_an_error(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.later = facts_of(INSTALLED | setup.record, settings=SETTINGS)
    script.log = "@smoke 503 - no majority\n@result ok\n"
    assert setup.run() == ExitCode.FAILED
    assert "without a vote" in capsys.readouterr().err


def test_host_without_a_place_for_uploads_is_an_error(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.place = (1, "mkdir: cannot create directory: Read-only file system\n")
    assert setup.run() == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "error TV0768: there is no place for uploads" in error and "Read-only" in error


def test_another_deploy_on_the_host_is_named(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.begin = (75, "@busy eve@elsewhere, since noon\n")
    assert setup.run() == ExitCode.ALREADY_UP
    error = capsys.readouterr().err
    assert "eve@elsewhere, since noon" in error and "error TV0758: " in error
    script.facts = facts_of({"transaction": ["eve@elsewhere, since noon"]})
    assert setup.run() == ExitCode.ALREADY_UP
    assert "eve@elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "log,words",
    [
        ("cannot copy: No space left on device", "make room"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7", "uses apt"),
        ("E: dpkg was interrupted, you must manually run", "dpkg --configure -a"),
        ("W: Failed to fetch http://x Temporary failure resolving 'x'", "network"),
        ("E: Unable to locate package qemu-system-x86", "apt sources"),
        ("trivisor : Depends: x. You have held broken packages.", "apt-get install -f"),
        ("something else", "/var/lib/trivisor-deploy/log"),
    ],
)
def test_failed_transaction_shows_cause_and_remedy(
    log: str, words: str, setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.log = f"@step installing\n{log}\n@failed it failed\n@result rolled-back it failed\n"
    assert setup.run() == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "error TV0765: it failed; all changes on the host were undone" in error
    assert log in error and words in error.rpartition("remedy: ")[2]


def test_changes_that_the_host_could_not_undo_are_an_error_of_their_own(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.log = "@result incomplete it failed\n"
    assert setup.run() == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "could not undo all changes" in error and "error TV0766: " in error


def test_former_failure_is_reported(
    setup: Setup, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.facts = facts_of({"last": ["rolled-back cancelled"]})
    assert setup.run("--dry-run") == ExitCode.OK
    assert "the last deploy to this host ended: cancelled" in capsys.readouterr().err


def test_removal_needs_consent_and_does_nothing_on_a_host_without_trivisor(
    setup: Setup, script: Script
) -> None:
    assert setup.run("--remove", package=False) == ExitCode.OK
    assert not setup.changed()
    script.facts = facts_of(INSTALLED | setup.record, settings=SETTINGS)
    assert setup.run("--remove", "--dry-run", package=False) == ExitCode.OK
    assert setup.run("--remove", package=False) == ExitCode.USAGE
    assert not setup.changed()
    assert setup.run("--remove", "--yes", package=False) == ExitCode.OK
    assert setup.changed()
