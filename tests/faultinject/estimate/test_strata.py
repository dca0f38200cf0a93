"""Strata recombined: the paper's curves from the paper's counts, corners, and coverage."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.posterior import sharp
from faultinject.estimate.precision import expected
from faultinject.estimate.strata import Strata, band, breakeven, recombine, weights
from faultinject.estimate.subsets import subset_band
from faultinject.model.bounds import breakeven_rv_2of3
from faultinject.model.reliability import two_of_three

pytest.importorskip("scipy", reason="scipy is not installed")

REFERENCE = (6000, 6000, 1000, 200)


def stratum(trials: int, failures: int, silent: int = 0, void: int = 0) -> Counts:
    return Counts(trials=trials, failures=failures, silent=silent, void=void)


strata = st.lists(
    st.integers(1, 400).flatmap(lambda n: st.builds(stratum, st.just(n), st.integers(0, n))),
    min_size=2,
    max_size=6,
).map(lambda each: Strata(guests=tuple(each)))


@given(q=st.floats(0, 1), n=st.integers(1, 9))
def test_weights_add_up_to_one(q: float, n: int) -> None:
    assert math.fsum(weights(q, n)) == pytest.approx(1.0)


@given(q=st.floats(0.01, 0.99))
def test_the_papers_counts_give_the_papers_curves(q: float) -> None:
    box = band(expected(REFERENCE))
    assert box.failure(q).value == pytest.approx(two_of_three(1, 1, 1 - q).down)
    assert box.bound(1 - q).value == pytest.approx(float(breakeven_rv_2of3(1 - q)))
    assert box.system(1 - q, 0.9, 0.99).value == pytest.approx(
        float(two_of_three(0.99, 0.9, 1 - q))
    )


@given(found=strata, q=st.floats(0, 1))
def test_the_band_holds_its_estimate_and_is_a_probability(found: Strata, q: float) -> None:
    failure = band(found).failure(q)
    assert 0.0 <= failure.low <= failure.value + 1e-12
    assert failure.value <= failure.high + 1e-12 <= 1.0 + 1e-9


def test_the_widths_of_the_method_note() -> None:
    """w_0/U = 118 at q = .05: why f_0 is measured."""
    box = band(expected(REFERENCE))
    assert weights(0.05, 3)[0] / box.failure(0.05).value == pytest.approx(118, abs=0.5)


def test_voter_hit_strata_relax_the_bound_as_the_note_says() -> None:
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
def test_corners_hold_the_extremes_of_the_bound(
    s: tuple[float, float], g: tuple[float, float], inner: tuple[float, float], rm: float
) -> None:
    corners = [breakeven(rm, up, kept) for up, kept in product(s, g)]
    up = s[0] + inner[0] * (s[1] - s[0])
    kept = g[0] + inner[1] * (g[1] - g[0])
    assert min(corners) - 1e-9 <= breakeven(rm, up, kept) <= max(corners) + 1e-9


@given(rm=st.floats(0.05, 0.95), rv=st.floats(0.05, 0.95))
def test_bound_and_gain_say_the_same(rm: float, rv: float) -> None:
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


def test_where_the_voter_is_not_harmed_any_voter_will_do() -> None:
    assert breakeven(0.5, 0.9, 0.9) == 0.0
    assert breakeven(0.9, 0.5, 0.6) == math.inf
    assert breakeven(0.5, 0.9, 0.6) == 0.0


def test_unmeasured_voter_strata_are_bounded_by_what_was_measured() -> None:
    found = Strata(
        guests=(stratum(900, 0), stratum(900, 0), stratum(900, 900), stratum(90, 90)),
        voter=(stratum(100, 100), None, None),
    )
    box = band(found)
    assert box.g(1).high == box.g(0).high
    assert box.g(2).high == pytest.approx(1 - box.f(2).low)
    assert "not measured" in box.g(1).method
    assert band(Strata(guests=found.guests)).g(0).high == 0.0


def test_void_missions_widen_the_worst_case() -> None:
    found = Strata(
        guests=(stratum(900, 0, void=30), stratum(900, 0), stratum(900, 900), stratum(90, 90))
    )
    assert band(found, void="worst").f(0).high > 0.03 > band(found).f(0).high


def test_silent_has_its_own_curve() -> None:
    found = Strata(
        guests=(stratum(900, 0), stratum(900, 2), stratum(900, 900, 300), stratum(90, 90, 45))
    )
    box = band(found)
    assert box.silent(0.2).value == pytest.approx(recombine([0, 0, 1 / 3, 0.5], 0.2))
    assert box.silent(0.2).high < box.failure(0.2).high


def test_a_stratum_without_missions_is_unknown_not_zero() -> None:
    found = Strata(guests=(stratum(0, 0), stratum(900, 0), stratum(900, 900), stratum(90, 90)))
    assert math.isnan(band(found).failure(0.1).value)
    assert band(found).failure(0.1).high > 0.7
    assert band(found).failure(1.0).value == 1.0  # w_0 is 0 there


def test_the_posterior_is_sharper_and_says_that_it_is_pointwise() -> None:
    found = expected(REFERENCE, (500, 500))
    fine, box = sharp(found), band(found)
    for q in (0.05, 0.2, 0.5):
        assert fine.failure(q).width < box.failure(q).width
        assert fine.bound(1 - q).width < box.bound(1 - q).width
        assert fine.system(1 - q, 0.9).width < box.system(1 - q, 0.9).width
    assert "pointwise" in fine.failure(0.1).method
    assert sharp(found).failure(0.1) == fine.failure(0.1)
    with pytest.raises(EstimateError, match="100"):
        sharp(found, draws=10)


def test_unequal_guests_recombine_by_subset() -> None:
    every = [frozenset(hit) for hit in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))]
    counts = {hit: stratum(500, 500 if len(hit) > 1 else 0) for hit in every}
    box = subset_band(counts, 3)
    assert box.failure([0.1] * 3).value == pytest.approx(two_of_three(1, 1, 0.9).down)
    unequal = box.failure([0.1, 0.2, 0.3]).value
    assert unequal == pytest.approx(0.1 * 0.2 * 0.7 + 0.1 * 0.8 * 0.3 + 0.9 * 0.2 * 0.3 + 0.006)
    assert box.failure([0, 0, 0]).high < 0.02
    del counts[frozenset({0, 1, 2})]
    assert subset_band(counts, 3).failure([0.1] * 3).low < box.failure([0.1] * 3).low - 0.0009


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Strata(guests=(stratum(1, 0),)), "k = 0..n"),
        (lambda: Strata(guests=(stratum(1, 0),) * 2, voter=(None,) * 3), "1 guests"),
        (lambda: band(expected(REFERENCE)).failure(1.5), "q is 1.5"),
        (lambda: band(expected(REFERENCE)).bound(-0.5), "R_M is -0.5"),
        (lambda: band(expected(REFERENCE)).system(0.5, 7), "R_V is 7"),
        (lambda: band(expected(REFERENCE), alpha=95), "alpha is 95"),
        (lambda: subset_band({frozenset({3}): stratum(1, 0)}, 3), r"only 0\.\.3|only 0..2"),
        (lambda: subset_band({}, 13), "1 to 12"),
        (lambda: subset_band({}, 2).failure([0.1]), "one a guest"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(EstimateError, match=words):
        call()


def test_where_the_voter_is_repaired_g_is_not_taken_as_nothing() -> None:
    counts = expected(REFERENCE).guests
    paper, repaired = band(Strata(guests=counts)), band(Strata(guests=counts, repaired=True))
    assert paper.saved(0.9).high == 0.0
    for rm in (0.6, 0.9, 0.99):
        saved = repaired.saved(rm)
        assert saved.low == saved.value == 0.0
        assert saved.high == pytest.approx(repaired.reliability(rm).high, rel=0.01)
        # A voter that is hit may do no harm at all: then the layer's reliability decides nothing.
        assert repaired.system(rm, 0.5).high == pytest.approx(saved.high, rel=0.01)
        assert repaired.system(rm, 0.5).low == pytest.approx(paper.system(rm, 0.5).low)
    measured = Strata(guests=counts, voter=(Counts(trials=50, failures=50), None), repaired=True)
    assert band(measured).g(1).high < 0.15, "one that was measured bounds the others"
