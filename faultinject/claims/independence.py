"""Evidence from soft errors: the formula of 2-of-3, and whether failures depend on each other."""

from __future__ import annotations

from faultinject.claims.evidence import NEAR, Evidence, Results, near
from faultinject.estimate.doses import Fit
from faultinject.estimate.power import POWER, REFERENCE

__all__ = ["consequences_coupled", "formula_holds"]


def formula_holds(results: Results) -> Evidence:
    """Compare R_sys with the formula at the measured R_M, and over all doses.

    A dose that does not discriminate supports nothing, whatever it shows.
    """
    found = results["softerrors"]
    doses = [dose for dose in found.doses if not dose.shared]
    side = {Fit.AGREES: True, Fit.DEPARTS: False, Fit.UNDECIDED: None}
    able = [dose for dose in doses if dose.power and dose.power.discriminates]
    sides = [
        side[dose.verdict] if dose in able or dose.verdict is Fit.DEPARTS else None
        for dose in doses
    ]
    counts = ", ".join(
        f"{fit} {count}" for fit in Fit if (count := sum(dose.verdict is fit for dose in able))
    )
    text = (
        f"bit flips at {len(doses)} doses, drawn separately for each guest; R_M and R_sys measured "
        f"in separate missions. Dose by dose (margin {NEAR:g}): {len(able)} can discriminate"
        f"{f' ({counts})' if counts else ''}"
    )
    for pooled in found.pooled:
        mean = pooled.departure
        rejected = pooled.joint.p_value < 1 - pooled.confidence or not mean.contains(0.0)
        sides.append(False if rejected else near(mean, 0.0))
        text += (
            f". All doses: R_sys departs from the formula by {mean.value:.3f} [{mean.low:.3f}, "
            f"{mean.high:.3f}] on average; joint likelihood-ratio test: chi-squared "
            f"{pooled.joint.ratio:.1f}, {pooled.joint.freedom} degrees of freedom, p = "
            f"{pooled.joint.p_value:.2g}"
        )
        if pooled.power.departure is not None:
            least = pooled.power.departure
            text += f". A mean departure of {least:.2g} is detected with {POWER:.0%} probability"
    return Evidence(text=text, sides=tuple(sides), basis=("measured",))


def consequences_coupled(results: Results) -> Evidence:
    """Test whether the consequences of separate faults depend on each other.

    That they do not would not make the causes independent: there is no supporting side.
    """
    found = results["softerrors"]
    doses = [dose for dose in found.doses if not dose.shared]
    tested = [dose.failed_guests for dose in doses if dose.failed_guests]
    ps = [each.p_value for each in tested if each.p_value is not None]
    rejected = sum(p < (1 - found.campaign.confidence) / len(ps) for p in ps)
    text = "by construction the faults of each guest are drawn separately; tested is whether their "
    text += "consequences are coupled"
    for pooled in found.pooled:
        if pooled.correlation is None:
            continue
        rho = pooled.correlation.rho
        rejected += not rho.contains(0.0)
        text += (
            f". Intraclass correlation of failed guests over {len(pooled.counted)} doses: "
            f"{rho.value:.3f} [{rho.low:.3f}, {rho.high:.3f}]"
        )
        if pooled.power.correlation is not None:
            text += f"; {pooled.power.correlation:.2g} is detected with {POWER:.0%} probability"
    if ps:
        text += (
            f". The number of failed guests departs from independence at {rejected} of {len(ps)} "
            "doses (G-test, Bonferroni)"
        )
    powers = [dose.test_power for dose in doses if dose.test_power is not None]
    if powers:
        text += (
            f"; one such test detects a correlation of {REFERENCE:g} with {min(powers):.0%} to "
            f"{max(powers):.0%} probability"
        )
    return Evidence(
        text=f"{text}. Whether causes are independent in nature was not tested",
        sides=(False if rejected else None,),
        basis=("measured", "by construction"),
    )
