"""``trivisor replay``: what it lists, refuses, prints, and how it exits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import trivisor
from deploy.node.records import Layout, NodeRecord, Settings
from guests.protocol.message import encode_request
from tests.deploy.replay.journals import JournalMaker, make_journal, put
from tests.errors import raises
from voter.core.entries import RoleChange

HUGE = 1 << 16


def node(directory: Path, **settings: Any) -> Path:
    """Make the directory of a node that is stopped, with a journal."""
    layout = Layout(directory)
    layout.prepare()
    layout.write(
        NodeRecord(
            uuids=("node", "g1", "g2", "g3"), settings=Settings(**settings), kernel="/none/kernel",
            initrd="/none/initrd", image="0" * 64, manifest="/none/manifest", accel="tcg",
            accel_reason="test",
        )
    )  # fmt: skip
    return directory


def fill(maker: JournalMaker) -> Iterable[None]:
    """Write three checkpoints, a lie and an attack."""
    for at in range(90):
        if at == 50:
            maker.write(encode_request("PUT", "/kv/..%2Fx", (), b"y"), "eve")
        elif at == 60:
            maker.seq += 1
            roles = {"g1": "voter", "g2": "retired", "g3": "voter", "g4": "voter"}
            maker.run.write(RoleChange(maker.seq, 1, roles, "patched"))
        elif at == 70:
            maker.write(put("k", "v"), "bob", lie=b"HTTP/1.1 200 OK\r\n\r\nlie")
        else:
            maker.write(put(f"key-{at % 5}", "value"))
        if at % 30 == 29:
            yield


def run(*words: str) -> Result:
    return CliRunner().invoke(trivisor.command, ["replay", *words], standalone_mode=False)


@pytest.fixture
async def written(tmp_path: Path) -> Path:
    directory = node(tmp_path / "node")
    await make_journal(directory / "journal", fill)
    return directory


def test_list_shows_where_a_replay_can_start(written: Path) -> None:
    found = json.loads(run("--dir", str(written), "--list", "--json").stdout)
    assert [each["seq"] for each in found["checkpoints"]] == [0, 31, 62, 93]
    assert found["service"] == "kv"
    shown = run("--dir", str(written), "--list").stdout.splitlines()
    assert "the empty state" in shown[0] and "2023-11-14" in shown[1]


def test_a_difference_is_shown_and_is_a_failure(written: Path) -> None:
    done = run("--dir", str(written), "--stand-in")
    assert done.return_value == 1
    assert "from 63 on g1, g3, g4 vote (patched)" in done.stdout
    assert "88 of 89 are the released ones" in done.stdout
    assert "digests: 3 of 3 are the voted ones" in done.stdout
    assert "a process of this host (stand-in)" in done.stdout
    assert "bob: PUT /kv/k" in done.stdout
    assert "reads are not in the journal" in done.stdout


def test_a_range_without_a_difference_succeeds_and_json_has_all(written: Path) -> None:
    done = run("--dir", str(written), "--stand-in", "--from", "40", "--until", "60", "--json")
    found = json.loads(done.stdout)
    assert done.return_value == 0 and found["role_changes"] == []
    assert (found["start"], found["last"], found["writes"]) == (31, 60, 29)
    assert found["differences"] == [] and found["executed_by"].endswith("(stand-in)")


def test_a_match_is_a_failure_that_names_the_caller(written: Path, tmp_path: Path) -> None:
    file = tmp_path / "predicate.py"
    file.write_text("def request(context): return b'..' in context.path\n")
    done = run("--dir", str(written), "--stand-in", "--until", "60", "--predicate", str(file))
    assert done.return_value == 1
    assert "matches: 1 by eve (1)" in done.stdout and "PUT /kv/..%2Fx" in done.stdout


def test_what_is_not_kept_or_makes_no_sense_is_refused(written: Path, tmp_path: Path) -> None:
    for checkpoint in sorted((written / "journal/history").glob("*")):
        checkpoint.unlink()
    (written / "journal/segment-0000000001").rename(tmp_path / "gone")
    with raises("TV0256", match="nothing is kept"):
        trivisor.command(["replay", "--dir", str(written), "--from", "5"], standalone_mode=False)
    done = run("--dir", str(written), "--from", "50", "--until", "40")
    assert "--until 40 is before --from 50" in str(done.exception)
    done = run("--dir", str(written), "--state-every", "40")
    assert "--state-every needs --predicate" in str(done.exception)


def test_a_stand_in_cannot_replace_a_guest_with_a_function(tmp_path: Path, written: Path) -> None:
    other = node(tmp_path / "other", function="guest", key="/none/key")
    (written / "journal").rename(other / "journal")
    with raises("TV0856"):
        trivisor.command(["replay", "--dir", str(other), "--stand-in"], standalone_mode=False)


def test_a_host_without_memory_is_refused_before_anything_starts(
    written: Path, tmp_path: Path
) -> None:
    other = node(tmp_path / "other", memory_mib=HUGE)
    (written / "journal").rename(other / "journal")
    with raises("TV0855", match="does not fit"):
        trivisor.command(["replay", "--dir", str(other)], standalone_mode=False)
