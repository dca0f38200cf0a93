"""Soft errors: does the paper's model hold for faults that nobody forced to cause a failure?

At each dose (bit flips per guest and mission), R_M is measured on the plain node and R_sys on the
voted node, in separate missions.  The model predicts ``R_sys = R_V sum_{j>=m} C(n,j) R_M^j
(1-R_M)^(n-j)``, for 2-of-3 ``3 R_M^2 - 2 R_M^3``.  Known causes of a departure: a workload shared
by all replicas (Eckhardt and Lee 1985), compensating failures (Siewiorek), load on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.crossing import Crossing, find_crossing
from faultinject.estimate.intervals import Interval, check_alpha, success
from faultinject.model.reliability import m_of_n

__all__ = ["DoseComparison", "DoseCounts", "DoseSeries", "Fit", "compare_doses"]


class Fit(StrEnum):
    """Whether the measured R_sys agrees with the model within the margin."""

    AGREES = "agrees"
    DEPARTS = "departs"
    UNDECIDED = "undecided"


class DoseCounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Missions at one dose: ``nv`` on the plain node, ``voted`` on the voted one."""

    dose: float
    nv: Counts
    voted: Counts


class DoseComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One dose compared with the model.

    ``rm``, ``rsys``: measured, each with its own interval at 1 - alpha.  ``model``: R_sys predicted
    from ``rm`` and its interval.  ``departure``: R_sys minus the prediction, with the interval that
    decides ``verdict`` (MOVER, Zou and Donner 2008; Bonferroni over the doses).
    """

    dose: float
    rm: Interval
    rsys: Interval
    model: Interval
    departure: Interval
    verdict: Fit


class DoseSeries(msgspec.Struct, frozen=True, kw_only=True):
    """All doses together.

    ``verdict``: departs if any dose departs, agrees if all agree.  ``crossing``: the R_M at which
    both nodes are equally reliable; None where the doses do not cross.  ``spans_crossing``: whether
    some R_M is .5 or less and some .9 or more, so that two guests fail often enough.
    """

    doses: tuple[DoseComparison, ...]
    verdict: Fit
    crossing: Crossing | None
    spans_crossing: bool


def compare_doses(
    doses: Sequence[DoseCounts], alpha: float = 0.05, margin: float = 0.05, m: int = 2, n: int = 3
) -> DoseSeries:
    """Compare the measured R_sys with the model at the measured R_M, at each dose and overall.

    ``margin``: the greatest |R_sys - model| that still counts as agreement, absolute, in (0, 1).
    """
    check_alpha(alpha)
    if not 0.0 < margin < 1.0:
        raise EstimateError(f"margin is {margin:g}: it must lie between 0 and 1")
    if not doses:
        raise EstimateError("there are no doses to compare")
    ranked = sorted(doses, key=lambda each: each.dose)
    compared = tuple(_compare(each, alpha, len(ranked), margin, m, n) for each in ranked)
    fits = {each.verdict for each in compared}
    verdict = Fit.UNDECIDED
    if Fit.DEPARTS in fits:
        verdict = Fit.DEPARTS
    elif fits == {Fit.AGREES}:
        verdict = Fit.AGREES
    values = [each.rm.value for each in compared if not math.isnan(each.rm.value)]
    return DoseSeries(
        doses=compared,
        verdict=verdict,
        crossing=find_crossing(
            [each.nv for each in ranked], [each.voted for each in ranked], alpha
        ),
        spans_crossing=bool(values) and min(values) <= 0.5 and max(values) >= 0.9,
    )


def _compare(
    dose: DoseCounts, alpha: float, family: int, margin: float, m: int, n: int
) -> DoseComparison:
    rm, rsys = success(dose.nv, alpha), success(dose.voted, alpha)
    departure = _difference(
        success(dose.voted, alpha / family), _predicted(success(dose.nv, alpha / family), m, n)
    )
    verdict = Fit.UNDECIDED
    if -margin <= departure.low and departure.high <= margin:
        verdict = Fit.AGREES
    elif departure.low > 0.0 or departure.high < 0.0:
        verdict = Fit.DEPARTS
    return DoseComparison(
        dose=dose.dose, rm=rm, rsys=rsys, model=_predicted(rm, m, n), departure=departure,
        verdict=verdict,
    )  # fmt: skip


def _predicted(rm: Interval, m: int, n: int) -> Interval:
    """The model over an interval of R_M; it is increasing in R_M."""

    def model(rm: float) -> float:
        return math.nan if math.isnan(rm) else float(m_of_n(1.0, 1.0, min(1.0, max(0.0, rm)), m, n))

    return Interval(value=model(rm.value), low=model(rm.low), high=model(rm.high))


def _difference(rsys: Interval, model: Interval) -> Interval:
    """R_sys minus the model, the errors added as squares (MOVER).

    From two Clopper-Pearson intervals; in simulation its coverage was never below the nominal one.
    """
    value = rsys.value - model.value
    if math.isnan(value):
        return Interval(value=value, low=-1.0, high=1.0)
    return Interval(
        value=value,
        low=value - math.hypot(rsys.value - rsys.low, model.high - model.value),
        high=value + math.hypot(rsys.high - rsys.value, model.value - model.low),
    )
