"""Do the intervals cover as often as they say?  Known truths, played many times, seeded.

The box must hold for all q at once: it is looked at over a grid of q in every game.
"""

from __future__ import annotations

from typing import Any

import pytest

from faultinject.estimate.common_cause import CommonCauseTrials, at_frequency, estimate_common_cause
from faultinject.estimate.counts import Counts
from faultinject.estimate.doses import DoseCounts, compare_doses
from faultinject.estimate.equivalence import (
    Choice,
    VoterVerdict,
    compare_at_point,
    failure_equivalence,
)
from faultinject.estimate.pairs import Pair, pair_difference
from faultinject.estimate.posterior import sharp
from faultinject.estimate.strata import Strata, band, breakeven, recombine
from faultinject.model.causes import one_shot
from faultinject.model.reliability import two_of_three

numpy: Any = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("scipy", reason="scipy is not installed")

GAMES = 400
# Of 400 games at 95 %, 20 miss on average; more than 33 has a probability of .003.
WORST = 33
QS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)

TRUTHS = {
    "the paper's": ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)),
    "leaky": ((0.002, 0.03, 0.97, 1.0), (0.1, 0.05, 0.0, 0.0)),
    "lenient": ((0.0005, 0.004, 0.6, 0.9), (0.7, 0.65, 0.2, 0.05)),
}
SIZES = (600, 600, 200, 60)
truths = pytest.mark.parametrize(("f", "g"), TRUTHS.values(), ids=TRUTHS.keys())


def played(rng: Any, chances: tuple[float, ...], sizes: tuple[int, ...]) -> tuple[Counts, ...]:
    return tuple(
        Counts(trials=size, failures=int(rng.binomial(size, chance)))
        for chance, size in zip(chances, sizes, strict=True)
    )


@truths
def test_the_box_covers_u_and_the_bound_at_all_q_at_once(
    f: tuple[float, ...], g: tuple[float, ...]
) -> None:
    rng, missed = numpy.random.default_rng(11), 0
    for _ in range(GAMES):
        voter = played(rng, tuple(1 - each for each in g), (150, 150, 150, 150))
        box = band(Strata(guests=played(rng, f, SIZES), voter=voter))
        missed += any(
            not box.failure(q).low - 1e-12 <= recombine(f, q) <= box.failure(q).high + 1e-12
            or not box.bound(1 - q).low - 1e-12
            <= breakeven(1 - q, 1 - recombine(f, q), recombine(g, q))
            <= box.bound(1 - q).high + 1e-12
            for q in QS
        )
    assert missed <= WORST


@truths
def test_unmeasured_voter_strata_are_covered_by_what_bounds_them(
    f: tuple[float, ...], g: tuple[float, ...]
) -> None:
    rng, missed = numpy.random.default_rng(12), 0
    for _ in range(GAMES):
        voter = played(rng, tuple(1 - each for each in g[:2]), (150, 150))
        box = band(Strata(guests=played(rng, f, SIZES), voter=voter))
        missed += any(
            not box.saved(1 - q).low - 1e-12 <= recombine(g, q) <= box.saved(1 - q).high + 1e-12
            for q in QS
        )
    assert missed <= WORST


def test_the_posterior_covers_pointwise_where_failures_are_seen() -> None:
    f, rng = TRUTHS["lenient"][0], numpy.random.default_rng(13)
    q, missed = 0.3, 0
    for game in range(GAMES):
        found = sharp(Strata(guests=played(rng, f, SIZES)), draws=1000, seed=game)
        missed += not found.failure(q).contains(recombine(f, q))
    assert 5 <= missed <= WORST


def test_the_posterior_holds_the_truth_of_a_perfect_node() -> None:
    """No failure in f_0 and f_1: every draw lies above the truth, what was observed does not."""
    f = TRUTHS["the paper's"][0]
    strata = Strata(guests=played(numpy.random.default_rng(19), f, SIZES))
    assert all(sharp(strata, draws=500).failure(q).contains(recombine(f, q)) for q in QS)


