"""The memory benchmark: when memory counts as flat, a small run, its picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from faultinject.bench.memory import (
    MemoryPlan,
    Sample,
    growth,
    plot_memory,
    require_plotting,
    run_memory,
)
from tests.errors import raises


def series(*voter: int) -> list[Sample]:
    return [
        Sample(requests=at, seconds=at, voter=size, replicas=1, journal=0)
        for at, size in enumerate(voter)
    ]


def test_growth_ignores_the_warm_up_and_peaks_that_return() -> None:
    warm = series(10, 50, *[100] * 8)
    assert growth(warm) == 0
    leaking = series(*range(100, 200))
    assert growth(leaking) == pytest.approx(199 / 139 - 1)
    saw = series(100, 100, *[100, 150] * 20)
    assert growth(saw) == 0
    assert growth(series(1, 2)) == 0


def test_memory_samples_at_every_interval_and_draws_them(scratch: Path) -> None:
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


def test_require_plotting_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with raises("TV0722", match="matplotlib") as caught:
        require_plotting()
    assert "pip install matplotlib" in caught.value.remedy
