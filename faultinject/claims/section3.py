"""The claims of the paper's section 3, which it makes without measurements."""

from __future__ import annotations

from collections.abc import Sequence

from faultinject.claims.evidence import Claim, Evidence, Results
from faultinject.results.experiment import ArmResult, Fitness

__all__ = ["SECTION3"]

_SIDES: dict[Fitness, bool | None] = {"agrees": True, "departs": False, "undecided": None}


def _list_arms(arms: Sequence[ArmResult]) -> str:
    return "; ".join(
        f"{arm.label}: {arm.event} in {arm.observed.count:,} of {arm.observed.of:,}"
        + (f" (predicted {arm.predicted:.3g})" if arm.predicted is not None else "")
        for arm in arms
    )


def _evaluate(results: Results, name: str) -> Evidence:
    """Compare all arms of an experiment with what they predict."""
    found = results.experiments[name]
    tested = [arm for arm in found.arms if arm.fitness != "measured"]
    sides = tuple(_SIDES[arm.fitness] for arm in tested)
    text = f"{found.about} {sides.count(True)} of {len(tested)} predictions agree"
    text += f" within their margins, {sides.count(False)} depart"
    if found.joint_p is not None:
        text += f" (all together: p = {found.joint_p:.2g})"
    text += f". {_list_arms(found.arms)}"
    if found.partial:
        text += f" (after {found.done:,} of {found.planned:,} trials)"
    if "exec" in found.accel:
        text += " (the agents were processes of the host, not virtual machines)"
    return Evidence(text=text, sides=sides, basis=("measured", "computed"), planted=True)


def _claim(where: str, text: str, name: str) -> Claim:
    return Claim(
        where=where,
        text=text,
        command=f"trivisor experiment run {name}",
        needs=name,
        evidence=lambda results: _evaluate(results, name),
    )


SECTION3 = (
    _claim(
        "Proactive rejuvenation",
        "Periodic rejuvenation recovers from errors without failure detection, while the service "
        "stays available.",
        "scrubbing",
    ),
    _claim(
        "Patch application",
        "A copy in quarantine shows the undesirable side effects of a patch before it replaces the "
        "original, without downtime.",
        "patching",
    ),
    _claim(
        "Fail-safe behaviour",
        "A monitor outside the VM, built from an attack's signature or symptoms, makes the service "
        "fail-safe until there is a patch.",
        "monitor",
    ),
    _claim(
        "Logging and replay",
        "Replay with predicates shows whether a vulnerability was exploited before the patch.",
        "replay",
    ),
)
