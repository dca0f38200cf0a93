"""node.toml: the options of `trivisor up` as a file, and what is wrong with one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from deploy.commands.launch import prepare_node
from deploy.commands.prepare import prepare, read_settings
from deploy.errors import AlreadyUp
from deploy.host.spawn import python_environment
from deploy.node.records import Settings
from tests.deploy.node.test_records import LOCK_HOLDER
from tests.deploy.supervisor.running import plan
from tests.errors import raises
from voter.commands.terminal import CommandError, ExitCode


def read(scratch: Path, text: str, served: list[str] | None = None) -> Settings:
    path = scratch / "node.toml"
    path.write_text(text)
    return read_settings(path, served or [])[0]


def problem(scratch: Path, text: str, served: list[str] | None = None) -> CommandError:
    with pytest.raises(CommandError) as caught:
        read(scratch, text, served)
    assert caught.value.code == ExitCode.USAGE
    return caught.value


def test_empty_file_gives_the_defaults_of_up(scratch: Path) -> None:
    assert read(scratch, "# nothing\n") == Settings()


def test_every_option_of_up_can_be_set(scratch: Path) -> None:
    (scratch / "own.py").touch()
    settings = read(
        scratch,
        f"""
        guests = 5
        vote = "4/5"
        service = "{scratch}/own.py"
        accel = "tcg"
        connect = "qemu:///session"
        http = "127.0.0.1:9000"
        native = "127.0.0.1:9001"
        memory = 200
        boot-deadline = 12.5
        allow-faults = true
        repair = "off"
        durability = "os"
        function = "unix:/run/f.sock"
        """,
    )
    assert settings == Settings(
        guests=5, vote="4/5", service=f"{scratch}/own.py", accel="tcg", connect="qemu:///session",
        http="127.0.0.1:9000", native="127.0.0.1:9001", memory_mib=200, boot_deadline=12.5,
        allow_faults=True, repair="off", durability="os", function="unix:/run/f.sock",
    )  # fmt: skip


def test_underscores_and_dashes_are_the_same(scratch: Path) -> None:
    assert read(scratch, "allow_faults = true\nboot_deadline = 30\n").allow_faults


def test_journal_of_another_service_is_accepted_only_if_the_file_says_so(scratch: Path) -> None:
    path = scratch / "node.toml"
    path.write_text("accept-service = true\n")
    assert read_settings(path, [])[1] is True
    path.write_text("")
    assert read_settings(path, [])[1] is False


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\nguest = 3", 2, "did you mean 'guests'?"),
        ("memroy = 3", 1, "did you mean 'memory'?"),
        ("qqq = 3", 1, "the keys are guests, vote"),
        ("fresh = true", 1, "unknown key 'fresh'"),
        ('dir = "/x"', 1, "unknown key 'dir'"),
        ("\n\nguests = 10", 3, "whole number from 1 to 9"),
        ("guests = 0", 1, "whole number from 1 to 9"),
        ("guests = true", 1, "neither a text nor a number"),
        ("guests = [3]", 1, "neither a text nor a number"),
        ("[guests]\nx = 1", 1, "neither a text nor a number"),
        ("guests = nan", 1, "whole number"),
        ("memory = 1e3", 1, "whole number"),
        ("boot-deadline = inf", 1, "boot-deadline"),
        ("boot_deadline = -1.0", 1, "boot-deadline"),
        ('accel = "kvn"', 1, "'kvm'"),
        ('vote = "4/3"', 1, "vote"),
        ('http = "8080"', 1, "http"),
        ('allow-faults = "yes"', 1, "neither true nor false"),
        ("allow-faults = 1", 1, "neither true nor false"),
        ('service = "own.py"', 1, "not an absolute path"),
        ('content = "files"', 1, "not an absolute path"),
        ('function = "unix:f.sock"', 1, "not an absolute path"),
        ('connect = "qemu+ssh://host/system"', 1, "this host"),
        ("allow-faults = true\nallow_faults = false", 1, "given twice"),
    ],
)
def test_wrong_key_or_value_is_named_with_its_line(
    scratch: Path, text: str, line: int, words: str
) -> None:
    message = str(problem(scratch, text))
    assert f"node.toml, line {line}: " in message
    assert words in message


@pytest.mark.parametrize(
    "text",
    ["guests = ", "guests = 3\nguests = 3", 'vote = "2/3', "= 3", "guests = 3 4", "\x00"],
)
def test_what_is_not_toml_is_an_error_that_names_the_file(scratch: Path, text: str) -> None:
    assert "node.toml" in str(problem(scratch, text))


def test_file_that_is_not_utf8_is_an_error(scratch: Path) -> None:
    (scratch / "node.toml").write_bytes(b"# \xff\n")
    with raises("TV0721", match=r"node\.toml"):
        read_settings(scratch / "node.toml", [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('guests = 3\nvote = "3/5"', "--guests is 3"),
        ('content = "/etc"', "--content"),
        ('key = "/etc/hostname"', "--key"),
        ('service = "x"', "unknown service"),
        ('service = "/nowhere/x.py"', "no file"),
    ],
)
def test_options_that_do_not_fit_together_are_rejected_as_by_up(
    scratch: Path, text: str, words: str
) -> None:
    assert words in str(problem(scratch, text))


def test_address_is_that_of_the_socket_unit(scratch: Path) -> None:
    served = ["0.0.0.0:80", "[::1]:8080"]
    assert read(scratch, "", served).http == "0.0.0.0:80"
    assert read(scratch, 'http = "[::1]:8080"', served).http == "[::1]:8080"
    error = problem(scratch, '\nhttp = "127.0.0.1:8080"', served)
    assert "line 2" in str(error)
    assert "systemctl edit trivisor-http.socket" in error.remedy
    assert "native" in str(problem(scratch, 'native = "127.0.0.1:1"', served))


def test_command_needs_a_configuration() -> None:
    done = CliRunner().invoke(prepare, ["--dir", "/nonexistent/node"])
    assert done.exit_code == 2
    assert "--config" in done.output


def test_start_of_a_node_that_runs_changes_nothing(scratch: Path) -> None:
    layout = plan(scratch / "node")
    record = layout.read_node()
    other = msgspec.structs.replace(record.settings, memory_mib=512)
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, str(layout.directory)],
        env=python_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == b"taken\n"
        for settings, steps in ((record.settings, 1), (other, 2)):
            printed: list[str] = []
            assert prepare_node(layout, settings, printed.append, managed=True) == record
            assert len(printed) == steps and str(holder.pid) in printed[0]
        with pytest.raises(AlreadyUp):
            prepare_node(layout, record.settings, printed.append)
        assert holder.stdin is not None
        holder.stdin.close()
    assert layout.read_node() == record
