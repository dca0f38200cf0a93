"""Recombined strata: the paper's curves from the paper's counts, and corners of the box."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.precision import expected
from faultinject.estimate.strata import Strata, band, breakeven, recombine, weights
from faultinject.model.bounds import breakeven_rv_2of3
from faultinject.model.reliability import two_of_three

pytest.importorskip("scipy", reason="scipy is not installed")

REFERENCE = (6000, 6000, 1000, 200)


def stratum(trials: int, failures: int, silent: int = 0, excluded: int = 0) -> Counts:
    return Counts(trials=trials, failures=failures, silent=silent, excluded=excluded)


strata = st.lists(
    st.integers(1, 400).flatmap(lambda n: st.builds(stratum, st.just(n), st.integers(0, n))),
    min_size=2,
    max_size=6,
).map(lambda each: Strata(guests=tuple(each)))


@given(q=st.floats(0, 1), n=st.integers(1, 9))
def test_weights_add_up_to_one(q: float, n: int) -> None:
    assert math.fsum(weights(q, n)) == pytest.approx(1.0)


@given(q=st.floats(0.01, 0.99))
def test_band_is_the_papers_curves_when_strata_are_as_assumed(q: float) -> None:
    box = band(expected(REFERENCE))
    assert box.failure(q).value == pytest.approx(two_of_three(1, 1, 1 - q).down)
    assert box.bound(1 - q).value == pytest.approx(float(breakeven_rv_2of3(1 - q)))
    assert box.system(1 - q, 0.9, 0.99).value == pytest.approx(
        float(two_of_three(0.99, 0.9, 1 - q))
    )


@given(found=strata, q=st.floats(0, 1))
def test_band_contains_its_estimate_and_is_a_probability(found: Strata, q: float) -> None:
    failure = band(found).failure(q)
    assert 0.0 <= failure.low <= failure.value + 1e-12
    assert failure.value <= failure.high + 1e-12 <= 1.0 + 1e-9


def test_weight_of_f0_exceeds_the_unreliability_a_hundredfold() -> None:
    """w_0/U = 118 at q = .05: why f_0 is measured."""
    box = band(expected(REFERENCE))
    assert weights(0.05, 3)[0] / box.failure(0.05).value == pytest.approx(118, abs=0.5)


def test_bound_is_lower_when_the_voter_recovers() -> None:
    """A voter that recovers with g whatever k: the bound goes to (b - g)/(1 - g), S near 1."""
    q, g = 0.05, 0.5
    always = tuple(stratum(10_000, 5_000) for _ in range(4))
    found = Strata(guests=expected((10**6,) * 4).guests, voter=always)
    paper = 0.95 / (1 - 0.00725)
    relaxed = band(found).bound(1 - q).value
    assert relaxed == pytest.approx((0.95 - g) / (1 - 0.00725 - g))
    assert relaxed < paper


@given(
    s=st.tuples(st.floats(0.5, 1), st.floats(0.5, 1)),
    g=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    inner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    rm=st.floats(0, 1),
)  # fmt: skip
def test_corners_contain_the_extremes_of_the_bound(
    s: tuple[float, float], g: tuple[float, float], inner: tuple[float, float], rm: float
) -> None:
    corners = [breakeven(rm, up, kept) for up, kept in product(s, g)]
    up = s[0] + inner[0] * (s[1] - s[0])
    kept = g[0] + inner[1] * (g[1] - g[0])
    assert min(corners) - 1e-9 <= breakeven(rm, up, kept) <= max(corners) + 1e-9


@given(rm=st.floats(0.05, 0.95), rv=st.floats(0.05, 0.95))
def test_bound_and_gain_agree(rm: float, rv: float) -> None:
    found = Strata(
        guests=(stratum(900, 1), stratum(800, 9), stratum(300, 297), stratum(90, 90)),
        voter=(stratum(100, 80), stratum(100, 95)),
    )
    box = band(found)
    gain, bound = box.gain(rm, rv), box.bound(rm)
    if abs(rv - bound.high) > 1e-9:
        assert (gain.low > 0) == (rv > bound.high)
    if bound.low <= 1 and abs(rv - bound.low) > 1e-9:
        assert (gain.high > 0) == (rv > bound.low)


def test_break_even_is_zero_or_infinite_when_hits_do_no_harm() -> None:
    assert breakeven(0.5, 0.9, 0.9) == 0.0
    assert breakeven(0.9, 0.5, 0.6) == math.inf
    assert breakeven(0.5, 0.9, 0.6) == 0.0


def test_measured_strata_bound_unmeasured_voter_strata() -> None:
    found = Strata(
        guests=(stratum(900, 0), stratum(900, 0), stratum(900, 900), stratum(90, 90)),
        voter=(stratum(100, 100), None, None),
    )
    box = band(found)
    assert box.saving[1].high == box.saving[0].high
    assert box.saving[2].high == pytest.approx(1 - box.failing[2].low)
    assert band(Strata(guests=found.guests)).saving[0].high == 0.0


def test_void_missions_widen_the_worst_case() -> None:
    found = Strata(
        guests=(stratum(900, 0, excluded=30), stratum(900, 0), stratum(900, 900), stratum(90, 90))
    )
    assert band(found, excluded="worst").failing[0].high > 0.03 > band(found).failing[0].high


def test_silent_failures_are_recombined_separately() -> None:
    found = Strata(
        guests=(stratum(900, 0), stratum(900, 2), stratum(900, 900, 300), stratum(90, 90, 45))
    )
    box = band(found)
    assert box.silent(0.2).value == pytest.approx(recombine([0, 0, 1 / 3, 0.5], 0.2))
    assert box.silent(0.2).high < box.failure(0.2).high


def test_stratum_without_missions_is_unknown_not_zero() -> None:
    found = Strata(guests=(stratum(0, 0), stratum(900, 0), stratum(900, 900), stratum(90, 90)))
    assert math.isnan(band(found).failure(0.1).value)
    assert band(found).failure(0.1).high > 0.7
    assert band(found).failure(1.0).value == 1.0  # w_0 is 0 there


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Strata(guests=(stratum(1, 0),)), "k = 0..n"),
        (lambda: Strata(guests=(stratum(1, 0),) * 2, voter=(None,) * 3), "1 guests"),
        (lambda: band(expected(REFERENCE)).failure(1.5), "q is 1.5"),
        (lambda: band(expected(REFERENCE)).bound(-0.5), "R_M is -0.5"),
        (lambda: band(expected(REFERENCE)).system(0.5, 7), "R_V is 7"),
        (lambda: band(expected(REFERENCE), alpha=95), "alpha is 95"),
    ],
)  # fmt: skip
def test_invalid_input_is_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(EstimateError, match=message):
        call()


def test_unmeasured_g_is_bounded_not_zero_with_repair() -> None:
    counts = expected(REFERENCE).guests
    paper, repaired = band(Strata(guests=counts)), band(Strata(guests=counts, repair=True))
    assert paper.saved(0.9).high == 0.0
    for rm in (0.6, 0.9, 0.99):
        saved = repaired.saved(rm)
        assert saved.low == saved.value == 0.0
        assert saved.high == pytest.approx(repaired.reliability(rm).high, rel=0.01)
        # A voter that is hit may do no harm at all: then the layer's reliability decides nothing.
        assert repaired.system(rm, 0.5).high == pytest.approx(saved.high, rel=0.01)
        assert repaired.system(rm, 0.5).low == pytest.approx(paper.system(rm, 0.5).low)
    measured = Strata(guests=counts, voter=(Counts(trials=50, failures=50), None), repair=True)
    assert band(measured).saving[1].high < 0.15, "one that was measured bounds the others"
