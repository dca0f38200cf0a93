"""`trivisor bench rejuvenation`: its report, its picture, and a short run on real guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.bench.commands import REPLACEMENTS
from faultinject.bench.rejuvenation import (
    SETTINGS,
    Pair,
    RejuvenationPlan,
    RejuvenationReport,
    plot_rejuvenation,
    run_rejuvenation,
)
from faultinject.bench.tables import show
from faultinject.host_facts import describe_host
from faultinject.load import LatencySummary


def latency(p50: float, p99: float) -> LatencySummary:
    return LatencySummary(p50=p50, p99=p99, p999=p99, worst=p99)


def pair(setting: str, ratio: float, seconds: float, failed: int = 0) -> Pair:
    return Pair(
        setting=setting, quiet=latency(0.002, 0.01), during=latency(0.002, 0.01 * ratio),
        requests=100, failed=failed, seconds=seconds, ready=seconds, how="booted", bounded="none",
    )  # fmt: skip


def plan(*settings: str, rounds: int = 1) -> RejuvenationPlan:
    return RejuvenationPlan(
        rounds=rounds, window=2.0, rate=50.0, settings=settings, accel="auto", seed=1
    )


def report(*pairs: Pair) -> RejuvenationReport:
    return RejuvenationReport(
        plan=plan(*SETTINGS), seconds=1, host=describe_host(accel="tcg", load_before=0),
        pairs=list(pairs), others=0.0,
    )  # fmt: skip


def test_ratios_are_taken_within_a_pair() -> None:
    found = report(
        *(pair("clone", ratio, ratio / 10) for ratio in (1.0, 1.2, 5.0)), pair("100 %", 9.0, 6.0, 2)
    )
    assert round(found.quartiles("clone", "p99")[1], 6) == 1.2
    assert found.quartiles("clone", "p50") == (1.0, 1.0, 1.0)
    assert found.quartiles("clone", "seconds")[1] == 0.12
    assert round(found.clone_to_boot or 0, 6) == 0.02
    assert found.failed == 2
    assert report(pair("clone", 1, 1)).clone_to_boot is None


def test_command_offers_every_setting() -> None:
    assert tuple(SETTINGS) == REPLACEMENTS


def test_report_is_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(pair("clone", 1.1, 0.5), pair("100 %", 12, 6), pair("in place", 1.5, 0.1))
    show(found)
    output = capsys.readouterr().out
    assert "in place" in output
    assert "0.08" in output, "clone divided by boot"
    plot_rejuvenation(found, tmp_path / "curve.svg")
    plot_rejuvenation(found, tmp_path / "again.svg")
    assert (tmp_path / "curve.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.long
@pytest.mark.vm
def test_guests_are_replaced_in_windows_beside_quiet_ones(scratch: Path) -> None:
    found = run_rejuvenation(plan("clone", "in place", "50 %"), lambda _: None, scratch)
    assert {each.setting for each in found.pairs} == {"clone", "in place", "50 %"}
    assert found.failed == 0
    assert found.of("clone")[0].how == "cloned"
    assert found.of("50 %")[0].how == "booted"
    assert all(each.seconds > 0 and each.requests > 100 for each in found.pairs)
