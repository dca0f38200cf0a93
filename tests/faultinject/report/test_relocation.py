"""Inequality (3) from two campaigns: the R_F from which relocating f is no loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from faultinject.campaign.store.store import Store
from faultinject.commands.campaign import campaign
from faultinject.model.bounds import breakeven_rf
from faultinject.report.relocation import compare_places
from faultinject.results.points import read
from tests.errors import raises
from tests.faultinject.campaign.planning.test_relocation_specs import GUEST, HOST, store_of
from voter.commands.terminal import CommandError

__all__: list[str] = []


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    store_of(tmp_path / "guest", GUEST).close()
    store_of(tmp_path / "host", HOST).close()
    return tmp_path / "guest", tmp_path / "host"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(campaign, list(map(str, arguments)), standalone_mode=False)


def test_strata_of_both_campaigns_are_pooled(both: tuple[Path, Path]) -> None:
    guest, host = both
    with Store.open(guest, write=False) as one, Store.open(host, write=False) as two:
        found = compare_places(one, two, (0.5, 0.75), (0.75,))
    assert found.missions == 160
    assert [(each.n, each.rf) for each in found.points] == [(2, 0.5), (2, 0.75)]
    for each in found.points:
        assert each.paper == breakeven_rf(each.rf, 0.75, 2)
        assert each.pooled.value == pytest.approx(each.paper)
        assert each.pooled.contains(each.paper) and each.separate.contains(each.paper)
        assert each.saved.value == 0.0
    assert not (found.heterogeneity or found.partial)


def test_heterogeneity_of_failed_parts_is_reported(tmp_path: Path) -> None:
    store_of(tmp_path / "guest", GUEST, wrong="1of2-f0-function1").close()
    store_of(tmp_path / "host", HOST).close()
    done = run("moved", tmp_path / "guest", tmp_path / "host")
    assert done.exception is None
    assert "n = 2, k = 1: 20 of 20, 0 of 20 failed" in done.output.replace("\n", " ")
    assert "f_k > 0" in done.output


def test_moved_command_prints_tables_and_writes_points(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run("moved", *both, "--rf", "0.75", "--rf", "1", "--points", tmp_path / "points.json")
    assert done.exception is None, done.exception
    assert "No dependence of f_k" in done.output
    assert "n = 2: missions without a failure needed" in done.output
    points = read(tmp_path / "points.json").on("6b")
    assert [point.n for point in points] == [2, 2]
    x, y = points[0].axes("6b")
    assert x.value == 0.75
    assert y.value == pytest.approx(breakeven_rf(0.75, 0.75, 2))
    shown = json.loads(run("moved", *both, "--json").output)
    assert shown["points"][2]["rf"] == 0.75
    assert shown["points"][2]["pooled"]["low"] < shown["points"][2]["paper"]


def test_campaigns_that_differ_in_more_than_the_place_are_rejected(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    guest, host = both
    raised = run("moved", host, guest).exception
    assert isinstance(raised, CommandError)
    assert "'host', not 'guest'" in str(raised)
    store_of(tmp_path / "long", HOST + "[workload]\nlength = 30\n").close()
    with raises("TV0533", match="length 20 and 30"):
        raise run("moved", guest, tmp_path / "long").exception or AssertionError
    store_of(tmp_path / "mix", HOST.replace("hang = 1", "hang = 1\ncrash = 2", 1)).close()
    with raises("TV0533", match="faults hang 1 and crash 2, hang 1"):
        raise run("moved", guest, tmp_path / "mix").exception or AssertionError
    other = HOST.replace('"1/2"', '"1/1"').replace("guests = 2", "guests = 1")
    other = other[: other.index('[[strata]]\nvote = "1/1"\nguests_hit = 2')]
    store_of(tmp_path / "other", other).close()
    with pytest.raises(CommandError, match="no vote policy 1/n in common"):
        raise run("moved", guest, tmp_path / "other").exception or AssertionError
