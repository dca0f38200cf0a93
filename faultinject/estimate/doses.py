"""Soft errors: is R_sys what the paper's model predicts, when nobody forces a guest to fail?

At each dose (bit flips per guest and mission), R_M is measured on the plain node and R_sys on the
voted node, in separate missions.  The model predicts ``R_sys = R_V sum_{j>=m} C(n,j) R_M^j
(1-R_M)^(n-j)``, for 2-of-3 ``3 R_M^2 - 2 R_M^3``.  Known causes of a departure: a workload shared
by all replicas (Eckhardt and Lee 1985), compensating failures (Siewiorek), load on the host.  The
faults of each guest are drawn independently, so this tests whether their *consequences* are
coupled, not whether faults occur independently in nature.
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

__all__ = [
    "MARGIN", "DoseComparison", "DoseCounts", "DoseSeries", "Fit", "JointTest", "compare_doses",
    "departure_interval", "joint_test", "mean_departure", "model_ratio", "predicted_rsys",
]  # fmt: skip

MARGIN = 0.05
"""The greatest |R_sys - model| that still counts as agreement, absolute."""


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
    doses: Sequence[DoseCounts], alpha: float = 0.05, margin: float = MARGIN, m: int = 2, n: int = 3
) -> DoseSeries:
    """Compare the measured R_sys with the model at the measured R_M, at each dose and overall.

    ``margin``: the greatest |R_sys - model| that still counts as agreement, absolute, in (0, 1).
    """
    check_alpha(alpha)
    if not 0.0 < margin < 1.0:
        raise EstimateError(f"margin is {margin:g}: it must lie between 0 and 1")
    if not doses:
        raise EstimateError("there are no doses to compare", error_code="TV0605")
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
    departure = departure_interval(dose, alpha / family, m, n)
    verdict = Fit.UNDECIDED
    if -margin <= departure.low and departure.high <= margin:
        verdict = Fit.AGREES
    elif departure.low > 0.0 or departure.high < 0.0:
        verdict = Fit.DEPARTS
    return DoseComparison(
        dose=dose.dose, rm=rm, rsys=rsys, model=predicted_rsys(rm, m, n), departure=departure,
        verdict=verdict,
    )  # fmt: skip


def departure_interval(dose: DoseCounts, alpha: float, m: int = 2, n: int = 3) -> Interval:
    """Return R_sys minus the model at the measured R_M, with its interval at 1 - ``alpha``."""
    return _difference(success(dose.voted, alpha), predicted_rsys(success(dose.nv, alpha), m, n))


def mean_departure(
    doses: Sequence[DoseCounts], alpha: float = 0.05, m: int = 2, n: int = 3
) -> Interval | None:
    """Return the mean of R_sys minus the model over the doses, with its interval at 1 - ``alpha``.

    The distances of the doses' ends are added as squares (MOVER), since their missions are
    independent.  None without a dose measured on both nodes.  Dependence lowers R_sys at high R_M
    and raises it at low R_M, which cancels here: this mean shows a voter that loses missions.
    """
    found = [departure_interval(each, alpha, m, n) for each in _on_both(doses)]
    if not found:
        return None
    value = math.fsum(each.value for each in found) / len(found)
    down = math.hypot(*(each.value - each.low for each in found)) / len(found)
    up = math.hypot(*(each.high - each.value for each in found)) / len(found)
    return Interval(value=value, low=value - down, high=value + up)


class JointTest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Likelihood-ratio test of the model at all doses at once.

    ``ratio``: chi-squared with ``freedom`` degrees of freedom, one a dose, if the model holds.
    """

    ratio: float
    freedom: int
    p_value: float


def joint_test(doses: Sequence[DoseCounts], m: int = 2, n: int = 3) -> JointTest | None:
    """Test at all doses at once that R_sys is the model's; None without a dose on both nodes."""
    from scipy.stats import chi2  # noqa: PLC0415 - slow to load

    used = _on_both(doses)
    if not used:
        return None
    ratio = math.fsum(
        model_ratio(
            (each.nv.trials - each.nv.failures, each.nv.trials),
            (each.voted.trials - each.voted.failures, each.voted.trials), m, n,
        )
        for each in used
    )  # fmt: skip
    return JointTest(ratio=ratio, freedom=len(used), p_value=float(chi2.sf(ratio, len(used))))


def model_ratio(
    plain: tuple[float, float], voted: tuple[float, float], m: int = 2, n: int = 3
) -> float:
    """Return twice the log-likelihood ratio at one dose: R_M and R_sys free, against the model.

    ``plain``, ``voted``: (missions that succeeded, missions); they may be fractions.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow to load

    def likelihood(arm: tuple[float, float], chance: float) -> float:
        won, lost = arm[0], arm[1] - arm[0]
        found = won * math.log(max(chance, 1e-300)) if won else 0.0
        return found + (lost * math.log(max(1.0 - chance, 1e-300)) if lost else 0.0)

    def against(rm: float) -> float:
        return -likelihood(plain, rm) - likelihood(voted, float(m_of_n(1.0, 1.0, rm, m, n)))

    free = likelihood(plain, plain[0] / plain[1]) + likelihood(voted, voted[0] / voted[1])
    best = minimize_scalar(against, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-9})
    return max(0.0, 2.0 * (free + float(best.fun)))


def _on_both(doses: Sequence[DoseCounts]) -> list[DoseCounts]:
    return [each for each in doses if each.nv.trials and each.voted.trials]


def predicted_rsys(rm: Interval, m: int, n: int) -> Interval:
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
