"""The smallest departures from the paper's model that a campaign detects with 80 % probability.

Of a plan, before it is run, and of a campaign, from the trials that it has.  Pure; needs scipy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from faultinject.campaign.planning.plan import CampaignPlan, Cell
from voter.core.vote import Policy

__all__ = ["Detectable", "detectable", "share_of"]

RMS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""R_M at which a plan's doses are examined; what R_M a dose causes is known only after the run."""
FAILING = (0.1, 0.3, 0.5, 0.7)
"""The same for common causes: a guest's probability of failure under the cause."""


class Detectable(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest departure ``least`` of ``quantity`` that is detected with 80 % probability.

    None: no departure that is possible is detected.  ``where``: the operating point, "" for all.
    ``of``: the value in the paper's model, where the departure is of a value above 0.  ``pooled``:
    from several cells together.
    """

    subject: str
    quantity: str
    where: str = ""
    least: float | None
    of: float | None = None
    pooled: bool = False


def share_of(cell: Cell, trials: int | None = None) -> float | None:
    """Return the smallest proportion of missions against the paper's 0 or 1 that shows once.

    None for a dose or common cause, about whose missions the paper assumes nothing.
    """
    from faultinject.estimate.power import detectable_share  # noqa: PLC0415 - scipy is slow

    return detectable_share(cell.missions if trials is None else trials) if cell.forced else None


def detectable(
    plan: CampaignPlan,
    trials: Mapping[str, int] | None = None,
    rms: Mapping[tuple[str, int], float] | None = None,
) -> tuple[Detectable, ...]:
    """Return what the campaign detects: U and R_sys of strata, doses, common causes.

    ``trials``: by cell, of a campaign that ran; None: as planned.  ``rms``: the measured R_M by
    kind and flips of a dose; None: R_M is not known yet.
    """
    sizes = {cell.name: cell.missions for cell in plan.cells} if trials is None else trials
    return (
        *_strata(plan, sizes),
        *_doses(plan, sizes, rms),
        *_common_causes(plan, sizes),
    )


def _strata(plan: CampaignPlan, sizes: Mapping[str, int]) -> Iterator[Detectable]:
    """Yield the change of U that no single stratum can hide, by policy and setting of repair."""
    from faultinject.estimate.equivalence import paper_failure  # noqa: PLC0415 - scipy is slow
    from faultinject.estimate.power import hidden_departure  # noqa: PLC0415
    from faultinject.estimate.strata import weights  # noqa: PLC0415

    groups: dict[tuple[str, bool], dict[int, int]] = {}
    for cell in plan.cells:
        if cell.forced and cell.design == "voted" and not cell.host_target_hit:
            by_k = groups.setdefault((cell.vote or plan.spec.station.vote, cell.repair), {})
            count = by_k.get(cell.failing_guests, 0)
            by_k[cell.failing_guests] = count + sizes.get(cell.name, 0)
    low, _ = plan.spec.margins.q
    for (vote, repair), by_k in groups.items():
        policy = Policy.parse(vote)
        missions = [by_k.get(k, 0) for k in range(policy.of + 1)]
        if not all(missions):
            continue
        for q in sorted({low, 0.1, 0.25}):
            least, k = hidden_departure(weights(q, policy.of), missions)
            yield Detectable(
                subject=f"{vote}{', repair on' if repair else ''}", quantity="U",
                where=f"q = {q:g} (if f_{k} departs)", least=least,
                of=paper_failure(q, policy.need, policy.of), pooled=True,
            )  # fmt: skip


def _doses(
    plan: CampaignPlan, sizes: Mapping[str, int], rms: Mapping[tuple[str, int], float] | None
) -> Iterator[Detectable]:
    from faultinject.estimate.doses import MARGIN  # noqa: PLC0415 - scipy is slow
    from faultinject.estimate.power import (  # noqa: PLC0415
        comparable,
        detectable_correlation,
        dose_power,
        pooled_power,
    )

    policy, alpha = Policy.parse(plan.spec.station.vote), plan.spec.alpha_per_analysis
    m, n = policy.need, policy.of
    kinds: dict[str, dict[int, dict[str, int]]] = {}
    for cell in plan.cells:
        if cell.kind and not cell.common_cause:
            arms = kinds.setdefault(cell.kind, {}).setdefault(cell.dose, {"nv": 0, "voted": 0})
            arms[cell.design] += sizes.get(cell.name, 0)
    for kind, doses in kinds.items():
        both = {flips: arms for flips, arms in doses.items() if all(arms.values())}
        if not both:
            continue
        spread = [1 - (i + 0.5) / len(both) for i in range(len(both))]
        known = spread if rms is None else [rms[kind, flips] for flips in sorted(both)]
        examined = _unknown(both.values()) if rms is None else [
            (f"{flips:,} flips, R_M = {rms[kind, flips]:.3f}", rms[kind, flips], both[flips])
            for flips in sorted(both)
        ]  # fmt: skip
        tests = sum(
            comparable(1 - rm, both[flips]["voted"], n, n - m + 2)
            for rm, flips in zip(known, sorted(both), strict=True)
        )
        for where, rm, arms in examined:
            power = dose_power(rm, arms["nv"], arms["voted"], alpha / len(both), MARGIN, m, n)
            for least, side in ((power.below, "below"), (power.above, "above")):
                yield Detectable(
                    subject=kind, quantity=f"R_sys {side} the model", where=where, least=least
                )
            yield Detectable(
                subject=kind, quantity="intraclass correlation (G-test)", where=where,
                least=detectable_correlation(
                    1 - rm, arms["voted"], alpha / max(1, tests), n - m + 2, n
                ),
            )  # fmt: skip
        every = [
            (rm, arms["nv"], arms["voted"])
            for rm, (_, arms) in zip(known, sorted(both.items()), strict=True)
        ]
        found = pooled_power(every, alpha, m, n)
        where = "all doses" if rms is not None else "all doses, if they spread R_M evenly"
        for quantity, least in (
            ("mean departure of R_sys from the model", found.departure),
            ("intraclass correlation (number of failed guests)", found.correlation),
            ("intraclass correlation (joint test of R_sys)", found.joint_correlation),
        ):
            yield Detectable(subject=kind, quantity=quantity, where=where, least=least, pooled=True)


def _unknown(doses: Iterable[dict[str, int]]) -> list[tuple[str, float, dict[str, int]]]:
    """Return each R_M of RMS with each combination of missions that some dose has."""
    sizes = sorted({(arms["nv"], arms["voted"]) for arms in doses})
    return [
        (
            f"R_M = {rm:g}" + (f" ({nv:,} + {voted:,} missions)" if len(sizes) > 1 else ""),
            rm,
            {"nv": nv, "voted": voted},
        )
        for nv, voted in sizes
        for rm in RMS
    ]


def _common_causes(plan: CampaignPlan, sizes: Mapping[str, int]) -> Iterator[Detectable]:
    from faultinject.estimate.power import detectable_correlation  # noqa: PLC0415 - scipy is slow

    causes = [cell for cell in plan.cells if cell.common_cause and cell.design == "voted"]
    for cell in causes:
        policy = Policy.parse(cell.vote or plan.spec.station.vote)
        for q in FAILING:
            yield Detectable(
                subject=cell.name, quantity="intraclass correlation (G-test)",
                where=f"each guest fails in {q:.0%} of trials",
                least=detectable_correlation(
                    q, sizes.get(cell.name, 0), plan.spec.alpha_per_analysis / len(causes),
                    policy.of - policy.need + 2, policy.of,
                ),
            )  # fmt: skip
