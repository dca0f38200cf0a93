"""The measured break-even R_F: the paper's values, all corners of the box, coverage."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import clopper_pearson
from faultinject.estimate.relocation import (
    NONE,
    RelocationCounts,
    estimate_relocation,
    heterogeneity,
)
from faultinject.estimate.strata import Strata, band, breakeven, recombine

numpy: Any = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("scipy", reason="scipy is not installed")

CAMPAIGNS = 400
# Of 400 campaigns at 95 %, 20 miss on average; more than 33 has a probability of .003.
WORST = 33
POINTS = ((0.75, 0.75), (0.25, 0.75), (0.9, 0.5), (0.5, 0.95), (1.0, 0.75))


def ideal(n: int, missions: int) -> RelocationCounts:
    """Return counts as the paper assumes, with so many missions in each stratum."""
    strata = tuple(
        Counts(trials=missions, failures=missions if k == n else 0) for k in range(n + 1)
    )
    return RelocationCounts(
        in_f=strata, in_rest=strata, moved=(Counts(trials=missions, failures=missions),)
    )  # fmt: skip


@pytest.mark.parametrize(("n", "spot"), [(6, 0.9932), (9, 0.9994), (1, 0.75)])
def test_break_even_matches_the_papers_values(n: int, spot: float) -> None:
    found = estimate_relocation(ideal(n, 60), 0.75, 0.75)
    assert found.paper == pytest.approx(spot, abs=5e-5)
    for interval in (found.separate, found.pooled, found.given_f0):
        assert interval is not None
        assert interval.value == pytest.approx(found.paper, abs=1e-12)
        assert interval.low <= found.paper <= interval.high
    assert found.given_f0 is not None
    assert found.given_f0.width < found.pooled.width < found.separate.width
    assert found.saved.value == 0.0


def test_needed_missions_resolve_the_break_even() -> None:
    few, many = (
        estimate_relocation(ideal(9, 60), 0.75, 0.75),
        estimate_relocation(ideal(9, 10**7), 0.75, 0.75),
    )
    assert few.unresolved > 50, "60 missions per stratum do not resolve 5.9e-4"
    assert few.given_f0 is not None
    assert 1 - few.given_f0.high > 0.9 * few.room, "given f_k = 0 for k < n all of it"
    assert many.unresolved < 0.1
    # The needed missions are enough.
    wanted = few.needed
    assert max(wanted) > 10_000
    enough = tuple(Counts(trials=max(each, 1), failures=0) for each in wanted)
    last = (Counts(trials=60, failures=60),)
    done = estimate_relocation(
        RelocationCounts(in_f=(NONE,) * 10, in_rest=enough + last, moved=(Counts(trials=60,
        failures=60),)),
        0.75, 0.75,
    )  # fmt: skip
    assert done.unresolved <= 0.1


@pytest.mark.parametrize(("n", "rf", "rest"), [(2, 0.5, 0.75), (3, 0.75, 0.75), (3, 0.5, 0.5)])
def test_unresolved_share_matches_the_interval_width(n: int, rf: float, rest: float) -> None:
    certain = 10**8

    def width(missions: tuple[int, ...]) -> tuple[float, float]:
        strata = tuple(Counts(trials=each, failures=0) for each in missions)
        last = (Counts(trials=certain, failures=certain),)
        found = estimate_relocation(
            RelocationCounts(in_f=(NONE,) * (n + 1), in_rest=strata + last), rf, rest
        )
        return found.unresolved, found.pooled.width / found.room

    for k in range(n):
        hidden, seen = width(tuple(30 if j == k else certain for j in range(n)))
        assert hidden == pytest.approx(seen, rel=0.12)
    few = estimate_relocation(
        RelocationCounts(in_f=(NONE,) * (n + 1), in_rest=ideal(n, 60).in_rest), rf, rest
    )  # fmt: skip
    assert width(few.needed)[1] < 1.1 * few.target, "the needed missions are enough"


def test_separate_strata_assume_nothing_from_c2_when_f_was_not_hit() -> None:
    full = ideal(3, 10**4)
    lacking = RelocationCounts(in_f=(full.in_f[0], NONE, *full.in_f[2:]), in_rest=full.in_rest)
    # All of C1's missions with one f failed may fail, for all that is known.
    worst = 1 - recombine((0.0, 1.0, 0.0, 1.0), 1 - 0.75 * 0.75)
    truth = breakeven(worst, 1 - recombine((0.0, 0.0, 0.0, 1.0), 0.25), 0.0)
    found = estimate_relocation(lacking, 0.75, 0.75).separate
    assert found.low <= truth <= found.high


def test_pooled_interval_contains_all_corners_of_the_box() -> None:
    """The threshold rule finds the extremes of all corners of the box."""
    rng = numpy.random.default_rng(5)
    for _ in range(60):
        n = int(rng.integers(1, 5))
        strata = tuple(
            Counts(trials=40, failures=int(rng.integers(0, 41))) for _ in range(n + 1)
        )  # fmt: skip
        counts = RelocationCounts(
            in_f=(NONE,) * (n + 1), in_rest=strata, moved=(Counts(trials=40, failures=39),)
        )
        rf, rest = float(rng.uniform(0.05, 1)), float(rng.uniform(0.05, 1))
        found = estimate_relocation(counts, rf, rest)
        level = 0.05 / counts.strata
        second = band(Strata(guests=strata, voter=counts.moved), level * (n + 2))
        saving = [(each.low, each.high) for each in second.saving]
        box = [clopper_pearson(each.failures, each.trials, level) for each in strata]
        every = [
            breakeven(
                1 - recombine(f, 1 - rf * rest), 1 - recombine(f, 1 - rest), recombine(g, 1 - rest)
            )
            for f in product(*((each.low, each.high) for each in box))
            for g in ([low for low, _ in saving], [high for _, high in saving])
        ]
        assert found.pooled.low == pytest.approx(min(every))
        assert found.pooled.high == pytest.approx(max(every))


TRUTHS = {
    "the paper's": ((0.0, 0.0, 0.0, 1.0), 0.0),
    "leaky": ((0.002, 0.01, 0.03, 0.98), 0.1),
    "lenient": ((0.001, 0.05, 0.3, 0.7), 0.4),
}
SIZES = (400, 300, 300, 60)


def draw(rng: Any, chances: tuple[float, ...], sizes: tuple[int, ...]) -> tuple[Counts, ...]:
    return tuple(
        Counts(trials=size, failures=int(rng.binomial(size, chance)))
        for chance, size in zip(chances, sizes, strict=True)
    )


@pytest.mark.parametrize(("f", "g"), TRUTHS.values(), ids=TRUTHS.keys())
def test_intervals_cover_at_all_points_at_once(f: tuple[float, ...], g: float) -> None:
    rng, missed = numpy.random.default_rng(7), {"separate": 0, "pooled": 0}
    for _ in range(CAMPAIGNS):
        counts = RelocationCounts(
            in_f=draw(rng, f, SIZES), in_rest=draw(rng, f, SIZES),
            moved=draw(rng, (1 - g,) * 4, (80,) * 4),
        )  # fmt: skip
        off = {"separate": False, "pooled": False}
        for rf, rest in POINTS:
            found = estimate_relocation(counts, rf, rest)
            truth = breakeven(
                1 - recombine(f, 1 - rf * rest), 1 - recombine(f, 1 - rest), g
            )  # fmt: skip
            for name in off:
                interval = getattr(found, name)
                off[name] |= not interval.low - 1e-12 <= truth <= interval.high + 1e-12
        for name, wrong in off.items():
            missed[name] += wrong
    assert max(missed.values()) <= WORST, missed


def test_separate_interval_covers_when_strata_are_heterogeneous() -> None:
    """A guest whose f fails harms less than one whose rest does: any mixture lies between."""
    in_f, in_rest, rf, rest = (0.0, 0.01, 0.02, 0.7), (0.0, 0.02, 0.2, 1.0), 0.6, 0.8
    rng, missed, seen = numpy.random.default_rng(9), 0, 0
    q = 1 - rf * rest
    for _ in range(CAMPAIGNS):
        counts = RelocationCounts(
            in_f=draw(rng, in_f, SIZES), in_rest=draw(rng, in_rest, SIZES),
            moved=(Counts(trials=80, failures=80),),
        )  # fmt: skip
        found = estimate_relocation(counts, rf, rest).separate
        for share in (0.0, 0.5, 1.0):
            f = [share * x + (1 - share) * y for x, y in zip(in_f, in_rest, strict=True)]
            truth = breakeven(1 - recombine(f, q), 1 - recombine(in_rest, 1 - rest), 0.0)
            missed += not found.low <= truth <= found.high
        seen += bool(heterogeneity(counts))
    assert missed <= WORST
    assert seen > CAMPAIGNS * 0.9, "the difference is detected"
    assert not heterogeneity(ideal(3, 60))


def test_break_even_is_rf_for_one_guest_and_one_for_perfect_f() -> None:
    found = estimate_relocation(ideal(1, 1000), 0.75, 0.6)
    assert found.paper == 0.75, "with one guest it does not matter where the function is"
    assert found.needed == (0,), "and f_0 takes as much from both"
    same = estimate_relocation(ideal(3, 100), 1.0, 0.75)
    assert (same.paper, same.room) == (1.0, 0.0)
    assert same.pooled.value == pytest.approx(1.0)


def test_given_f0_is_none_after_a_failure_with_guests_left() -> None:
    one = Counts(trials=60, failures=1)
    counts = ideal(3, 60)
    counts = RelocationCounts(
        in_f=(one, *counts.in_f[1:]), in_rest=counts.in_rest, moved=counts.moved
    )
    assert estimate_relocation(counts, 0.75, 0.75).given_f0 is None


def test_invalid_counts_raise() -> None:
    strata = ideal(3, 10).in_f
    with pytest.raises(EstimateError, match="same k"):
        RelocationCounts(in_f=strata, in_rest=strata[1:])
    with pytest.raises(EstimateError, match="or not at all"):
        RelocationCounts(in_f=strata, in_rest=strata, mixed=strata[1:])
    with pytest.raises(EstimateError, match="R_f is 2"):
        estimate_relocation(ideal(3, 10), 2.0, 0.5)
