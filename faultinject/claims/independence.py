"""What section 4 assumes of the VMs' failures: that they are independent, or else worse."""

from __future__ import annotations

from faultinject import model
from faultinject.claims.claim import ClaimAnswer, Results, Says
from faultinject.claims.sides import share_words

__all__ = ["independent", "shared_causes", "upper_bounds"]


def independent(results: Results) -> ClaimAnswer:
    """Bit flips, of which nobody forced one to do harm."""
    doses = [dose for dose in results["softerrors"].doses if not dose.shared]
    by = {
        name: sum(d.verdict == name for d in doses) for name in ("agrees", "departs", "undecided")
    }
    words = ", ".join(f"{name} {count}" for name, count in by.items() if count)
    asked = [dose.fell_p for dose in doses if dose.fell_p is not None]
    seen = sum(p < (1 - results["softerrors"].confidence) / len(asked) for p in asked)
    says: Says = (
        "does not hold" if by["departs"] or seen
        else "holds" if by["agrees"] == len(doses) and doses else "undecided"
    )  # fmt: skip
    falls = (
        f"; of how many guests fell in a mission a departure from independence is seen at "
        f"{seen} of {len(asked)} doses (G-test, Bonferroni)"
        if asked else ""
    )  # fmt: skip
    return ClaimAnswer(
        measured=f"bit flips at {len(doses)} doses, R_M and R_sys measured apart: {words}{falls}",
        says=says,
    )


def shared_causes(results: Results) -> ClaimAnswer:
    """What one cause for all does to guests of one build."""
    shots = results["commoncause"].shots
    asked = [shot for shot in shots if shot.fell_p is not None]
    together = [shot for shot in shots if shot.together]
    words = "; ".join(
        f"{shot.kind}: all fell in {share_words(shot.fell[-1])} missions, not "
        f"{shot.independent[-1] * shot.fell[-1].of:.2g} (p = {shot.fell_p:.1g})"
        for shot in asked
    )
    certain = ", ".join(s.kind for s in shots if s.fell_p is None and s.fell[-1].point == 1.0)
    after = f"; all fell every time under {certain}" if certain else ""
    return ClaimAnswer(
        measured=f"{words}{after}",
        says="holds" if together or certain else "undecided",
    )


def upper_bounds(_: Results) -> ClaimAnswer:
    """Two causes for all, each R_M as before, beside independent guests."""
    two = {rm: float(model.two_of_three(1.0, 1.0, rm)) for rm in (0.3, 0.6, 0.9)}
    drawn = float(model.shared_draw(0.3, 0.2, 2, 3))
    felled = {rm: float(model.beta_factor(rm, 0.5, 2, 3)) for rm in (0.6, 0.9)}
    wrong = drawn > two[0.3] or felled[0.6] > two[0.6]
    return ClaimAnswer(
        measured="computed, not so for poor guests: at R_M = .6 a cause that fells all, half of "
        f"each guest's failures, raises 2-of-3 from {two[0.6]:.3f} to {felled[0.6]:.3f}; at R_M = "
        f".3 one fate for all in a fifth of missions from {two[0.3]:.3f} to {drawn:.3f}. From R_M "
        f"= .75 on it is so for any mixture of independent guests (at .9: {two[0.9]:.3f}, with "
        f"such a cause {felled[0.9]:.3f})",
        says="does not hold" if wrong else "is a formula",
    )
