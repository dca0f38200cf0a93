"""The command as a user types it, without guests (with guests: test_trivisor_node.py)."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import trivisor
from deploy.error_catalogue import load
from deploy.errors import PathTooLong
from deploy.host.identity import identify
from deploy.node.records import Layout, Lock, NodeRecord, RunningRecord, Settings
from faultinject.faults.catalogue import offered_on_nodes
from voter.client.errors import NotExecuted
from voter.commands.terminal import ExitCode

ROOT = Path(__file__).resolve().parents[1]


def run(
    *words: str, env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "trivisor", *words],
        cwd=ROOT,
        env=os.environ | (env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def record(**settings: object) -> NodeRecord:
    return NodeRecord(
        uuids=("u0", "u1", "u2", "u3"),
        settings=Settings(**settings),  # type: ignore[arg-type]
        kernel="/k", initrd="/i", image="sha", manifest="/m", accel="tcg", accel_reason="test",
    )  # fmt: skip


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in trivisor.COMMANDS.keys() - trivisor.HIDDEN:
        assert f"  {name} " in done.stdout
    assert "supervise" not in done.stdout
    words = " ".join(done.stdout.split())
    for code in ExitCode:
        assert f"{code.value} {code.name.lower().replace('_', ' ')}" in words


@pytest.mark.parametrize("name", trivisor.COMMANDS)
def test_every_command_that_is_listed_is_there(name: str) -> None:
    module, attribute, _ = trivisor.COMMANDS[name]
    assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)


@pytest.mark.parametrize("path", trivisor.EXIT_CODES)
def test_every_error_with_an_exit_code_exists(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), Exception)


@pytest.mark.parametrize(
    "error,code,error_code",
    [
        (PathTooLong("/long", excess=3), ExitCode.USAGE, "TV0703"),
        (NotExecuted("no majority"), ExitCode.NO_MAJORITY, "TV0301"),
        (RuntimeError("a bug"), ExitCode.FAILED, "TV0001"),
        (
            ImportError("libvirt.so.0: no such file", name="libvirtmod"),
            ExitCode.CANNOT_RUN_HERE,
            "TV0002",
        ),
    ],
)
def test_an_error_is_one_message_its_remedy_and_a_code(
    error: Exception,
    code: ExitCode,
    error_code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(trivisor.command, "main", fail)
    with pytest.raises(SystemExit) as ended:
        trivisor.main(["status"])
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert str(getattr(error, "problem", error)) in said
    assert f"error {error_code}: " in said
    assert ("remedy: choose a directory" in said) == isinstance(error, PathTooLong)
    with pytest.raises(type(error)):
        trivisor.main(["--debug", "status"])


def test_status_imports_no_slow_library() -> None:
    """`status` is to be quick: no aiohttp, no libvirt, no rich, no asyncio."""
    code = (
        "import sys, trivisor\n"
        "try: trivisor.main(['status', '--dir', sys.argv[1], '--json'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'aiohttp', 'libvirt', 'rich', 'asyncio'} & sys.modules.keys()))"
    )
    words = [sys.executable, "-c", code, "/nonexistent"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "words,said",
    [
        (["nonsense"], "No such command"),
        (["up", "--vote", "4/3"], "m must be from 1 to n"),
        (["up", "--vote", "two of three"], "m/n"),
        (["up", "--vote", "2/5"], "two different replies could both win"),
        (["up", "--vote", "2/3", "--guests", "5"], "--guests is 5"),
        (["up", "--service", "nonsense"], "unknown service"),
        (["up", "--service", "nonsense.py"], "no file"),
        (["up", "--accel", "warp"], "warp"),
        (["inject", "nonsense", "g1"], "nonsense"),
        (["inject", "crash", "g1", "--for", "-1"], "-1"),
        (["request", "GET"], "PATH"),
        (["request", "GET", "/", "--header", "no colon"], "Name: value"),
        (["request", "GET", "/", "--data", "@/nonexistent"], "No such file"),
        (["voter", "--config", "/nonexistent"], "does not exist"),
        (["service", "check", "/nonexistent.py"], "no service"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_usage_error_exits_with_2(words: list[str], said: str, scratch: Path) -> None:
    done = run(*words, env={"TRIVISOR_DIR": str(scratch / "node")})
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (scratch / "node").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["down"],
        ["logs"],
        ["logs", "g1"],
        ["heal", "g1"],
        ["inject", "crash", "g1"],
        ["request", "GET", "/"],
    ],
)
def test_command_without_a_node_exits_with_5(words: list[str], scratch: Path) -> None:
    done = run(*words, "--dir", str(scratch / "none"))
    assert (done.returncode, done.stdout) == (ExitCode.NOT_UP, "")
    assert str(scratch / "none") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (scratch / "none").exists()


# ------------------------------------------------------- directories that are not ours


def test_a_directory_with_other_things_in_it_is_not_touched(scratch: Path) -> None:
    (scratch / "letter.txt").write_text("dear sister")
    done = run("up", "--dir", str(scratch))
    assert done.returncode == ExitCode.FOREIGN
    assert "not a node's directory" in done.stderr
    assert [path.name for path in scratch.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"schema": 99}', '{"schema": 1}', "[1]"])
@pytest.mark.parametrize("words", [["up"], ["down"]])
def test_unreadable_state_is_not_touched(text: str, words: list[str], scratch: Path) -> None:
    (scratch / "node.json").write_text(text)
    done = run(*words, "--dir", str(scratch))
    assert done.returncode == ExitCode.FOREIGN
    assert "node.json" in done.stderr
    assert "nothing" in done.stderr
    assert (scratch / "node.json").read_text() == text
    assert {path.name for path in scratch.iterdir()} <= {"node.json", "supervisor.lock"}


def test_processes_that_only_have_the_same_pid_are_not_touched(scratch: Path) -> None:
    """A recorded pid that now belongs to another process: its start time differs."""
    layout = Layout(scratch)
    layout.prepare()
    layout.write(record())
    with subprocess.Popen(["sleep", "60"]) as other:
        mine = identify(other.pid)
        assert mine is not None
        stale = type(mine)(pid=mine.pid, start_ticks=mine.start_ticks - 1, boot_id=mine.boot_id)
        layout.write(RunningRecord(processes={"voter": stale}))
        done = run("down", "--dir", str(scratch))
        assert done.returncode == ExitCode.NOT_UP
        assert other.poll() is None
        other.kill()


def test_a_second_up_names_the_process_that_has_the_directory(scratch: Path) -> None:
    layout = Layout(scratch)
    layout.prepare()
    layout.write(record())
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom deploy.node.records import Layout, Lock\n"
        "Lock(Layout(Path(sys.argv[1]))).take()\nprint('held', flush=True)\ntime.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(scratch)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert Lock(layout).holder() == holder.pid
        done = run("up", "--dir", str(scratch))
        assert done.returncode == ExitCode.ALREADY_UP
        assert f"process {holder.pid}" in done.stderr
        holder.kill()
    assert Lock(layout).holder() is None


def test_too_long_directory_error_gives_the_excess(scratch: Path) -> None:
    long = scratch / ("d" * 120)
    done = run("up", "--dir", str(long))
    assert done.returncode == ExitCode.USAGE
    assert "bytes too long" in done.stderr
    assert "shorter" in done.stderr
    assert not long.exists()


# --------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_is_printed(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_TRIVISOR_COMPLETE" in done.stdout


def test_completion_completes_commands_and_kinds() -> None:
    def complete(line: str) -> str:
        env = {"_TRIVISOR_COMPLETE": "bash_complete", "COMP_WORDS": line}
        return run(env=env | {"COMP_CWORD": str(len(line.split()) - 1)}).stdout

    assert "plain,status" in complete("trivisor sta")
    assert "plain,corrupt-reply" in complete("trivisor inject corrupt-r")


def test_doctor_reports_as_json_and_by_its_exit_code(scratch: Path) -> None:
    done = run("doctor", "--json", "--dir", str(scratch))
    said = json.loads(done.stdout)
    assert said["ok"] == (done.returncode == 0)
    assert {"system", "qemu-system-x86_64", "libvirt", "mmdebstrap"} <= {
        check["check"] for check in said["checks"]
    }


def test_doctor_names_the_package_for_what_is_missing(scratch: Path) -> None:
    done = run("doctor", "--dir", str(scratch), env={"PATH": str(scratch)})
    assert done.returncode == ExitCode.CANNOT_RUN_HERE
    for package in ("qemu-system-x86", "qemu-utils", "mmdebstrap"):
        assert re.search(rf"apt-get install .*\b{package}\b", done.stdout)


def test_inject_help_explains_every_kind() -> None:
    words = " ".join(run("inject", "--help").stdout.split())
    for kind, fault in offered_on_nodes().items():
        assert kind in words
        assert " ".join(fault.does.split()) in words


def test_the_voter_alone_serves_processes_and_ends_when_asked(scratch: Path) -> None:
    """`trivisor voter --config` before exec: replicas, asked by `trivisor request --to`."""
    agent = f"{sys.executable} -m guests.agent --stdio --service kv"
    replicas = "".join(f'[[replica]]\nname = "r{n}"\nlink = "exec:{agent}"\n' for n in range(3))
    config, sock = scratch / "voter.toml", scratch / "native.sock"
    config.write_text(f'vote = "2/3"\n[listen]\nnative_unix = "{sock}"\n{replicas}')
    assert run("voter", "--config", str(config), "--check").returncode == 0
    words = [sys.executable, "-m", "trivisor", "voter", "--config", str(config)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as voter:
        deadline = time.monotonic() + 20
        while True:
            done = run("request", "PUT", "/kv/a", "--data", "@-", "--to", f"unix:{sock}", stdin="x")
            if done.returncode == 0 or time.monotonic() > deadline:
                break
        assert done.returncode == 0, done.stderr
        done = run("request", "GET", "/kv/a", "--json", "--dir", str(scratch))
        said = json.loads(done.stdout)
        assert (said["status"], said["body"]) == (200, "x")
        assert said["vote"]["agreed"] >= 2
        assert run("request", "GET", "/kv/b", "--fail", "--dir", str(scratch)).returncode == 1
        assert run("request", "GET", "/kv/b", "--dir", str(scratch)).returncode == 0
        voter.terminate()
        assert voter.wait(10) == 0


def test_a_wrong_voter_configuration_is_named_with_its_line(scratch: Path) -> None:
    config = scratch / "voter.toml"
    config.write_text('vote = "2/3"\nvoet = 1\n')
    done = run("voter", "--config", str(config))
    assert done.returncode == ExitCode.USAGE
    assert "line 2" in done.stderr
    assert "voet" in done.stderr


@pytest.mark.parametrize(
    "words,code",
    [
        (["nonsense"], "TV0003"),
        (["status", "--nonsense"], "TV0004"),
        (["request", "GET"], "TV0005"),
        (["status", "--dir"], "TV0005"),
        (["inject", "crash", "g1", "--for", "-1"], "TV0006"),
        (["request", "--to", "tcp:a:1", "--dir", "b", "GET", "/"], "TV0007"),
        (["explain", "TV9999"], "TV0013"),
    ],
)
def test_a_usage_error_has_a_code(
    words: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        trivisor.main(words)
    assert ended.value.code == ExitCode.USAGE
    assert f"error {code}: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["TV0013", "tv0013", "0013", "13"])
def test_explain_prints_the_entry_of_a_code(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        trivisor.main(["explain", text])
    assert ended.value.code == ExitCode.OK
    shown = capsys.readouterr().out
    assert shown.startswith("TV0013: ")
    assert all(word in shown for word in ("What happened", "Why", "What to do"))


def test_explain_lists_all_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["explain"], ["explain", "--json"]):
        with pytest.raises(SystemExit) as ended:
            trivisor.main(words)
        assert ended.value.code == ExitCode.OK
        shown = capsys.readouterr().out
        assert [code for code in load() if code not in shown] == []
    assert [each["code"] for each in json.loads(shown)] == list(load())


def test_an_error_of_a_json_command_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        trivisor.main(["explain", "--json", "TV0014x"])
    answer = json.loads(capsys.readouterr().err)
    assert answer["error_code"] == "TV0013"
    assert answer["code"] == ExitCode.USAGE
    assert "TV0014x" in answer["error"] and "trivisor explain" in answer["remedy"]


def test_the_shell_completes_codes_of_errors() -> None:
    words = {"COMP_WORDS": "trivisor explain TV001", "COMP_CWORD": "2"}
    done = run(env=words | {"_TRIVISOR_COMPLETE": "bash_complete"})
    assert "plain,TV0013" in done.stdout.split()


@pytest.mark.parametrize(
    "file,code",
    [
        ("/sys/kernel/tree.xml", "TV0008"),
        ("/dev/full", "TV0009"),
        ("dangling.xml", "TV0010"),
        (f"{'x' * 300}.xml", "TV0011"),
    ],
)
def test_error_of_the_operating_system_has_a_code(
    file: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    target = tmp_path / file
    if file == "dangling.xml":
        target.symlink_to(tmp_path / "none" / "tree.xml")
    with pytest.raises(SystemExit):
        trivisor.main(["model", "export", "mef", "--design", "2of3", "--rm", ".9", "--rv", ".99",
                       "--out", str(target)])  # fmt: skip
    assert f"error {code}: " in capsys.readouterr().err


def test_a_user_without_a_home_directory_is_told_what_to_set() -> None:
    code = "import os, trivisor; os.setuid(54321); trivisor.main(['status'])"
    left = {k: v for k, v in os.environ.items() if k not in ("HOME", "TRIVISOR_DIR")}
    left = {k: v for k, v in left.items() if not k.startswith("XDG_")}
    if os.geteuid():
        pytest.skip("only root can become a user without a home directory")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=left, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert "error TV0012: " in done.stderr and "set HOME" in done.stderr


def test_deleting_a_journal_needs_consent(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(scratch)
    layout.write(record())
    layout.journal.mkdir()
    (layout.journal / "segment-0000000001").touch()
    with pytest.raises(SystemExit) as ended:
        trivisor.main(["up", "--fresh", "--dir", str(scratch)])
    assert ended.value.code == ExitCode.USAGE
    assert "error TV0720: " in capsys.readouterr().err
