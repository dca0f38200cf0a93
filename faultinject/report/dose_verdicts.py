"""The verdicts on soft errors: dose by dose, and all doses together."""

from __future__ import annotations

from collections.abc import Sequence

from faultinject.estimate.crossing import Crossing
from faultinject.estimate.doses import MARGIN, DoseComparison, DoseSeries, Fit
from faultinject.estimate.power import POWER, REFERENCE
from faultinject.report.formatting import percent
from faultinject.results.findings import DoseFinding, PooledFinding, VerdictFinding

__all__ = ["crossing_sentence", "dose_verdict", "pooled_verdict"]

CERTAIN_DRAWS = 0.995
"""Proportion of posterior draws that must cross for the crossing to be stated without a caveat."""
POINTS = f"{MARGIN * 100:g} percentage points"


def pooled_verdict(found: PooledFinding) -> VerdictFinding:
    """State what all doses together show about the model, and what they would have shown.

    Good: the interval of the mean departure lies within the margin, and nothing departs.  Bad: the
    joint test, the mean departure or the correlation departs.
    """
    alpha = 1 - found.confidence
    rho = found.correlation.rho if found.correlation else None
    mean, power = found.departure, found.power
    departs = found.joint.p_value < alpha or not mean.contains(0.0)
    departs = departs or (rho is not None and not rho.contains(0.0))
    within = mean.low >= -MARGIN and mean.high <= MARGIN
    tone = "bad" if departs else "good" if within else "open"
    answer = {
        "bad": f"All doses of {found.kind} together depart from the paper's formula.",
        "good": f"Over all doses of {found.kind}, the mean R_sys is within {POINTS} of the paper's "
        "formula.",
        "open": f"Undecided over all doses of {found.kind}: the interval is wider than {POINTS}.",
    }[tone]
    detail = [
        f"Mean of R_sys minus the formula: {mean.value:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"
        f"{_detects(power.departure)}.",
        f"Joint likelihood-ratio test of the {found.doses} doses: chi-squared "
        f"{found.joint.ratio:.1f}, {found.joint.freedom} degrees of freedom, p = "
        f"{found.joint.p_value:.2g}{_detects(power.joint_correlation, 'a correlation')}.",
    ]
    if rho is not None:
        detail.append(
            f"Intraclass correlation of the guests' failures, from the {len(found.counted)} doses "
            f"with enough missions by number of failed guests: {rho.value:+.3f} ({rho.low:+.3f} to "
            f"{rho.high:+.3f}){_detects(power.correlation)}."
        )
    detail.append(
        "Faults were drawn separately for each guest: this tests whether their consequences are "
        "coupled, not whether faults occur independently."
    )
    return VerdictFinding(
        about="doses", tone=tone, answer=answer, detail=" ".join(detail), tests="model"  # type: ignore[arg-type]
    )  # fmt: skip


def _detects(least: float | None, what: str = "one") -> str:
    if least is None:
        return "; it would detect none that is possible"
    return f"; it detects {what} of {least:.2g} with {POWER:.0%} probability"


def dose_verdict(kind: str, series: DoseSeries, doses: Sequence[DoseFinding]) -> VerdictFinding:
    """State at which doses R_sys agrees with the formula, and which doses could have differed."""
    departing = [each for each in series.doses if each.verdict is Fit.DEPARTS]
    undecided = [each for each in series.doses if each.verdict is Fit.UNDECIDED]
    count, decided = len(series.doses), len(series.doses) - len(undecided)
    tone, answer = {
        Fit.AGREES: ("good", f"The paper's formula agrees with the measurement ({kind}) to within "
                     f"{POINTS} at every dose."),
        Fit.DEPARTS: ("bad", f"The paper's formula disagrees with the measurement ({kind}) at "
                      f"{len(departing)} of {count} doses."),
        Fit.UNDECIDED: ("open", "Undecided dose by dose: does the paper's formula agree with the "
                        f"measurement ({kind})?"),
    }[series.verdict]  # fmt: skip
    detail = [_departure(each) for each in departing]
    if not departing and decided:
        detail.append(
            f"At {decided} of {count} doses the measured R_sys is within {POINTS} of the formula's "
            "value at the measured R_M."
        )
    detail += _discrimination(doses)
    if undecided:
        flips = ", ".join(f"{each.dose:,.0f}" for each in undecided)
        detail.append(f"Undecided at {flips} flips: the intervals are wider than the margin.")
    if series.crossing:
        detail.append(crossing_sentence(series.crossing))
    if not series.spans_crossing:
        detail.append(
            "The measured R_M does not span .5 to .9, so there is little information on missions "
            "with two failed guests."
        )
    return VerdictFinding(
        about="doses", tone=tone, answer=answer, detail=" ".join(detail), tests="model"  # type: ignore[arg-type]
    )  # fmt: skip


def _discrimination(doses: Sequence[DoseFinding]) -> list[str]:
    """Say which doses can tell a shared condition from independence at all."""
    known = [each for each in doses if each.power is not None]
    able = [f"{each.flips:,}" for each in known if each.power and each.power.discriminates]
    if not known or len(able) == len(known):
        return []
    which = f"Only {_and(able)} flips discriminate" if able else "No dose discriminates"
    found = [
        f"{which}: only there could a condition shared by all guests move R_sys by more than "
        f"{POINTS} and be detected with {POWER:.0%} probability."
        if able
        else f"{which}: no condition shared by all guests could both move R_sys by more than "
        f"{POINTS} and be detected with {POWER:.0%} probability."
    ]
    empty = [
        f"{each.flips:,}" for each in known
        if each.verdict is Fit.AGREES and each.power and not each.power.discriminates
    ]  # fmt: skip
    if empty:
        found.append(f"Agreement at {_and(empty)} flips is therefore no evidence.")
    tests = [each.test_power for each in known if each.test_power is not None]
    if tests:
        found.append(
            f"The G-test of one dose detects an intraclass correlation of {REFERENCE:g} with "
            f"{' to '.join(dict.fromkeys(map(percent, (min(tests), max(tests)))))} probability."
        )
    return found


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _departure(dose: DoseComparison) -> str:
    side = "higher" if dose.departure.value > 0 else "lower"
    rm, rsys = dose.rm, dose.rsys
    return (
        f"Dose {dose.dose:g}: R_M {rm.value:.3g} ({rm.low:.3g} to {rm.high:.3g}), R_sys "
        f"{rsys.value:.3g} ({rsys.low:.3g} to {rsys.high:.3g}), {side} than the model's "
        f"{dose.model.value:.3g}."
    )


def crossing_sentence(crossing: Crossing) -> str:
    """State the R_M at which both nodes are equally reliable, with its interval."""
    rm = crossing.rm
    caveat = ""
    if crossing.share <= CERTAIN_DRAWS:
        caveat = f" The curves cross in {crossing.share:.0%} of posterior draws."
    return (
        f"The voted and the plain node are equally reliable at R_M = {rm.value:.3f} "
        f"({rm.low:.3f} to {rm.high:.3f}).{caveat}"
    )
