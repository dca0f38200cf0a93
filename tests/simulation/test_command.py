"""``trivisor simulate``: the seeds it runs, its output, and that its workers end with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner

from faultinject.bench.usage import family
from faultinject.simulation.command import simulate
from faultinject.simulation.plan import SWARM
from faultinject.simulation.seeds import known
from tests.waiting import wait_until

DEADLINE = 60.0
"""Seconds that a condition is waited for."""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@contextmanager
def nightly(scratch: Path) -> Iterator[tuple[subprocess.Popen[str], Path, set[int]]]:
    """Run the nightly hunt until two workers are there; kill it in the end."""
    log = scratch / "failures.jsonl"
    command = [sys.executable, "-m", "trivisor", "simulate", "--nightly", "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--log", str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        # Its guard is the process we started: below are the command, its workers, and a helper
        # of multiprocessing.
        wait_until(lambda: log.exists() and len(family(process.pid)) >= 5)
        yield process, log, set(family(process.pid)[1:])
    finally:
        process.kill()
        process.communicate()


def read(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nightly_ends_at_a_signal_and_logs_its_totals(
    scratch: Path, number: signal.Signals
) -> None:
    with nightly(scratch) as (process, log, workers):
        process.send_signal(number)
        assert process.wait(DEADLINE) == 0, read(process.stderr)
        (line,) = log.read_text().splitlines()
        entry = json.loads(line)
        assert entry["failed"] == 0
        assert entry["first"] >= SWARM
        assert {"time", "revision", "seeds"} <= entry.keys()
        assert str(entry["first"]) in read(process.stderr), "printed first, to repeat it"
        wait_until(lambda: not any(map(alive, workers)))


def test_workers_end_when_their_parent_is_killed(scratch: Path) -> None:
    with nightly(scratch) as (process, _, workers):
        process.kill()
        process.wait(DEADLINE)
        wait_until(lambda: not any(map(alive, workers)))


def run(*arguments: str) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(
        simulate, [*arguments, "--json", "--jobs", "1"], standalone_mode=False
    )
    if done.exception is not None:
        raise done.exception
    found: dict[str, object] = json.loads(done.output)
    return int(done.return_value), found


def test_fresh_seeds_are_new_each_time() -> None:
    status, one = run("--fresh", "2")
    assert (status, one["seeds"], one["failed"], one["groups"]) == (0, 2, [], [])
    _, other = run("--fresh", "2")
    assert one["first"] != other["first"]
    assert str(one["origin"]).startswith("fresh: commit ")


def test_known_seeds_hold_and_are_run_alone_or_with_others() -> None:
    status, alone = run("--known")
    assert (status, alone["failed"]) == (0, [])
    assert (alone["seeds"], alone["known"], alone["fresh"]) == (len(known()), len(known()), 0)
    _, both = run("--known", "--fresh", "1")
    assert both["seeds"] == len(known()) + 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "1..2", "--fresh", "3"],
        ["--trace"],
        ["--seeds", "5"],
        ["--seeds", "9..1"],
        ["--seed", "1", "--faults", "x"],
        ["--fresh", "0"],
        ["--compare", "1..2"],
    ],
)
def test_invalid_options_are_usage_errors(arguments: list[str]) -> None:
    assert CliRunner().invoke(simulate, arguments).exit_code == 2


def test_one_seed_runs_with_a_part_of_its_plan() -> None:
    status, found = run("--seed", "3", "--faults", "none", "--operations", "0-4")
    assert (status, found["seed"], found["breaches"], found["faults"]) == (0, 3, [], [])


def test_trace_prints_a_timeline_of_one_seed() -> None:
    done = CliRunner().invoke(simulate, ["--seed", "77005182", "--trace"])
    assert "FAULT     0 power-loss" in done.output
    assert re.search(r"release \d+ to ticket", done.output)


def test_compare_counts_what_two_ranges_reach() -> None:
    done = CliRunner().invoke(simulate, ["--compare", "1..1", "--seeds", "1..3", "--json"])
    found = json.loads(done.output)
    first, second, only = found["counts"]["branch"]
    assert second - first == only > 0
    assert {"dimension", "text", "runs"} == found["only_second"][0].keys()


def test_failed_seeds_are_grouped_and_shrunk() -> None:
    """With a planted defect nearly every seed fails."""
    command = [sys.executable, "-m", "trivisor", "simulate", "--seeds", "1..6", "--json"]
    done = subprocess.run(
        [*command, "--defect", "vote-with-one"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONHASHSEED": "0"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["seeds"] == 6
    assert len(found["failed"]) > 1
    shrunk = found["groups"][0]["shrunk"]
    assert shrunk["command"].endswith("--defect vote-with-one")
    assert shrunk["timeline"]
