"""The short soak on real guests, by the command that a user types; and an end in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from voter.commands.terminal import ExitCode

ROOT = Path(__file__).resolve().parents[3]
FAULTS = 13
SEED = 3055  # hang, kills of every part, lies, a flipped bit; nothing that costs a cold boot
EXCHANGE_SEED = 4  # three rejuvenations: alone, with a killed voter, with a killed supervisor
ROUNDS_SEED = 9  # one round that clients read, one at a marker

# What a host that runs other tests as well can carry.
LIGHT = ("--clients", "6", "--rate", "100", "--state", "0.25")


def start(scratch: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trivisor", "soak", *options],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(text: str, stream: IO[str], seconds: float) -> list[str]:
    """Read lines until one contains this text."""
    deadline = time.monotonic() + seconds
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
        assert time.monotonic() < deadline, "".join(lines)
    raise AssertionError("".join(lines))


def left(scratch: Path) -> list[str]:
    """Command lines of processes that name the scratch directory, and what is still in it."""
    found = [str(path) for path in scratch.iterdir() if path.name.startswith("tv-soak")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended just now
            if os.fsencode(scratch) in line:
                found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.mark.readme
@pytest.mark.vm
def test_every_promise_holds_in_a_short_soak(scratch: Path) -> None:
    out = scratch / "out"
    options = ["--faults", str(FAULTS), "--seed", str(SEED), "--out", str(out), *LIGHT]
    process = start(scratch, *options)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == ExitCode.OK, output
    record = json.loads((out / f"soak-{SEED}-{FAULTS}.json").read_text())
    assert record["held"] is True
    assert [fault["number"] for fault in record["faults"]] == list(range(1, FAULTS + 1))
    assert all(fault["proof"] for fault in record["faults"])
    assert sum(fault["overlapped"] for fault in record["faults"]) >= FAULTS / 4
    assert {fault["kind"] for fault in record["faults"]} >= {
        "voter-kill", "supervisor-kill", "guest-kill",
    }  # fmt: skip
    assert record["load"]["errors"] == {}
    assert record["load"]["correct"] >= record["load"]["replies"] > 500
    assert "10 of 10 promises held" in output
    assert left(scratch) == []


@pytest.mark.vm
@pytest.mark.long
def test_every_promise_holds_while_guests_are_replaced_by_fresh_ones(scratch: Path) -> None:
    out = scratch / "out"
    options = ["--rejuvenate", "--faults", "9", "--seed", str(EXCHANGE_SEED), "--out", str(out)]
    process = start(scratch, *options, *LIGHT)
    output, _ = process.communicate(timeout=560)
    assert process.returncode == ExitCode.OK, output
    record = json.loads((out / f"soak-{EXCHANGE_SEED}-9.json").read_text())
    assert record["held"] is True
    exchanges = [fault for fault in record["faults"] if fault["kind"] == "rejuvenate"]
    assert len(exchanges) == 3
    assert any("has taken the place of" in fault["proof"] for fault in exchanges)
    assert record["load"]["errors"] == {}
    assert left(scratch) == []


@pytest.mark.vm
def test_corrupted_state_is_neither_released_nor_restored_when_the_voter_is_killed(
    scratch: Path,
) -> None:
    out = scratch / "out"
    options = [
        "--together",
        "corrupt-state+voter-kill",
        "--faults",
        "2",
        "--seed",
        str(ROUNDS_SEED),
    ]
    process = start(scratch, *options, "--out", str(out), *LIGHT)
    output, _ = process.communicate(timeout=560)
    assert process.returncode == ExitCode.OK, output
    record = json.loads((out / f"together-{ROUNDS_SEED}-2.json").read_text())
    assert record["held"] is True
    assert [fault["kind"] for fault in record["faults"]] == ["corrupt-state", "voter-kill"] * 2
    assert record["summary"]["rounds"] == record["summary"]["proven"] == 2
    assert record["summary"]["wrong"] == record["summary"]["restored"] == 0
    assert record["summary"]["checkpoints"] >= 2
    for one in record["rounds"]:
        assert "flipped and read back" in one["corruption"]
        assert "has ended" in one["kill"]
        assert one["noticed_after"] > 0
        assert all(memory["foreign"] == 0 for memory in one["memory"].values())
    assert len((out / f"rounds-{ROUNDS_SEED}.jsonl").read_text().splitlines()) == 2
    assert left(scratch) == []


@pytest.mark.vm
def test_rounds_take_everything_down_at_sighup(scratch: Path) -> None:
    options = ["--together", "corrupt-state+voter-kill", "--faults", "50", "--seed", "2", *LIGHT]
    process = start(scratch, *options)
    assert process.stdout is not None
    try:
        read_until("clients begin", process.stdout, 200)
        time.sleep(2.0)  # part of the test: in the middle of the first round
        process.send_signal(signal.SIGHUP)
        output = process.stdout.read()
        assert process.wait(90) == ExitCode.INTERRUPTED, output
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert left(scratch) == []


@pytest.mark.vm
def test_soak_takes_everything_down_at_sigterm(scratch: Path) -> None:
    process = start(scratch, "--faults", "50", "--seed", "2")
    assert process.stdout is not None
    try:
        read_until("clients begin", process.stdout, 200)
        time.sleep(2.0)  # part of the test: in the middle of the first faults
        process.send_signal(signal.SIGTERM)  # the same as Ctrl-C
        output = process.stdout.read()
        assert process.wait(90) == ExitCode.INTERRUPTED, output
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert left(scratch) == []
