"""Coverage: do intervals contain known truths as often as stated?  Seeded simulations.

The box must hold for all q at once, so each simulated campaign is checked on a grid of q.
"""

from __future__ import annotations

from typing import Any

import pytest

from faultinject.estimate.common_cause import at_frequency, estimate_common_cause
from faultinject.estimate.counts import Counts
from faultinject.estimate.doses import DoseCounts, compare_doses
from faultinject.estimate.equivalence import (
    Choice,
    VoterVerdict,
    compare_at_points,
    failure_equivalence,
)
from faultinject.estimate.strata import Strata, band, breakeven, recombine
from faultinject.model.reliability import m_of_n, two_of_three

numpy: Any = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("scipy", reason="scipy is not installed")

CAMPAIGNS = 400
# Of 400 campaigns at 95 %, 20 miss on average; more than 33 has a probability of .003.
WORST = 33
QS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)

TRUTHS = {
    "the paper's": ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)),
    "leaky": ((0.002, 0.03, 0.97, 1.0), (0.1, 0.05, 0.0, 0.0)),
    "lenient": ((0.0005, 0.004, 0.6, 0.9), (0.7, 0.65, 0.2, 0.05)),
}
SIZES = (600, 600, 200, 60)
truths = pytest.mark.parametrize(("f", "g"), TRUTHS.values(), ids=TRUTHS.keys())


def sampled(rng: Any, chances: tuple[float, ...], sizes: tuple[int, ...]) -> tuple[Counts, ...]:
    return tuple(
        Counts(trials=size, failures=int(rng.binomial(size, chance)))
        for chance, size in zip(chances, sizes, strict=True)
    )


@truths
def test_box_covers_unreliability_and_bound_at_all_q_at_once(
    f: tuple[float, ...], g: tuple[float, ...]
) -> None:
    rng, missed = numpy.random.default_rng(11), 0
    for _ in range(CAMPAIGNS):
        voter = sampled(rng, tuple(1 - each for each in g), (150, 150, 150, 150))
        box = band(Strata(guests=sampled(rng, f, SIZES), voter=voter))
        missed += any(
            not box.failure(q).low - 1e-12 <= recombine(f, q) <= box.failure(q).high + 1e-12
            or not box.bound(1 - q).low - 1e-12
            <= breakeven(1 - q, 1 - recombine(f, q), recombine(g, q))
            <= box.bound(1 - q).high + 1e-12
            for q in QS
        )
    assert missed <= WORST


@truths
def test_bounds_cover_unmeasured_voter_strata(f: tuple[float, ...], g: tuple[float, ...]) -> None:
    rng, missed = numpy.random.default_rng(12), 0
    for _ in range(CAMPAIGNS):
        voter = sampled(rng, tuple(1 - each for each in g[:2]), (150, 150))
        box = band(Strata(guests=sampled(rng, f, SIZES), voter=voter))
        missed += any(
            not box.saved(1 - q).low - 1e-12 <= recombine(g, q) <= box.saved(1 - q).high + 1e-12
            for q in QS
        )
    assert missed <= WORST


def test_wrong_verdicts_are_as_rare_as_alpha_at_the_margin() -> None:
    """A node that is just outside the margin, and points just on the wrong side of the bound."""
    rng = numpy.random.default_rng(15)
    f = (0.0, 0.0062, 1.0, 1.0)  # U/U_paper = 1.12 at q = .05
    held = voted = 0
    for _ in range(40):
        strata = Strata(guests=sampled(rng, f, (20_000, 8_000, 2_000, 800)))
        held += failure_equivalence(strata).verdict is VoterVerdict.HOLDS
        rm = 0.9
        bound = rm / (1 - recombine(f, 1 - rm))
        voted += compare_at_points(strata, [(rm, bound - 1e-6, 1.0)])[0].choice is Choice.VOTED
    assert held <= 5 and voted <= 5


@pytest.mark.parametrize("trials", [60, 300])
def test_departure_covers_at_all_doses_at_once(trials: int) -> None:
    rng, missed = numpy.random.default_rng(16), 0
    rms = (0.98, 0.9, 0.7, 0.5, 0.35, 0.2)
    shift = (-0.01, 0.0, 0.03, -0.04, 0.0, 0.02)
    truth = [float(two_of_three(1, 1, rm)) + by for rm, by in zip(rms, shift, strict=True)]
    for _ in range(CAMPAIGNS // 2):
        doses = [
            DoseCounts(dose=i, nv=a, voted=b)
            for i, (a, b) in enumerate(
                zip(
                    sampled(rng, tuple(1 - rm for rm in rms), (trials,) * 6),
                    sampled(rng, tuple(1 - up for up in truth), (trials,) * 6),
                    strict=True,
                )
            )
        ]
        found = compare_doses(doses, margin=0.2)
        pairs = list(zip(found.doses, shift, strict=True))
        missed += any(not each.departure.contains(by) for each, by in pairs)
    assert missed <= 19  # of 200 campaigns, 10 on average


def test_common_cause_intervals_cover_at_once() -> None:
    rng, missed = numpy.random.default_rng(17), 0
    c = (0.5, 0.1, 0.05, 0.35)
    left = [float(m_of_n(1, 1, 0.9, 2, n)) if n > 1 else 0.0 for n in (3, 2, 1, 0)]
    truth = 0.7 * left[0] + 0.3 * sum(share * each for share, each in zip(c, left, strict=True))
    for _ in range(CAMPAIGNS):
        trials = [int(each) for each in rng.multinomial(300, c)]
        found, at = estimate_common_cause(trials), at_frequency(trials, 0.3, 0.9)
        missed += not (
            all(part.contains(each) for part, each in zip(found.c, c, strict=True))
            and found.fatal.contains(0.4)
            and at.rsys.contains(truth)
        )
    assert missed <= WORST
