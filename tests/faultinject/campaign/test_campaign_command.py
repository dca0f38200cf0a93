"""``trivisor campaign`` as a user runs it, on fake nodes: killed, full disk, interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from deploy.host.scratch import processes_of
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import parse
from tests.faultinject.campaign.fake_node import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.processes import ROOT, following, kill_command
from tests.faultinject.campaign.workers.test_dispatch import MISSIONS, SPEC
from tests.waiting import wait_until
from voter.commands.terminal import ExitCode


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "TMPDIR": str(home),
        "FAKE_NODE": str(home),
        "TRIVISOR_CACHE": str(home / "cache"),
    }


def start(home: Path, *words: str, file: str = "log") -> subprocess.Popen[bytes]:
    with (home / file).open("ab") as log:
        return subprocess.Popen(
            following(sys.executable, "-m", "trivisor", "campaign", *words),
            cwd=ROOT, env=environment(home), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def call(home: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        following(sys.executable, "-m", "trivisor", "campaign", *words),
        cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def begin(home: Path, *more: str) -> list[str]:
    """Write the spec; return the words that run it."""
    (home / "spec.toml").write_text(SPEC)
    out = ["--out", str(home / "r"), "--seed", "7"]
    return ["run", str(home / "spec.toml"), *out, "--worker-module", FAKE, "--no-report", *more]


def stored(home: Path) -> list[int]:
    path = home / "r" / "campaign.sqlite"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as connection:
        try:
            return [row[0] for row in connection.execute("SELECT mission FROM missions")]
        except sqlite3.OperationalError:
            return []  # it is being made


def resume(home: Path, *more: str, code: int = 0) -> str:
    words = ("resume", str(home / "r"), "--worker-module", FAKE, "--no-report", *more)
    return call(home, *words, code=code)


def test_campaign_on_a_read_only_mount_can_be_read(scratch: Path) -> None:
    directory = scratch / "r"
    call(scratch, *begin(scratch, "--first", "12"))
    mount = f"mount --bind {directory} {directory} && mount -o remount,ro,bind {directory}"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    words = {
        "status": "status r", "report": "report r --out page", "export": "export r --out rows.csv",
        "here": "report r", "resume": "resume r", "agree": "agree r r",
    }  # fmt: skip
    script = "".join(
        f"{sys.executable} -m trivisor campaign {each} >{name}.txt 2>&1; echo $?\n"
        for name, each in words.items()
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} || exit\n{script}"], cwd=scratch,
        env=environment(scratch) | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    said = {name: (scratch / f"{name}.txt").read_text() for name in words}
    codes = dict(zip(words, done.stdout.split(), strict=True))
    assert codes == {"status": "0", "report": "0", "export": "0", "here": "2", "resume": "1",
                     "agree": "0"}, said  # fmt: skip
    assert "12 of 30" in said["status"] and "--out" in said["here"]
    assert "Read-only file system" in said["resume"]
    assert len((scratch / "rows.csv").read_text().splitlines()) == 13
    assert (scratch / "page" / "report.html").stat().st_size > 10_000


def test_run_status_resume_export_replay(scratch: Path) -> None:
    text = call(scratch, *begin(scratch, "--first", "12", "--workers", "2"))
    assert "12 of 30 missions" in text and "partial" in text
    shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert (shown["state"], shown["done"], shown["total"]) == ("first part done", 12, MISSIONS)
    assert shown["complete_prefix"] == 12 and shown["rate"] is None
    assert sum(cell["trials"] for cell in shown["cells"]) == 12

    text = resume(scratch)
    assert "30 of 30 missions" in text and "partial" not in text and "R_sys" in text
    shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert shown["state"] == "complete" and len(shown["runs"]) == 2
    failed = {cell["name"]: cell["failures"] for cell in shown["cells"]}
    assert failed == {"f0": 0, "f1": 0, "f2": 6, "f3": 4}

    table = scratch / "rows.csv"
    assert call(scratch, "export", str(scratch / "r"), "--out", str(table)).startswith("30 rows")
    assert len(table.read_text().splitlines()) == MISSIONS + 1
    call(scratch, "export", str(scratch / "r"), "--out", "rows.txt", code=ExitCode.USAGE)

    again = ("replay", str(scratch / "r"), "25", "--worker-module", FAKE)
    played = json.loads(call(scratch, *again, "--json"))
    assert played["same"] is True and played["row"]["index"] == 25
    assert played["plan"]["hits"] and played["row"]["hits"][0]["proof"] == "fake"
    shown = call(scratch, *again)
    assert "mission 25" in shown and "hang" in shown and "the same" in shown
    assert len(stored(scratch)) == MISSIONS  # nothing of it is stored
    text = call(scratch, "replay", str(scratch / "r"), "30", code=ExitCode.USAGE)
    assert "error TV0529: " in text
    assert not fake_guests(scratch) and not list(scratch.glob("tv-c-*"))


def test_plan_shows_missions_and_duration(scratch: Path) -> None:
    (scratch / "spec.toml").write_text(SPEC)
    shown = json.loads(call(scratch, "plan", str(scratch / "spec.toml"), "--seed", "7", "--json"))
    assert shown["missions"] == MISSIONS and shown["seconds"] > 0
    assert shown["plan"] == plan(parse(SPEC), 7).fingerprint
    assert shown["durations_of_this_host"] is False
    assert all(each["least"] is None or each["least"] > 0 for each in shown["power"])
    assert {"subject", "quantity", "where", "least", "of", "pooled"} <= set(shown["power"][0])
    assert "30 missions" in call(scratch, "plan", str(scratch / "spec.toml"))


def test_run_refuses_a_campaign_that_another_process_runs(scratch: Path) -> None:
    behave(scratch, pause=1.0)
    runner = start(scratch, *begin(scratch))
    try:
        wait_until(lambda: stored(scratch))
        assert "another process" in resume(scratch, code=ExitCode.ALREADY_UP)
        wait_until(lambda: len(stored(scratch)) > 2)
        shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
        assert shown["state"] == "running" and shown["rate"] > 0 and shown["left"] > 0
    finally:
        runner.send_signal(signal.SIGINT)
        assert runner.wait(30) == ExitCode.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_leaves_nothing_behind_when_interrupted_and_can_be_resumed(
    scratch: Path, number: signal.Signals
) -> None:
    behave(scratch, pause=0.5)
    runner = start(scratch, *begin(scratch, "--workers", "2"))
    wait_until(lambda: len(stored(scratch)) >= 3)
    runner.send_signal(number)
    assert runner.wait(30) == ExitCode.INTERRUPTED
    assert not fake_guests(scratch) and not processes_of(scratch)
    assert not list(scratch.glob("tv-c-*"))
    shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert shown["state"] == "interrupted" and 3 <= shown["done"] < MISSIONS
    assert "partial" in (scratch / "log").read_text()
    behave(scratch)
    resume(scratch)
    assert sorted(stored(scratch)) == list(range(MISSIONS))


def test_resume_completes_the_plan_after_repeated_kills(scratch: Path) -> None:
    """kill -9 of the runner at random moments: no mission is lost, none is stored twice."""
    behave(scratch, pause=0.2)
    chance = random.Random(1)
    words, kills = begin(scratch, "--workers", "2"), 0
    while len(stored(scratch)) < MISSIONS:
        runner = start(scratch, *words)
        before = len(stored(scratch))
        deadline = time.monotonic() + 40
        while len(stored(scratch)) == before and runner.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.5))
        if runner.poll() is None:
            kill_command(runner)
            kills += 1
        runner.wait()
        if (scratch / "r" / "campaign.sqlite").exists():
            words = ["resume", str(scratch / "r"), "--worker-module", FAKE, "--no-report",
                     "--workers", "2"]  # fmt: skip
    resume(scratch)  # also when the last one was killed right after its last row
    assert kills >= 3
    assert sorted(stored(scratch)) == list(range(MISSIONS))
    runs = Counter(began(scratch))
    assert set(runs) == set(range(MISSIONS))
    # Only missions that ran when the runner was killed, two at a time, were run again.
    assert sum(runs.values()) - MISSIONS <= 3 * kills
    wait_until(lambda: not fake_guests(scratch) and not processes_of(scratch))
    assert not list(scratch.glob("tv-c-*"))
    shown = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert (
        shown["state"] == "complete" and sum(cell["trials"] for cell in shown["cells"]) == MISSIONS
    )


def test_agree_compares_two_runs_of_one_plan(scratch: Path) -> None:
    call(scratch, *begin(scratch))
    words = begin(scratch)
    words[words.index(str(scratch / "r"))] = str(scratch / "s")
    call(scratch, *words, "--first", "20")
    shown = json.loads(call(scratch, "agree", str(scratch / "r"), str(scratch / "s"), "--json"))
    assert shown["both"] == shown["trials"] == 20 and shown["other_outcome"] == 0
    assert shown["low"] == 0 and 0.1 < shown["high"] < 0.2
    assert "20 missions were run by both" in call(
        scratch, "agree", str(scratch / "r"), str(scratch / "s")
    )
    words[words.index(str(scratch / "s"))] = str(scratch / "t")
    words[words.index("7")] = "8"
    call(scratch, *words, "--first", "1")
    text = call(scratch, "agree", str(scratch / "r"), str(scratch / "t"), code=ExitCode.USAGE)
    assert "different seeds" in text


def test_resume_adds_the_declared_extension_once(scratch: Path) -> None:
    words = begin(scratch)
    (scratch / "spec.toml").write_text(SPEC.replace("faults =", "extension = 0.5\nfaults ="))
    call(scratch, *words, "--first", "29")
    assert "incomplete" in resume(scratch, "--extend", code=ExitCode.FAILED)
    resume(scratch)
    assert "45 of 45 missions" in resume(scratch, "--extend")
    assert sorted(stored(scratch)) == list(range(45))
