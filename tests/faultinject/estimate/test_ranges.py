"""The range of R_M in which voting helps, from counts, compared with the paper's."""

from __future__ import annotations

import pytest

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.ranges import better_range
from faultinject.estimate.strata import Band, Strata, band
from faultinject.model.bounds import rm_range_2of3


def box(*failed: tuple[int, int]) -> Band:
    guests = tuple(Counts(trials=of, failures=count) for count, of in failed)
    return band(Strata(guests=guests))


PAPERS = box((0, 8_000), (0, 6_000), (1_500, 1_500), (700, 700))


@pytest.mark.parametrize("rv", [0.98, 0.95, 0.9])
def test_range_is_the_papers_when_strata_are_as_assumed(rv: float) -> None:
    found = better_range(PAPERS, rv)
    paper = rm_range_2of3(rv)
    assert paper is not None
    assert found.estimated == pytest.approx(tuple(map(float, paper)), abs=1e-9)


def test_certain_range_is_within_estimated_within_possible() -> None:
    found = better_range(PAPERS, 0.98)
    assert found.certain is not None and found.estimated is not None and found.possible is not None
    assert 0.5 < found.possible[0] <= found.estimated[0] < found.certain[0], "not the R_M near 0"
    assert found.certain[1] < found.estimated[1] <= found.possible[1]
    for rm, side in zip(found.certain, (0.001, -0.001), strict=True):
        assert PAPERS.gain(rm + side, 0.98).low > 0.0
        assert PAPERS.gain(rm - side, 0.98).low < 0.0


def test_range_is_none_below_eight_ninths() -> None:
    found = better_range(PAPERS, 0.85)
    assert found.certain is None and found.estimated is None


def test_certain_range_is_none_for_few_missions() -> None:
    found = better_range(box((0, 5), (0, 5), (5, 5), (5, 5)), 0.9)
    assert found.certain is None and found.estimated is not None
    assert found.possible is not None and found.possible[0] < found.estimated[0]


def test_range_is_none_when_the_voter_always_fails() -> None:
    found = better_range(PAPERS, 0.0)
    assert (found.certain, found.estimated, found.possible) == (None, None, None)


def test_invalid_rv_raises() -> None:
    with pytest.raises(EstimateError, match=r"R_V is 1\.5"):
        better_range(PAPERS, 1.5)
