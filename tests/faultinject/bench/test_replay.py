"""The replay benchmark: a small run on real guests, in a process of its own as libvirt wants."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import msgspec
import pytest

from deploy.host.spawn import python_command, python_environment
from faultinject.bench.replay import ReplayBenchReport
from faultinject.bench.tables import show

WORDS = ("bench", "replay", "--rounds", "2", "--writes", "500", "--in-flight", "16", "--keys", "50")


@pytest.mark.long
@pytest.mark.vm
def test_replay_repeats_every_reply_of_what_it_is_compared_with(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        python_command("trivisor", *WORDS, "--data", scratch, "--json"), env=python_environment(),
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = msgspec.convert(json.loads(done.stdout), ReplayBenchReport)
    assert [(each.compared, each.differing) for each in report.rounds] == [(500, 0), (500, 0)]
    assert all(each.live > 0 and each.replayed > 0 for each in report.rounds)
    show(report)
    assert "to reach: at least 1" in capsys.readouterr().out
