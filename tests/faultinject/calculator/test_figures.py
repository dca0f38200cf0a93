"""The figures' curves, compared with the paper's text, and their drawings."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deploy.strict_toml import SpecError
from faultinject.calculator.figures import FIGURES, plot_of, write_figure
from faultinject.model.designs import best_design
from faultinject.model.outcomes import FailureMode
from faultinject.model.paired import ModelError
from faultinject.results.points import AXES, FORMAT, MeasuredPoints, read
from tests.errors import raises

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "measured.json"


def at(figure: Any, name: float, x: float) -> float:
    """The curve ``name`` at x, between its samples."""
    (curve,) = [each for each in plot_of(figure).curves if each.value == name]
    pairs = list(zip(curve.x, curve.y, strict=True))
    for (left, low), (right, high) in pairwise(pairs):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    raise AssertionError(f"{x} is not on the axis")


def test_figure_3_bound_falls_with_n() -> None:
    for rm in (0.1, 0.4, 0.8):
        bounds = [at("3", n, rm) for n in (2, 3, 4, 6, 9)]
        assert bounds == sorted(bounds, reverse=True)
        assert all(each > rm for each in bounds)
    assert at("3", 3, 0.1) > 0.3 > at("3", 4, 0.1)


def test_figure_4_falls_with_rm_and_rises_with_r() -> None:
    assert at("4", 0.998, 0.1) == pytest.approx(65.6, abs=0.1)
    assert at("4", 0.98, 0.1) == pytest.approx(37.6, abs=0.1)
    assert at("4", 0.98, 0.3562) == pytest.approx(9, abs=0.01)
    assert at("4", 0.998, 0.536) == pytest.approx(9, abs=0.01)


def test_figure_6_shows_the_papers_values() -> None:
    assert at("6b", 6, 0.75) == pytest.approx(0.9932, abs=5e-5)
    assert at("6b", 9, 0.75) == pytest.approx(0.9994, abs=5e-5)
    assert at("6b", 1, 0.4) == pytest.approx(0.4)
    degrees = [at("6a", rest, 0.5) for rest in (0.1, 0.25, 0.5, 0.75, 0.9)]
    assert degrees == sorted(degrees) and degrees[0] > 0.5
    assert plot_of("6a", 9).n == 9


def test_figure_7_is_lowest_at_three_quarters() -> None:
    bound = plot_of("7").curves[0]
    lowest = min(zip(bound.y, bound.x, strict=True))
    assert lowest == pytest.approx((8 / 9, 0.75))


@pytest.mark.parametrize(
    ("figure", "ending"),
    [*((each, ".svg") for each in FIGURES), ("7", ".png"), ("3", ".pdf")],
)
def test_figures_are_drawn_with_and_without_points(
    figure: Any, ending: str, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    measured = read(EXAMPLE)
    assert measured.on(figure)
    path = tmp_path / "deep" / f"figure{ending}"
    write_figure(figure, path, measured, None)
    with_points = path.read_bytes()
    write_figure(figure, path, None, None)
    plain = path.read_bytes()
    assert with_points != plain
    assert plain[:5] in {b"<?xml", b"\x89PNG\r", b"%PDF-"}
    if ending == ".svg":
        write_figure(figure, path, None, None)
        assert path.read_bytes() == plain, "the same again, byte for byte"


def test_map_agrees_with_best_design() -> None:
    pytest.importorskip("numpy")
    from faultinject.calculator.figures.plane import best_designs

    rng = random.Random(5)
    rms = [rng.uniform(0.02, 0.999) for _ in range(12)]
    rvs = [rng.uniform(0.02, 0.9999) for _ in range(12)]
    for lying in (0.0, 0.1, 1.0):
        known, best = best_designs(rms, rvs, 5, lying)
        for column, rm in enumerate(rms):
            for row, rv in enumerate(rvs):
                chosen = best_design(rm, rv, 5, failing=FailureMode(lying=lying))
                assert known[int(best[row][column])] == chosen.take.design, (rm, rv, lying)


def test_map_axes_count_nines() -> None:
    from faultinject.calculator.figures.plane import place, value_at

    assert [place(each) for each in (0.0, 0.9, 0.999)] == pytest.approx([0.0, 1.0, 3.0])
    assert value_at(place(0.75)) == pytest.approx(0.75)


def test_invalid_figures_raise(tmp_path: Path) -> None:
    with raises("TV0607", match=r"\.svg, \.png, \.pdf"):
        write_figure("7", tmp_path / "figure.gif", None, None)
    with raises("TV0602", match="no n to choose"):
        plot_of("7", 5)
    with pytest.raises(ModelError, match="n is 0"):
        plot_of("6a", 0)
    with pytest.raises(ModelError, match="n is 10"):
        plot_of("map", 10)


# ------------------------------------------------------------------ measured points


def test_example_has_a_point_for_each_figure() -> None:
    measured = read(EXAMPLE)
    assert measured.format == FORMAT
    assert {figure for point in measured.points for figure in point.figures} == AXES.keys()
    assert set(FIGURES) == AXES.keys()
    for figure in FIGURES:
        for point in measured.on(figure):
            x, y = point.axes(figure)
            assert x.high is not None and x.low <= x.value <= x.high
            assert y.high is not None and y.low <= y.value <= y.high


GOOD = {"value": 0.9, "low": 0.8, "high": 0.95}


def document(**changes: Any) -> dict[str, Any]:
    point = {"figures": ["7"], "rm": GOOD, "rv": GOOD}
    whole: dict[str, Any] = {
        "format": FORMAT, "source": "test", "confidence": 0.95, "points": [point],
    }  # fmt: skip
    for name, value in changes.items():
        if name in whole:
            whole[name] = value
        else:
            point[name] = value
    return whole


def test_valid_points_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(document(label="crash", missions=100)))
    assert isinstance(read(path), MeasuredPoints)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "trivisor-measured-9"}, "this reads 'trivisor-measured-1'"),
        ({"confidence": 95}, "between 0 and 1"),
        ({"figures": []}, "figures is empty"),
        ({"figures": ["8"]}, "figures are 3, 4, 6a, 6b, 7, map"),
        ({"figures": ["3"]}, "n is missing"),
        ({"rm": {"value": 0.5, "low": 0.6, "high": 0.7}}, "low <= value <= high"),
        ({"rm": {"value": 0.5, "low": 0.4, "high": 1.7}}, "does not hold"),
        ({"rm": {"value": 0.5}}, "missing required field `low`"),
        ({"rm": None}, "rm is missing"),
        ({"lable": "crash"}, "did you mean 'label'"),
        ({"n": 0}, "one VM or more"),
        ({"r": 2.0}, "from 0 to 1"),
        ({"verdict": "good"}, "verdict"),
        ({"guests": {"value": 0, "low": 0, "high": 3}}, "1 <= low"),
        ({"points": 3}, "points"),
    ],
)
def test_invalid_points_file_raises_with_its_place(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(document(**changes)))
    with pytest.raises(SpecError) as raised:
        read(path)
    assert message in str(raised.value) and "measured.json" in str(raised.value)
    path.write_text("{")
    with raises("TV0608", match="not JSON"):
        read(path)
