"""The range of R_M in which voting pays, from counts: against the paper's, computed."""

from __future__ import annotations

import pytest

from faultinject import estimate, model
from faultinject.estimate import Counts, EstimateError


def box(*failed: tuple[int, int]) -> estimate.Band:
    guests = tuple(Counts(trials=of, failures=count) for count, of in failed)
    return estimate.band(estimate.Strata(guests=guests))


__all__: list[str] = []


PAPERS = box((0, 8_000), (0, 6_000), (1_500, 1_500), (700, 700))


@pytest.mark.parametrize("rv", [0.98, 0.95, 0.9])
def test_shares_as_the_paper_assumes_them_give_its_range(rv: float) -> None:
    found = estimate.better_range(PAPERS, rv)
    paper = model.rm_range_2of3(rv)
    assert paper is not None
    assert found.seen == pytest.approx(tuple(map(float, paper)), abs=1e-9)


def test_sure_lies_in_seen_lies_in_possible() -> None:
    found = estimate.better_range(PAPERS, 0.98)
    assert found.sure is not None and found.seen is not None and found.possible is not None
    assert 0.5 < found.possible[0] <= found.seen[0] < found.sure[0], "not the R_M near 0"
    assert found.sure[1] < found.seen[1] <= found.possible[1]
    for rm, side in zip(found.sure, (0.001, -0.001), strict=True):
        assert PAPERS.gain(rm + side, 0.98).low > 0.0
        assert PAPERS.gain(rm - side, 0.98).low < 0.0


def test_no_range_below_eight_ninths() -> None:
    found = estimate.better_range(PAPERS, 0.85)
    assert found.sure is None and found.seen is None


def test_few_missions_leave_nothing_sure() -> None:
    found = estimate.better_range(box((0, 5), (0, 5), (5, 5), (5, 5)), 0.9)
    assert found.sure is None and found.seen is not None
    assert found.possible is not None and found.possible[0] < found.seen[0]


def test_a_voter_that_always_fails_pays_nowhere() -> None:
    found = estimate.better_range(PAPERS, 0.0)
    assert (found.sure, found.seen, found.possible) == (None, None, None)


def test_out_of_range_is_refused() -> None:
    with pytest.raises(EstimateError, match=r"R_V is 1\.5"):
        estimate.better_range(PAPERS, 1.5)
