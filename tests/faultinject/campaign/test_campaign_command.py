"""``trivisor campaign`` as a user runs it, on fake stations: killed, full disk, interrupted."""

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
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.workers.scratch import processes_of
from tests.faultinject.campaign.fake_station import FAKE, began, behave, fake_guests
from tests.faultinject.campaign.processes import ROOT, following
from tests.faultinject.campaign.workers.test_runner import MISSIONS, SPEC
from tests.faultinject.campaign.workers.test_worker_process import wait_until
from voter.commands.terminal import ExitCode


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "TMPDIR": str(home),
        "FAKE_STATION": str(home),
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


def test_run_status_resume_export_replay(scratch: Path) -> None:
    said = call(scratch, *begin(scratch, "--first", "12", "--workers", "2"))
    assert "12 of 30 missions" in said and "partial" in said
    told = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert (told["state"], told["done"], told["total"]) == ("first part done", 12, MISSIONS)
    assert told["complete_prefix"] == 12 and told["rate"] is None
    assert sum(cell["trials"] for cell in told["cells"]) == 12

    said = resume(scratch)
    assert "30 of 30 missions" in said and "partial" not in said and "R_sys" in said
    told = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert told["state"] == "complete" and len(told["runs"]) == 2
    failed = {cell["name"]: cell["failures"] for cell in told["cells"]}
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
    call(scratch, "replay", str(scratch / "r"), "30", code=ExitCode.USAGE)
    assert not fake_guests(scratch) and not list(scratch.glob("tv-c-*"))


def test_plan_tells_before_anything_runs(scratch: Path) -> None:
    (scratch / "spec.toml").write_text(SPEC)
    told = json.loads(call(scratch, "plan", str(scratch / "spec.toml"), "--seed", "7", "--json"))
    assert told["missions"] == MISSIONS and told["seconds"] > 0
    assert told["plan"] == plan(parse(SPEC), 7).fingerprint
    assert told["rates_of_this_host"] is False
    assert "30 missions" in call(scratch, "plan", str(scratch / "spec.toml"))


def test_another_specs_directory_is_refused(scratch: Path) -> None:
    words = begin(scratch, "--first", "1")
    call(scratch, *words)
    assert "resume" in call(scratch, *words, code=ExitCode.FAILED)
    (scratch / "spec.toml").write_text(SPEC.replace("missions = 10", "missions = 11"))
    said = call(scratch, *words, code=ExitCode.FAILED)
    assert "another spec" in said and "another directory" in said
    assert len(stored(scratch)) == 1


def test_what_cannot_be_is_refused_before_the_first_mission(scratch: Path) -> None:
    words = begin(scratch)
    (scratch / "spec.toml").write_text(SPEC.replace("guests_hit = 3", "guests_hit = 4"))
    assert "4" in call(scratch, *words, code=ExitCode.USAGE)
    behave(scratch, refuse="this host has no gdbstub")
    (scratch / "spec.toml").write_text(SPEC)
    said = call(scratch, *words, code=ExitCode.FAILED)
    assert "no gdbstub" in said and "remedy: give it what it lacks" in said
    assert not began(scratch)


def test_a_second_runner_is_refused(scratch: Path) -> None:
    behave(scratch, pause=1.0)
    runner = start(scratch, *begin(scratch))
    try:
        wait_until(lambda: stored(scratch))
        assert "another process" in resume(scratch, code=ExitCode.ALREADY_UP)
        wait_until(lambda: len(stored(scratch)) > 2)
        told = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
        assert told["state"] == "running" and told["rate"] > 0 and told["left"] > 0
    finally:
        runner.send_signal(signal.SIGINT)
        assert runner.wait(30) == ExitCode.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing_running_and_can_be_resumed(
    scratch: Path, number: signal.Signals
) -> None:
    behave(scratch, pause=0.5)
    runner = start(scratch, *begin(scratch, "--workers", "2"))
    wait_until(lambda: len(stored(scratch)) >= 3)
    runner.send_signal(number)
    assert runner.wait(30) == ExitCode.INTERRUPTED
    assert not fake_guests(scratch) and not processes_of(scratch)
    assert not list(scratch.glob("tv-c-*"))
    told = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert told["state"] == "interrupted" and 3 <= told["done"] < MISSIONS
    assert "partial" in (scratch / "log").read_text()
    behave(scratch)
    resume(scratch)
    assert sorted(stored(scratch)) == list(range(MISSIONS))


@pytest.mark.timeout(180)
def test_killed_again_and_again_it_completes_the_same_plan(scratch: Path) -> None:
    """kill -9 of the runner at random moments; what is left is no mission lost, none twice."""
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
            runner.kill()
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
    # What was run again is what was under way, two at a time, when the runner was killed.
    assert sum(runs.values()) - MISSIONS <= 3 * kills
    wait_until(lambda: not fake_guests(scratch) and not processes_of(scratch), 30)
    assert not list(scratch.glob("tv-c-*"))
    told = json.loads(call(scratch, "status", str(scratch / "r"), "--json"))
    assert told["state"] == "complete" and sum(cell["trials"] for cell in told["cells"]) == MISSIONS


def test_two_runs_of_one_plan_are_compared(scratch: Path) -> None:
    call(scratch, *begin(scratch))
    words = begin(scratch)
    words[words.index(str(scratch / "r"))] = str(scratch / "s")
    call(scratch, *words, "--first", "20")
    told = json.loads(call(scratch, "agree", str(scratch / "r"), str(scratch / "s"), "--json"))
    assert told["both"] == told["trials"] == 20 and told["other_outcome"] == 0
    assert told["low"] == 0 and 0.1 < told["high"] < 0.2
    assert "20 missions were run by both" in call(
        scratch, "agree", str(scratch / "r"), str(scratch / "s")
    )
    words[words.index(str(scratch / "s"))] = str(scratch / "t")
    words[words.index("7")] = "8"
    call(scratch, *words, "--first", "1")
    said = call(scratch, "agree", str(scratch / "r"), str(scratch / "t"), code=ExitCode.USAGE)
    assert "different seeds" in said


@pytest.fixture
def small_disk(scratch: Path) -> Iterator[Path]:
    """Give a directory on a file system of its own, of 2 MiB."""
    path = scratch / "small"
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_stops_it_and_room_lets_it_go_on(scratch: Path, small_disk: Path) -> None:
    behave(scratch, pause=0.5)
    words = begin(scratch)
    results = small_disk / "r"
    words[words.index(str(scratch / "r"))] = str(results)
    runner = start(scratch, *words)
    wait_until(lambda: (results / "campaign.sqlite-wal").exists() and len(began(scratch)) > 3)
    ballast = small_disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass  # that was the aim
    assert runner.wait(30) == ExitCode.FAILED
    said = (scratch / "log").read_text()
    assert "the disk is full" in said and "free disk space" in said
    assert not fake_guests(scratch)
    ballast.unlink()
    behave(scratch)
    call(scratch, "resume", str(results), "--worker-module", FAKE, "--no-report")
    told = json.loads(call(scratch, "status", str(results), "--json"))
    assert told["state"] == "complete" and told["done"] == MISSIONS


def test_the_declared_extension_is_added_once(scratch: Path) -> None:
    words = begin(scratch)
    (scratch / "spec.toml").write_text(SPEC.replace("faults =", "extension = 0.5\nfaults ="))
    call(scratch, *words, "--first", "29")
    assert "incomplete" in resume(scratch, "--extend", code=ExitCode.FAILED)
    resume(scratch)
    assert "45 of 45 missions" in resume(scratch, "--extend")
    assert sorted(stored(scratch)) == list(range(45))
