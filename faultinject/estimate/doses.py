"""Soft errors: is the paper's model true of faults that nobody forced to fail?

At each dose (bit flips a guest a mission) R_M is measured on the plain node and R_sys on the
voted one, in missions of their own.  The model says ``R_sys = R_V sum_{j>=m} C(n,j) R_M^j
(1-R_M)^(n-j)``, for 2-of-3 ``3 R_M^2 - 2 R_M^3``.  Departures have suspects: a workload that all
replicas share (Eckhardt and Lee), failures that make up for each other (Siewiorek), load on the
host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from faultinject.estimate.counts import Counts, EstimateError
from faultinject.estimate.crossing import Crossing, find_crossing
from faultinject.estimate.intervals import Interval, check_alpha, success
from faultinject.estimate.strata import check_probability
from faultinject.model.reliability import m_of_n

__all__ = ["DoseCounts", "DoseVerdict", "DosesVerdict", "Fit", "compare_doses"]


MOST = 2_000_000
"""Missions more an arm at which one stops asking."""


class Fit(StrEnum):
    """Whether the voted node is where the model puts it, within the margin."""

    AGREES = "agrees"
    DEPARTS = "departs"
    UNDECIDED = "undecided"


class DoseCounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Missions at one dose: ``nv`` on the plain node, ``voted`` on the voted one."""

    dose: float
    nv: Counts
    voted: Counts


class DoseVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One dose judged.

    ``rm``, ``rsys``: measured, each with its own interval at 1 - alpha, as a plot shows them.
    ``model``: R_sys by the model from ``rm`` and its interval.  ``departure``: R_sys less the
    model, by which it is judged: errors of both added as squares (MOVER), Bonferroni over the
    doses. ``sharp``: the same for this dose alone. ``missions``: how many more in each arm, if
    they go as those so far, until it is decided; 0 when it is, None if it is not then either.
    """

    dose: float
    rm: Interval
    rsys: Interval
    model: Interval
    departure: Interval
    sharp: Interval
    verdict: Fit
    missions: int | None
    words: str


class DosesVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """All doses together.

    ``verdict``: departs if any dose does, agrees if all do.  ``mean``: the mean departure, judged
    by the same margin in ``mean_verdict``: it sees a lean to one side long before a single dose
    does, and is blind to departures that cancel.  ``crossing``: the R_M at which voted and plain
    are equally good, None where the doses do not cross.  ``reaches_f2``: whether some R_M is .5
    or less and some .9 or more, so that two failing guests happen and the crossing is bracketed.
    """

    doses: tuple[DoseVerdict, ...]
    verdict: Fit
    mean: Interval
    mean_verdict: Fit
    crossing: Crossing | None
    reaches_f2: bool
    words: str


def compare_doses(
    doses: Sequence[DoseCounts],
    alpha: float = 0.05,
    margin: float = 0.05,
    m: int = 2,
    n: int = 3,
    rv: float = 1.0,
) -> DosesVerdict:
    """Hold measured R_sys against the model at the measured R_M, at each dose and over all.

    ``margin``: the greatest |R_sys - model| still called agreement, absolute, in (0, 1).  ``rv``:
    the voter's reliability in these missions, 1 where nothing strikes it.
    """
    check_alpha(alpha)
    check_probability("R_V", rv)
    if not 0.0 < margin < 1.0:
        raise EstimateError(f"margin is {margin:g}: it must lie between 0 and 1")
    if not doses:
        raise EstimateError("there are no doses to judge")
    ranked = sorted(doses, key=lambda each: each.dose)
    setting = _Setting(alpha=alpha, family=len(ranked), margin=margin, m=m, n=n, rv=rv)
    judged = tuple(_judge(each, setting) for each in ranked)
    fits = {each.verdict for each in judged}
    verdict = Fit.UNDECIDED
    if Fit.DEPARTS in fits:
        verdict = Fit.DEPARTS
    elif fits == {Fit.AGREES}:
        verdict = Fit.AGREES
    mean = _mean(judged, alpha)
    values = [each.rm.value for each in judged if not math.isnan(each.rm.value)]
    reaches = bool(values) and min(values) <= 0.5 and max(values) >= 0.9
    return DosesVerdict(
        doses=judged,
        verdict=verdict,
        mean=mean,
        mean_verdict=setting.fit(mean),
        crossing=find_crossing(
            [each.nv for each in ranked], [each.voted for each in ranked], alpha
        ),
        reaches_f2=reaches,
        words=_summary(judged, verdict, mean, reaches),
    )


class _Setting(msgspec.Struct, frozen=True, kw_only=True):
    alpha: float
    family: int
    margin: float
    m: int
    n: int
    rv: float

    def model(self, rm: float) -> float:
        return float(m_of_n(1.0, self.rv, min(1.0, max(0.0, rm)), self.m, self.n))

    def curve(self, rm: Interval) -> Interval:
        """The model over an interval of R_M: it rises with R_M."""
        return Interval(
            value=math.nan if math.isnan(rm.value) else self.model(rm.value),
            low=self.model(rm.low),
            high=self.model(rm.high),
            level=rm.level,
            method="the model at the ends of R_M's interval",
        )

    def departure(self, dose: DoseCounts, family: int) -> Interval:
        """R_sys less the model at one of ``family`` doses that are judged together."""
        share = self.alpha / family
        rsys, model = success(dose.voted, share), self.curve(success(dose.nv, share))
        return _mover(rsys, model, self.alpha, family)

    def fit(self, departure: Interval) -> Fit:
        if -self.margin <= departure.low and departure.high <= self.margin:
            return Fit.AGREES
        if departure.low > 0.0 or departure.high < 0.0:
            return Fit.DEPARTS
        return Fit.UNDECIDED


def _judge(dose: DoseCounts, setting: _Setting) -> DoseVerdict:
    rm, rsys = success(dose.nv, setting.alpha), success(dose.voted, setting.alpha)
    model = setting.curve(rm)
    departure = setting.departure(dose, setting.family)
    verdict = setting.fit(departure)
    missions = _missions(dose, setting) if verdict is Fit.UNDECIDED else 0
    return DoseVerdict(
        dose=dose.dose,
        rm=rm,
        rsys=rsys,
        model=model,
        departure=departure,
        sharp=setting.departure(dose, 1),
        verdict=verdict,
        missions=missions,
        words=_words(dose, rm, rsys, model, departure, verdict),
    )


def _mover(rsys: Interval, model: Interval, alpha: float, family: int) -> Interval:
    """R_sys less the model, their errors added as squares (Zou and Donner's MOVER).

    Of two Clopper-Pearson intervals; by simulation it never covered less than it says.
    """
    value = rsys.value - model.value
    if math.isnan(value):
        low, high = -1.0, 1.0
    else:
        low = value - math.hypot(rsys.value - rsys.low, model.high - model.value)
        high = value + math.hypot(rsys.high - rsys.value, model.value - model.low)
    scope = f"Bonferroni over {family} doses" if family > 1 else "pointwise"
    return Interval(
        value=value,
        low=low,
        high=high,
        level=1.0 - alpha,
        method=f"MOVER of two Clopper-Pearson intervals, {scope}",
    )


def _mean(judged: Sequence[DoseVerdict], alpha: float) -> Interval:
    """Plain mean of the departures, each dose's pointwise errors added as squares."""
    parts = [each.sharp for each in judged if not math.isnan(each.sharp.value)]
    if not parts:
        return Interval(value=math.nan, low=-1.0, high=1.0, level=1.0 - alpha, method="no data")
    value = math.fsum(each.value for each in parts) / len(parts)
    below = math.sqrt(math.fsum((each.value - each.low) ** 2 for each in parts)) / len(parts)
    above = math.sqrt(math.fsum((each.high - each.value) ** 2 for each in parts)) / len(parts)
    return Interval(
        value=value,
        low=value - below,
        high=value + above,
        level=1.0 - alpha,
        method="mean over the doses, MOVER of Clopper-Pearson intervals",
    )


def _words(
    dose: DoseCounts,
    rm: Interval,
    rsys: Interval,
    model: Interval,
    departure: Interval,
    verdict: Fit,
) -> str:
    side = "better" if departure.value > 0 else "worse"
    tail = {
        Fit.AGREES: "within the margin",
        Fit.DEPARTS: f"{side} than the model allows",
        Fit.UNDECIDED: "too wide to say",
    }[verdict]
    return (
        f"dose {dose.dose:g}: R_M {rm.value:.3g} ({rm.low:.3g} to {rm.high:.3g}), R_sys "
        f"{rsys.value:.3g} ({rsys.low:.3g} to {rsys.high:.3g}), the model {model.value:.3g}: "
        f"{verdict}, {tail}"
    )


def _missions(dose: DoseCounts, setting: _Setting) -> int | None:
    """More missions in each arm at the rates seen so far until it is decided; None: never."""
    if not dose.nv.trials or not dose.voted.trials:
        return None

    def decides(more: int) -> bool:
        grown = DoseCounts(
            dose=dose.dose, nv=_scaled(dose.nv, more), voted=_scaled(dose.voted, more)
        )
        return setting.fit(setting.departure(grown, setting.family)) is not Fit.UNDECIDED

    low, high = 0, 50
    while not decides(high):
        low, high = high, high * 2
        if high > MOST:
            return None
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _scaled(counts: Counts, more: int) -> Counts:
    trials = counts.trials + more
    return Counts(trials=trials, failures=round(counts.rate * trials))


def _summary(judged: Sequence[DoseVerdict], verdict: Fit, mean: Interval, reaches: bool) -> str:
    by = {fit: sum(each.verdict is fit for each in judged) for fit in Fit}
    said = ", ".join(f"{count} {fit}" for fit, count in by.items() if count)
    words = (
        f"{verdict}: of {len(judged)} doses {said}; R_sys less the model is "
        f"{mean.value:+.3g} on the mean ({mean.low:+.3g} to {mean.high:+.3g})"
    )
    if not reaches:
        words += "; R_M does not span .5 to .9, so the data say little about two guests failing"
    return words
