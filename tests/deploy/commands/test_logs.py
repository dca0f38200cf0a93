"""`trivisor logs`: files, events and consoles, while the node runs and afterwards."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.commands.logs import logs
from deploy.errors import DeployError
from deploy.host.spawn import python_command, python_environment
from deploy.node.records import Layout, Lock
from tests.deploy.supervisor.running import Running, plan
from tests.waiting import until
from voter.commands.terminal import SYSTEM_DIRECTORY, ExitCode


def run(layout: Layout, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_command("trivisor", "logs", *words, "--dir", layout.directory),
        env=python_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


async def run_on(node: Running, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run, node.layout, *words)


@pytest.fixture
def layout(scratch: Path) -> Layout:
    """Give a node that is down, with a log of four lines."""
    layout = plan(scratch)
    layout.voter_log.write_bytes(b"one\n\x1b[31mtwo\x07\n\xff three\nfour\n")
    return layout


def test_log_has_the_wanted_lines_and_no_control_characters(layout: Layout) -> None:
    assert run(layout, "voter", "-n", "3").stdout == "\\x1b[31mtwo\\x07\n\ufffd three\nfour\n"
    assert run(layout, "voter", "-n", "0").stdout == ""
    assert json.loads(run(layout, "voter", "-n", "1", "--json").stdout) == {"lines": ["four"]}


def test_log_that_was_trimmed_continues_in_its_older_part(layout: Layout) -> None:
    layout.voter_log.with_name("voter.log.1").write_text("minus one\nzero\n")
    assert run(layout, "voter", "-n", "5").stdout.splitlines()[0] == "zero"


def test_followed_log_ends_with_the_node(layout: Layout) -> None:
    lock = Lock(layout)
    lock.take()  # as the supervisor does
    command = python_command(
        "trivisor", "logs", "voter", "-f", "-n", "1", "--dir", layout.directory
    )
    with subprocess.Popen(command, env=python_environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"four\n"
        with layout.voter_log.open("ab") as file:
            file.write(b"five\nsi")
            file.flush()
            assert process.stdout.readline() == b"five\n"
            file.write(b"x\n")
        assert process.stdout.readline() == b"six\n"
        layout.voter_log.write_bytes(b"trimmed\n")
        assert process.stdout.readline() == b"trimmed\n"
        lock.release()
        assert process.wait(20) == 0


def test_nothing_to_show_is_an_error(scratch: Path) -> None:
    for words in ((), ("g1",), ("voter",)):
        done = run(Layout(scratch), *words)
        assert (done.returncode, done.stdout) == (ExitCode.NOT_UP, "")


async def test_events_and_consoles_are_shown_and_kept_after_the_end(
    plain_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = json.loads((await run_on(plain_node, "-n", "2", "--json")).stdout)["events"]
    assert [event["event"] for event in events] == ["replica", "replica"]
    assert (await run_on(plain_node, "-n", "0")).stdout == ""
    for name in ("nonsense", "../g1", "g1?lines=9"):
        assert (await run_on(plain_node, name)).returncode == ExitCode.USAGE
    history, followed = plain_node.supervisor.history, list[int]()
    follow = history.follow

    def counted(since: int) -> AsyncIterator[dict[str, Any]]:
        followed.append(since)
        return follow(since)

    monkeypatch.setattr(history, "follow", counted)
    following = [
        asyncio.create_task(run_on(plain_node, "-f", "--json", *words))
        for words in ((), ("g1",), ("-n", "0"))
    ]
    await until(lambda: plain_node.guests["g1"].console.followers > 0 and len(followed) == 2)
    plain_node.guests["g1"].console.feed(b"a line\n")
    await plain_node.guests["g2"].kill()
    await until(lambda: bool(plain_node.events("repaired")))
    await plain_node.stop()
    shown, console, new = [
        [json.loads(line) for line in (await each).stdout.splitlines()] for each in following
    ]
    assert {"replica", "repaired"} <= {event["event"] for event in shown}
    assert [event["id"] for event in shown] == list(range(1, len(shown) + 1))
    assert new == shown[-len(new) :]
    assert min(event["id"] for event in new) > events[-1]["id"]
    assert console == [{"line": "g1 is a process"}, {"line": "a line"}]
    assert "repaired" in (await run_on(plain_node)).stdout
    assert (await run_on(plain_node, "g1")).stdout == "g1 is a process\n"


async def test_start_that_failed_leaves_its_events_and_consoles(scratch: Path) -> None:
    running = Running(plan(scratch, http="256.0.0.1:1"))
    with pytest.raises(DeployError):
        await running.start_and_fail()
    assert "256.0.0.1" in (await run_on(running)).stdout
    assert (await run_on(running, "g1")).stdout == "g1 is a process\n"


def test_system_log_that_cannot_be_read_is_an_error(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scratch / "journalctl").write_text("#!/bin/sh\nexit 1\n")
    (scratch / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{scratch}:/usr/bin:/bin")
    done = CliRunner().invoke(logs, ["voter", "--dir", str(SYSTEM_DIRECTORY)])
    assert getattr(done.exception, "error_code", done.output) == "TV0724"
