"""What is written down of a node, who holds it, which processes are meant; logs and history."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.commands.launch import prepare_node
from deploy.errors import AlreadyUp, ForeignState
from deploy.host.child import Child
from deploy.host.identity import ProcessIdentity, identify
from deploy.host.logfile import LogFile, read_tail
from deploy.node.history import KEPT, EventHistory
from deploy.node.records import FaultRecord, Layout, Lock, NodeRecord, RunningRecord, Settings
from deploy.node.voter_config import voter_config
from deploy.supervisor.machines import node_spec
from voter.config import parse

ROOT = Path(__file__).resolve().parents[3]


def record(**settings: Any) -> NodeRecord:
    return NodeRecord(
        uuids=tuple(f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)),
        settings=Settings(**settings), kernel="/k", initrd="/i", image="sha", manifest="/m",
        accel="tcg", accel_reason="test",
    )  # fmt: skip


# ------------------------------------------------------------------ the directory


def test_what_is_written_is_read_back(scratch: Path) -> None:
    layout = Layout(scratch)
    layout.prepare()
    assert layout.read_running() == RunningRecord()
    node = record(allow_faults=True, vote="1/1", guests=1)
    fault = FaultRecord(kind="hang", since=1.5, until=None, proof="seen")
    running = RunningRecord(processes={"voter": me()}, http="127.0.0.1:1", faults={"g1": fault})
    layout.write(node)
    layout.write(running)
    assert (layout.read_node(), layout.read_running()) == (node, running)
    assert layout.node.stat().st_mode & 0o777 == 0o600
    layout.prepare()  # ours: may be used again


def test_a_new_directory_is_for_its_owner_only(scratch: Path) -> None:
    layout = Layout(scratch / "a" / "b")
    layout.prepare()
    assert layout.directory.stat().st_mode & 0o777 == 0o700


def test_a_start_that_was_cut_short_before_anything_was_written_can_be_made_again(
    scratch: Path,
) -> None:
    layout = Layout(scratch)
    layout.prepare()
    (scratch / "image").mkdir()
    layout.prepare()


@pytest.mark.parametrize("name", ["node", "running"])
def test_a_record_of_another_version_is_refused_by_name(scratch: Path, name: str) -> None:
    layout = Layout(scratch)
    layout.prepare()
    layout.write(record())
    layout.write(RunningRecord())
    path = scratch / f"{name}.json"
    value = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(value | {"schema": 2}))
    with pytest.raises(ForeignState, match="schema 2"):
        layout.prepare()
    path.write_bytes(msgspec.json.encode(value | {"surprise": 1}))
    with pytest.raises(ForeignState, match="surprise"):
        layout.prepare()


def test_what_runs_with_other_options_is_not_taken_over(scratch: Path) -> None:
    layout = Layout(scratch)
    layout.prepare()
    layout.write(record())
    with subprocess.Popen(["sleep", "60"]) as voter:
        mine = identify(voter.pid)
        assert mine is not None
        layout.write(RunningRecord(processes={"voter": mine}))
        with pytest.raises(AlreadyUp, match=f"voter .process {voter.pid}.*other options"):
            prepare_node(layout, Settings(vote="3/3"), lambda _: None)
        assert prepare_node(layout, Settings(), lambda _: None) == record()
        voter.kill()


# ------------------------------------------------------------------ processes


def me() -> ProcessIdentity:
    mine = identify(os.getpid())
    assert mine is not None
    return mine


def test_a_process_is_told_apart_from_one_with_the_same_pid() -> None:
    mine = me()
    assert mine.alive
    assert not msgspec.structs.replace(mine, start_ticks=mine.start_ticks + 1).alive
    assert not msgspec.structs.replace(mine, boot_id="another boot").alive
    assert Child.adopt(msgspec.structs.replace(mine, start_ticks=1)) is None


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert identify(process.pid) is None


async def test_a_child_is_followed_ended_and_reaped(scratch: Path) -> None:
    with LogFile(scratch / "log").open() as log:
        child = Child.start(["sh", "-c", "echo hello; exec sleep 60"], log=log)
    async with asyncio.timeout(20):
        while read_tail(scratch / "log", 5) != ["hello"]:  # noqa: ASYNC110 - a file gives no event
            await asyncio.sleep(0.01)
    adopted = Child.adopt(child.identity)
    assert adopted is not None
    assert child.status == adopted.status == "running"
    await child.end(5.0)
    await adopted.wait()
    assert child.status == "killed by SIGTERM"
    assert adopted.status == "ended"
    assert identify(child.pid) is None


async def test_a_child_that_does_not_listen_is_killed(scratch: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    )
    with LogFile(scratch / "log").open() as log:
        child = Child.start([sys.executable, "-c", f"{code}; time.sleep(60)"], log=log)
    async with asyncio.timeout(20):
        while not read_tail(scratch / "log", 1):  # noqa: ASYNC110 - a file gives no event
            await asyncio.sleep(0.01)
    await child.end(0.1)
    assert child.status == f"killed by {signal.SIGKILL.name}"


def test_the_lock_is_held_by_one_and_let_go_when_its_process_ends(scratch: Path) -> None:
    layout = Layout(scratch)
    layout.prepare()
    assert Lock(layout).holder() is None
    code = (
        "import sys\nfrom pathlib import Path\nfrom deploy.node.records import Layout, Lock\n"
        "Lock(Layout(Path(sys.argv[1]))).take()\nprint(1, flush=True)\nsys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(scratch)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert Lock(layout).holder() == holder.pid
        with pytest.raises(AlreadyUp, match=str(holder.pid)):
            Lock(layout).take()
        holder.kill()
    lock = Lock(layout)
    lock.take()
    lock.release()


# ------------------------------------------------------------------ what is made of them


def test_the_voters_configuration_is_one_that_the_voter_takes(scratch: Path) -> None:
    links = {"g1": 'unix:/a "quoted"\\path', "g2": "unix:/b", "g3": "unix:/c"}
    config = parse(voter_config(Layout(scratch), Settings(), "me", links))
    assert {replica.name: replica.link for replica in config.replica} == links
    assert (config.vote, config.service) == ("2/3", "kv")
    own = Settings(service="/somewhere/counter.py")
    assert parse(voter_config(Layout(scratch), own, "me", links)).service is None


def test_only_a_node_that_allows_faults_has_its_memory_in_a_file(scratch: Path) -> None:
    for allowed in (False, True):
        spec = node_spec(Layout(scratch), record(allow_faults=allowed, memory_mib=256))
        assert [guest.ram_file for guest in spec.guests] == [allowed] * 3
        assert {guest.memory_mib for guest in spec.guests} == {256}
        assert [guest.name for guest in spec.guests] == ["g1", "g2", "g3"]


# ------------------------------------------------------------------ bounded memory and disk


def test_a_log_that_grew_is_put_aside_while_its_writer_goes_on(scratch: Path) -> None:
    log = LogFile(scratch / "log", limit=100)
    with log.open() as writer:
        writer.write(b"x" * 99)
        log.trim()
        assert log.path.stat().st_size == 99
        writer.write(b"yy\n")
        log.trim()
        writer.write(b"after\n")
    assert (scratch / "log.1").read_bytes() == b"x" * 99 + b"yy\n"
    assert read_tail(log.path, 5) == ["after"]
    assert read_tail(scratch / "none", 5) == []


async def test_history_is_numbered_bounded_and_followed() -> None:
    history = EventHistory()
    for number in range(KEPT + 5):
        history.add("thing", f"g{number}", number=number)
    events = history.after(0)
    assert len(events) == KEPT
    assert events[-1]["id"] == KEPT + 5
    assert history.after(KEPT + 4)[0]["guest"] == f"g{KEPT + 4}"
    following = history.follow(KEPT + 4)
    assert (await anext(following))["id"] == KEPT + 5
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    assert not waiting.done()
    history.add("news")
    assert (await waiting)["what"] == "news"


def test_a_function_on_the_host_is_one_line_of_the_voters_configuration(scratch: Path) -> None:
    links = {"g1": "unix:/1", "g2": "unix:/2", "g3": "unix:/3"}
    plain = voter_config(Layout(scratch), Settings(), "me", links)
    inside = Settings(function="guest", key="/key")
    assert voter_config(Layout(scratch), inside, "me", links) == plain
    moved = voter_config(Layout(scratch), Settings(function="unix:/f.sock"), "me", links)
    assert set(moved.splitlines()) - set(plain.splitlines()) == {'function = "unix:/f.sock"'}
    assert parse(moved).function == "unix:/f.sock"
