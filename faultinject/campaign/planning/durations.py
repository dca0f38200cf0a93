"""How long missions take: learned from missions that ran, used to estimate plans.  Pure.

All times are seconds of one worker.  A single fault is known by its kind.  Several faults do not
add up, because most of their time is waiting for the same deadline; and the time of bit flips
depends on their number.  So such missions are known by their stratum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from faultinject.campaign.records import MissionPlan

__all__ = ["MissionShape", "MissionDurations", "learn"]


class MissionShape(msgspec.Struct, frozen=True, kw_only=True):
    """A mission that ran.

    ``kinds``: one for each target hit.  ``forced``: it is of a stratum, not of a dose or
    a common cause.
    """

    stratum: str
    kinds: tuple[str, ...]
    forced: bool
    seconds: float


class MissionDurations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mean seconds of missions.

    ``clean``: without a fault; None if there was none.  ``kinds``: with one fault, by its kind.
    ``strata``: by stratum, dose or common cause.  ``missions``: how many these means are from.
    """

    clean: float | None = None
    kinds: dict[str, float] = {}
    strata: dict[str, float] = {}
    missions: int = 0

    def mission(self, plan: MissionPlan) -> float:
        """Return the seconds that a mission is expected to take.

        In an unknown stratum that is the time of its longest fault; for unknown kinds, the mean of
        the known kinds.
        """
        if plan.stratum in self.strata:
            return self.strata[plan.stratum]
        kinds = {hit.kind for hit in plan.injections}
        times = [self.kinds[kind] for kind in kinds if kind in self.kinds]
        if times:
            return max(times)
        if self.kinds and (kinds or self.clean is None):
            return _mean(self.kinds.values())
        return self.clean or 0.0

    def updated(self, newer: MissionDurations) -> MissionDurations:
        """Return these durations, replaced by those of ``newer`` where it has any."""
        return MissionDurations(
            clean=self.clean if newer.clean is None else newer.clean,
            kinds=self.kinds | newer.kinds,
            strata=self.strata | newer.strata,
            missions=newer.missions,
        )


def _mean(times: Iterable[float]) -> float:
    known = list(times)
    return sum(known) / len(known) if known else 0.0


def _means(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: _mean(each) for name, each in sorted(times.items())}


def learn(missions: Iterable[MissionShape]) -> MissionDurations | None:
    """Return the durations of missions that ran; None without one."""
    clean: list[float] = []
    kinds: dict[str, list[float]] = {}
    strata: dict[str, list[float]] = {}
    count = 0
    for each in missions:
        count += 1
        strata.setdefault(each.stratum, []).append(each.seconds)
        if not each.kinds:
            clean.append(each.seconds)
        elif each.forced and len(each.kinds) == 1:
            kinds.setdefault(each.kinds[0], []).append(each.seconds)
    if not count:
        return None
    return MissionDurations(
        clean=_mean(clean) if clean else None, kinds=_means(kinds), strata=_means(strata),
        missions=count,
    )  # fmt: skip
