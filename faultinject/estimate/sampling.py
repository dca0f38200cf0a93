"""What stratified sampling gains over natural sampling with as many missions.

In natural sampling at failure probability q, most missions have no guest hit and carry little
information.  Skipping these is better, yet holds for one q only.  The comparison is of interval
widths, not of variances, which are 0 where every stratum is all or nothing.
"""

from __future__ import annotations

import math

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.intervals import check_alpha, check_probability, clopper_pearson
from faultinject.estimate.strata import Strata, band, recombine, weights
from faultinject.model.paired import Paired
from faultinject.model.tails import exactly

__all__ = ["SamplingComparison", "compare_sampling"]

MOST = 50_000_000
"""Missions at which the search for a sample size ends without a result."""


class SamplingComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The interval of U(q) relative to U, and half-widths of it: .03 is 3 % of U.

    ``low``, ``high``: the ends of the interval as run, as differences from U.  They are far from
    symmetric where f_0 was 0.  The others are half-widths.  ``stratified``: as run, f_0 measured.
    ``given_f0``: the same data, given f_0 = 0.
    ``skipping``: as many ``missions`` sampled naturally with k = 0 skipped, given f_0 = 0.
    ``natural``: as many sampled naturally.  ``missions_natural``: how many of these reach the width
    of ``given_f0``; 0: none do.  The natural ones hold for this q alone and use all of alpha; the
    stratified ones hold for all q simultaneously.
    """

    q: float
    missions: int
    low: float
    high: float
    stratified: float
    given_f0: float
    skipping: float
    natural: float
    missions_natural: int


def compare_sampling(strata: Strata, q: float, alpha: float = 0.05) -> SamplingComparison:
    """Compare on the measured f_k, with the same number of missions (k = 0..n, voter not hit).

    The natural widths are expected values over the counts that such sampling would give.  Raises
    EstimateError where U(q) is 0 (q 0, or no failure anywhere): no relative width exists there.
    """
    check_alpha(alpha)
    check_probability("q", q)
    guests = Strata(guests=strata.guests)
    box = band(guests, alpha).failure(q)
    failure = recombine([0.0, *(each.rate for each in strata.guests[1:])], q)
    if not failure > 0.0:
        raise EstimateError(
            "U is 0 or unknown here: relative widths need failures in some stratum",
            error_code="TV0605",
        )
    missions = guests.trials
    hit = 1.0 - weights(q, strata.n)[0]
    given = _given_f0(guests, q, alpha)
    return SamplingComparison(
        q=q,
        missions=missions,
        low=box.low / failure - 1.0,
        high=box.high / failure - 1.0,
        stratified=box.width / 2 / failure,
        given_f0=given / 2 / failure,
        skipping=_expected_width(failure / hit, missions, alpha) * hit / 2 / failure,
        natural=_expected_width(failure, missions, alpha) / 2 / failure,
        missions_natural=_missions(failure, given, alpha),
    )


def _given_f0(guests: Strata, q: float, alpha: float) -> float:
    """Width of U's band if f_0 is 0: the box has one stratum fewer."""
    shared = alpha / guests.n
    parts = [clopper_pearson(each.failures, each.trials, shared) for each in guests.guests[1:]]
    return recombine([0.0, *(each.width for each in parts)], q)


def _expected_width(chance: float, trials: int, alpha: float) -> float:
    """Mean width of the exact interval over the counts of ``trials``; ``chance`` in (0, 1]."""
    chance = min(1.0, chance)
    if trials == 0:
        return 1.0
    spread = math.sqrt(trials * chance * (1.0 - chance))
    low = max(0, math.floor(trials * chance - 6 * spread - 6))
    high = min(trials, math.ceil(trials * chance + 6 * spread + 6))
    step = max(1, (high - low) // 200)  # the width is smooth: 200 counts are enough
    total = weight = 0.0
    for failures in range(low, high + 1, step):
        share = exactly(failures, trials, Paired(chance)) if trials <= 100_000 else 1.0
        if trials > 100_000:  # exact binomials are slow there; the normal density is accurate
            share = math.exp(-(((failures - trials * chance) / max(spread, 1e-9)) ** 2) / 2)
        total += share * clopper_pearson(failures, trials, alpha).width
        weight += share
    return total / weight


def _missions(chance: float, width: float, alpha: float) -> int:
    """Missions for an expected interval no wider than ``width``; 0: no number is enough."""
    if width <= 0.0:
        return 0
    low, high = 1, 2
    while _at_mean(chance, high, alpha) > width:
        low, high = high, high * 2
        if high > MOST:
            return 0
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (middle, high) if _at_mean(chance, middle, alpha) > width else (low, middle)
    return high


def _at_mean(chance: float, trials: int, alpha: float) -> float:
    counts = Counts(trials=trials, failures=min(trials, round(chance * trials)))
    return clopper_pearson(counts.failures, counts.trials, alpha).width
