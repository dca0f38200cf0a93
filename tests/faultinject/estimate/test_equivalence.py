"""Equivalence tests and comparisons at operating points, on counts with known truth."""

from __future__ import annotations

import pytest

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.equivalence import (
    Choice,
    EquivalenceMargins,
    VoterVerdict,
    bound_equivalence,
    combined_verdict,
    compare_at_points,
    failure_equivalence,
    paper_failure,
)
from faultinject.estimate.precision import expected
from faultinject.estimate.strata import Strata

pytest.importorskip("scipy", reason="scipy is not installed")

PLENTY = expected((60_000, 20_000, 6_000, 3_000))
REFERENCE = expected((6000, 6000, 1000, 200), (500, 500))


def leaky(trials: int, f1: float) -> Strata:
    """The paper's node, but a lone guest's fault gets through with probability ``f1``."""
    clean = expected((60_000, trials, 6_000, 3_000)).guests
    one = Counts(trials=trials, failures=round(trials * f1))
    return Strata(guests=(clean[0], one, clean[2], clean[3]))


def test_equivalence_holds_given_enough_missions_without_deviation() -> None:
    failure, bound = failure_equivalence(PLENTY), bound_equivalence(PLENTY)
    assert (
        failure.verdict is bound.verdict is combined_verdict(failure, bound) is VoterVerdict.HOLDS
    )
    assert failure.missions == {}


def test_equivalence_names_the_missions_needed_when_undecided() -> None:
    """A finding: perfect data of the reference plan end undecided, by f_0 at small q."""
    failure, bound = failure_equivalence(REFERENCE), bound_equivalence(REFERENCE)
    assert failure.verdict is bound.verdict is VoterVerdict.UNDECIDED
    assert failure.q == 0.05 and failure.missions is not None and set(failure.missions) == {"f0"}
    grown = REFERENCE.with_more(failure.missions)
    assert failure_equivalence(grown).verdict is VoterVerdict.HOLDS


def test_equivalence_is_violated_when_single_faults_are_not_masked() -> None:
    found = failure_equivalence(leaky(20_000, 0.02))
    assert found.verdict is VoterVerdict.VIOLATED
    assert found.q == 0.05  # where one guest hit weighs most
    assert found.measured.low > found.paper * 1.1
    assert combined_verdict(found, bound_equivalence(PLENTY)) is VoterVerdict.VIOLATED


def test_equivalence_holds_when_a_real_difference_is_within_the_margin() -> None:
    """Equivalence: f_1 = .001 is surely not 0, and adds 2 % to U at q = .05."""
    assert failure_equivalence(leaky(100_000, 0.001)).verdict is VoterVerdict.HOLDS


def test_equivalence_stays_undecided_when_the_truth_is_at_the_margin() -> None:
    at_the_margin = 0.1 * paper_failure(0.05, 2, 3) / (3 * 0.05 * 0.95**2)
    found = failure_equivalence(leaky(1_000_000, at_the_margin))
    assert found.verdict is VoterVerdict.UNDECIDED
    assert found.missions is None


def test_bound_is_violated_when_the_voter_recovers() -> None:
    voter = tuple(Counts(trials=3000, failures=600) for _ in range(2))
    found = bound_equivalence(Strata(guests=PLENTY.guests, voter=voter))
    assert found.verdict is VoterVerdict.VIOLATED
    assert found.measured.high < found.paper


def test_equivalence_is_undecided_when_void_missions_count_as_worst_case() -> None:
    clean = PLENTY.guests
    lost = Counts(trials=60_000, failures=0, excluded=600)
    found = Strata(guests=(lost, *clean[1:]))
    assert failure_equivalence(found).verdict is VoterVerdict.HOLDS
    assert failure_equivalence(found, excluded="worst").verdict is VoterVerdict.UNDECIDED


@pytest.mark.parametrize(
    ("rm", "rv", "choice"),
    [
        (0.9, 0.98, Choice.VOTED),
        (0.9, 0.9, Choice.PLAIN),
        (0.75, 0.9, Choice.VOTED),
        (0.75, 0.88, Choice.PLAIN),
        (0.4, 0.9999, Choice.PLAIN),
        (0.98, 0.98, Choice.PLAIN),
        (0.5, 1.0, Choice.UNDECIDED),
        (0.978, 0.98, Choice.UNDECIDED),
    ],
)
def test_points_are_compared_as_the_paper_predicts(rm: float, rv: float, choice: Choice) -> None:
    [found] = compare_at_points(REFERENCE, [(rm, rv, 1.0)])
    assert found.choice is choice
    if choice is not Choice.UNDECIDED:
        assert found.paper is choice
    assert found.plain == pytest.approx(rm)


def test_hardware_reliability_scales_both_nodes() -> None:
    low, high = compare_at_points(REFERENCE, [(0.9, 0.98, 0.5), (0.9, 0.98, 1.0)])
    assert low.choice is high.choice is Choice.VOTED
    assert low.voted.low == pytest.approx(high.voted.low / 2)
    assert compare_at_points(REFERENCE, [(0.9, 0.98, 0.0)])[0].choice is Choice.PLAIN


def test_equivalence_holds_for_three_of_five() -> None:
    five = expected((80_000, 20_000, 20_000, 6_000, 3_000, 3_000), m=3)
    assert (
        failure_equivalence(five, EquivalenceMargins(q_low=0.2), m=3).verdict is VoterVerdict.HOLDS
    )
    assert compare_at_points(five, [(0.8, 0.95, 1.0)], m=3)[0].choice is Choice.VOTED


def test_invalid_margins_raise() -> None:
    with pytest.raises(EstimateError, match="margins"):
        EquivalenceMargins(failure=0)
    with pytest.raises(EstimateError, match="margins"):
        EquivalenceMargins(q_low=0.5, q_high=0.1)
    with pytest.raises(EstimateError, match="bound below 1"):
        bound_equivalence(PLENTY, EquivalenceMargins(q_low=0.6, q_high=0.9))
