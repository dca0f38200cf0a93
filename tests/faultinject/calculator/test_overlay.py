"""From findings to points of the figures.  No number here was measured."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from faultinject.calculator.commands import model
from faultinject.calculator.overlay import POINTS, collect
from faultinject.model.bounds import breakeven_rv_1ofn, breakeven_rv_2of3, guests_needed
from faultinject.results.findings import FILE
from tests.errors import raises
from tests.faultinject.results import as_the_paper_has_it, made

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "measured.json"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Campaigns in which everything is as the paper assumes."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("oneofn", "mofn"):
        made(folder, name, as_the_paper_has_it)
    (folder / "moved").mkdir()
    (folder / "moved" / POINTS).write_bytes(EXAMPLE.read_bytes())
    return folder


def test_collect_reads_every_campaign_and_points_file_of_a_folder(results: Path) -> None:
    found = collect(results)
    assert found.confidence == 0.95
    assert "oneofn (seed 1" in found.source and "mofn (seed 1" in found.source
    assert {figure for point in found.points for figure in point.figures} == {
        "3", "4", "6a", "6b", "7", "map"
    }  # fmt: skip
    assert "oneofn" not in found.sources("7"), "it has no point there"


def test_points_are_on_the_curves_when_results_are_as_the_paper_assumes(results: Path) -> None:
    found = collect(results / "oneofn" / FILE)
    threes = found.on("3")
    assert {point.n for point in threes} == {2, 3, 4, 6, 9}
    for point in threes:
        assert point.rm is not None and point.rv is not None and point.n is not None
        exact = float(breakeven_rv_1ofn(point.rm.value, point.n))
        assert point.rv.low <= exact <= point.rv.high
        assert point.rv.value == pytest.approx(exact)
    fours = found.on("4")
    assert fours
    for point in fours:
        assert point.rm is not None and point.guests is not None and point.r is not None
        assert point.guests.value == guests_needed(point.r, 0.999, point.rm.value).guests
    sevens = collect(results / "mofn" / FILE).on("7")
    above = [point for point in sevens if not point.beyond]
    assert {point.rm.value for point in above if point.rm} == {0.6, 0.75, 0.9, 0.97}
    below = [point for point in sevens if point.beyond]  # no R_V is enough
    assert {point.rm.value for point in below if point.rm} == {0.3, 0.45}
    assert all(point.rv is not None and point.rv.value == 1.0 for point in below)
    for point in above:
        assert point.rm is not None and point.rv is not None
        assert point.rv.value == pytest.approx(float(breakeven_rv_2of3(point.rm.value)))


def test_figure_3_uses_the_campaign_that_has_every_n(results: Path, tmp_path: Path) -> None:
    few = tmp_path / "few" / FILE
    few.parent.mkdir()
    kept = msgspec.json.decode((results / "oneofn" / FILE).read_bytes())
    kept["designs"] = [node for node in kept["designs"] if node["n"] in (3, 6)]
    few.write_bytes(msgspec.json.encode(kept))
    assert {point.n for point in collect(tmp_path).on("3")} == {3, 6}
    both = tmp_path / "oneofn"
    both.mkdir()
    (both / FILE).write_bytes((results / "oneofn" / FILE).read_bytes())
    assert "few" not in collect(tmp_path).sources("3")


def test_map_points_name_the_recommended_measured_design(results: Path) -> None:
    points = collect(results / "mofn" / FILE).on("map")
    chosen = {(p.rm.value, p.rv.value): p for p in points if p.rm and p.rv}
    assert len(chosen) == 18
    assert {p.lying for p in points} == {0.3}
    assert {p.designs for p in points} == {("1-of-3", "2-of-2", "2-of-3", "3-of-5")}
    assert chosen[0.97, 0.9].label == "NV" and chosen[0.97, 0.9].verdict == "worse"
    # 2-of-3 gains .071, 3-of-5 .090: more than a tenth more.
    assert chosen[0.9, 0.999].label == "3-of-5" and chosen[0.9, 0.999].verdict == "better"
    assert chosen[0.97, 0.999].label == "2-of-3" and chosen[0.97, 0.999].verdict == "undecided"


def test_figure_all_draws_findings_on_every_figure(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    command = ["figure", "all", "--results", str(results), "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(model, command)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert len(shown["written"]) == 7
    assert "1-of-4" in (tmp_path / "map.svg").read_text(), "of all designs"
    measured = (tmp_path / "map-measured.svg").read_text()
    assert "3-of-5" in measured and "1-of-4" not in measured
    assert "of those measured" in measured


def test_collect_raises_for_a_folder_without_results(tmp_path: Path) -> None:
    with raises("TV0608", match=r"findings\.json nor points\.json.*campaign report"):
        collect(tmp_path)
    (tmp_path / FILE).write_text("{")
    done = CliRunner().invoke(model, ["figure", "7", "--results", str(tmp_path / FILE)])
    assert done.exit_code != 0
    assert FILE in done.stderr + str(done.exception)
