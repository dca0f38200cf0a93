"""The memory run: when memory counts as flat, a very small run, its picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from faultinject.bench.memory import MemoryPlan, Sample, growth, run_memory
from faultinject.bench.plot import plot_memory, require_plotting
from voter.commands.terminal import CommandError


def series(*voter: int) -> list[Sample]:
    return [
        Sample(requests=at, seconds=at, voter=size, replicas=1, journal=0)
        for at, size in enumerate(voter)
    ]


def test_growth_is_what_comes_after_the_warm_part() -> None:
    warm = series(10, 50, *[100] * 8)
    assert growth(warm) == 0
    leaking = series(*range(100, 200))
    assert growth(leaking) == pytest.approx(199 / 139 - 1)
    saw = series(100, 100, *[100, 150] * 20)
    assert growth(saw) == 0
    assert growth(series(1, 2)) == 0


def test_a_small_run_and_its_picture(scratch: Path) -> None:
    plan = MemoryPlan(
        requests=400, every=100, keys=10, sessions=2, in_flight=8, durability="os"
    )  # fmt: skip
    report = run_memory(plan, lambda _: None, scratch)
    assert [each.requests for each in report.samples] == [0, 100, 200, 300, 400]
    assert all(each.voter > 1 << 20 and each.replicas > 3 << 20 for each in report.samples)
    assert report.samples[-1].journal > 0
    assert list(scratch.iterdir()) == []
    pytest.importorskip("matplotlib")
    require_plotting()
    plot_memory(report, scratch / "memory.png")
    assert (scratch / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_so_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandError, match="matplotlib") as caught:
        require_plotting()
    assert "trivisor[plot]" in caught.value.remedy
