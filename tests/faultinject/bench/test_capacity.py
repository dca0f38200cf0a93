"""What guests cost: memory over processes, the slope over nodes, a run on real guests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from faultinject.bench.capacity import marginal
from faultinject.bench.usage import memory_of
from faultinject.results.guest_capacity import Crowd, CrowdReport, Memory
from tests.conftest import left_qemus

CHILD = "import sys; held = bytearray(64 << 20); print('ready', flush=True); sys.stdin.read()"


def crowd(guests: int, pss: int) -> Crowd:
    memory = Memory(rss=pss, pss=pss, private=pss, swapped=0)
    return Crowd(
        guests=guests, ready=(1.0,) * guests, seconds=1.0, memory=memory, taken=pss, idle=0.0
    )


def test_marginal_is_the_slope_over_nodes() -> None:
    assert marginal([crowd(n, 30 + 100 * n) for n in (1, 2, 3)]) == 100
    assert marginal([crowd(2, 300)]) == 150


def test_memory_of_counts_shared_pages_once() -> None:
    command = [sys.executable, "-c", CHILD]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as one,
        subprocess.Popen(command, stdin=pipe, stdout=pipe) as two,
    ):
        for child in (one, two):
            assert child.stdout is not None
            assert child.stdout.readline().strip() == b"ready"
        both, single = memory_of([one.pid, two.pid]), memory_of([one.pid])
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.close()
    assert single.private > 64 << 20
    assert both.private > single.private + (64 << 20)
    assert 0 < both.shared == both.rss - both.pss  # the interpreter itself
    assert both.pss < both.rss


def test_memory_of_raises_for_an_ended_process() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    with pytest.raises(OSError, match=str(child.pid)):
        memory_of([os.getpid(), child.pid])


@pytest.mark.vm
def test_guests_measures_nodes_of_one_and_two(scratch: Path) -> None:
    # In another process: this one may have libvirt open in another directory.
    out = scratch / "guests.json"
    words = ["bench", "guests", "--most", "2", "--accel", "tcg", "--json", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "trivisor", *words],
        check=False, capture_output=True, env=os.environ | {"TMPDIR": str(scratch)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=CrowdReport)
    assert msgspec.json.decode(out.read_bytes(), type=CrowdReport) == report
    assert [(crowd.guests, len(crowd.ready)) for crowd in report.crowds] == [(1, 1), (2, 2)]
    one, two = (crowd.memory for crowd in report.crowds)
    # A guest of 128 MiB has its kernel, its files and its Python in memory; QEMU's code is shared.
    assert 64 << 20 < one.pss < two.pss < 2 * one.rss
    assert 0 < report.each == two.pss - one.pss
    assert report.fit == int((report.available - report.total / 10) // report.each)
    assert not left_qemus(str(scratch))