def test_the_posterior_misses_where_f0_matters() -> None:
    """Why it is not the interval by which anything is judged: f_0 = .0068 in 400 missions."""
    f, rng = (0.0068, 0.0, 1.0, 1.0), numpy.random.default_rng(14)
    sizes, q = (400, 600, 200, 60), 0.02
    missed = boxed = 0
    for game in range(GAMES):
        strata = Strata(guests=played(rng, f, sizes))
        missed += not sharp(strata, draws=500, seed=game).failure(q).contains(recombine(f, q))
        boxed += not band(strata).failure(q).contains(recombine(f, q))
    assert boxed <= 20 < missed


def test_wrong_verdicts_are_as_rare_as_alpha() -> None:
    """A node that is just outside the margin, and points just on the wrong side of the bound."""
    rng = numpy.random.default_rng(15)
    f = (0.0, 0.0062, 1.0, 1.0)  # U/U_paper = 1.12 at q = .05
    held = voted = 0
    for _ in range(40):
        strata = Strata(guests=played(rng, f, (20_000, 8_000, 2_000, 800)))
        held += failure_equivalence(strata).verdict is VoterVerdict.HOLDS
        rm = 0.9
        bound = rm / (1 - recombine(f, 1 - rm))
        voted += compare_at_point(strata, rm, bound - 1e-6).choice is Choice.VOTED
    assert held <= 5 and voted <= 5


@pytest.mark.parametrize("trials", [60, 300])
def test_the_departure_from_the_model_covers_at_every_dose_together(trials: int) -> None:
    rng, missed, lone, mean = numpy.random.default_rng(16), 0, 0, 0
    rms = (0.98, 0.9, 0.7, 0.5, 0.35, 0.2)
    shift = (-0.01, 0.0, 0.03, -0.04, 0.0, 0.02)
    truth = [float(two_of_three(1, 1, rm)) + by for rm, by in zip(rms, shift, strict=True)]
    for _ in range(GAMES // 2):
        doses = [
            DoseCounts(dose=i, nv=a, voted=b)
            for i, (a, b) in enumerate(
                zip(
                    played(rng, tuple(1 - rm for rm in rms), (trials,) * 6),
                    played(rng, tuple(1 - up for up in truth), (trials,) * 6),
                    strict=True,
                )
            )
        ]
        found = compare_doses(doses, margin=0.2)
        pairs = list(zip(found.doses, shift, strict=True))
        missed += any(not each.departure.contains(by) for each, by in pairs)
        lone += sum(not each.sharp.contains(by) for each, by in pairs)
        mean += not found.mean.contains(sum(shift) / 6)
    assert missed <= 19 and mean <= 19  # of 200 games, 10 on average
    assert lone <= 200 * 6 * 0.065


def test_shots_cover_together() -> None:
    rng, missed, excess = numpy.random.default_rng(17), 0, 0
    c = (0.5, 0.1, 0.05, 0.35)
    truth = float(one_shot(0.9, 0.3, c, 2))
    for _ in range(GAMES):
        shots = CommonCauseTrials(failed=tuple(int(each) for each in rng.multinomial(300, c)))
        found, at = estimate_common_cause(shots), at_frequency(shots, 0.3, 0.9)
        missed += not (
            all(part.contains(each) for part, each in zip(found.c, c, strict=True))
            and found.fatal.contains(0.4)
            and at.rsys.contains(truth)
        )
        excess += not found.excess.contains(0.4 - two_of_three(1, 1, 1 - 1.25 / 3).down)
    assert missed <= WORST and excess <= WORST


def test_pairs_cover_for_all_q_at_once() -> None:
    rng, missed = numpy.random.default_rng(18), 0
    chances = [
        (0.0, 0.01, 0.0, 0.99), (0.02, 0.1, 0.03, 0.85), (0.9, 0.02, 0.05, 0.03), (1.0, 0, 0, 0)
    ]  # fmt: skip
    truth = [each[1] - each[2] for each in chances]
    for _ in range(GAMES):
        drawn = [rng.multinomial(200, each) for each in chances]
        pairs = [
            Pair(both=int(a), first=int(b), second=int(c), neither=int(d)) for a, b, c, d in drawn
        ]
        missed += any(
            not pair_difference(pairs, q).low - 1e-12
            <= recombine(truth, q)
            <= pair_difference(pairs, q).high + 1e-12
            for q in QS
        )
    assert missed <= WORST
