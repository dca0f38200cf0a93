"""How long missions take: learned from missions that were run, used for those that were not. Pure.

Seconds of one worker.  What one fault takes is known by its kind.  Several faults do not add up
(most of what they take is waiting for one and the same deadline), and what bit flips take depends
on their number, so such missions are known by their stratum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from faultinject.campaign.records import MissionPlan

__all__ = ["MissionShape", "Rates", "learn"]


class MissionShape(msgspec.Struct, frozen=True, kw_only=True):
    """One that was run: the kinds of its faults, one for each target struck; ``forced``: it is of
    a stratum, not a dose or a shot.
    """

    stratum: str
    kinds: tuple[str, ...]
    forced: bool
    seconds: float


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``clean``: seconds of a mission without a fault, None where none was seen; ``kinds``: of one
    with one fault of this kind; ``strata``: of those of a stratum, dose or shot; ``missions``: from
    how many this was learned.
    """

    clean: float | None = None
    kinds: dict[str, float] = {}
    strata: dict[str, float] = {}
    missions: int = 0

    def mission(self, plan: MissionPlan) -> float:
        """Return the seconds that a mission will take.

        One of a stratum never seen is taken to last as long as the longest of its faults would; a
        kind never seen, the mean of those that were.
        """
        if plan.stratum in self.strata:
            return self.strata[plan.stratum]
        kinds = {hit.kind for hit in plan.hits}
        times = [self.kinds[kind] for kind in kinds if kind in self.kinds]
        if times:
            return max(times)
        if self.kinds and (kinds or self.clean is None):
            return _mean(self.kinds.values())
        return self.clean or 0.0

    def updated(self, newer: Rates) -> Rates:
        """Return these with what ``newer`` knows in their place: no run forgets what others saw."""
        return Rates(
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


def learn(missions: Iterable[MissionShape]) -> Rates | None:
    """Learn from missions; None without one."""
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
    return Rates(
        clean=_mean(clean) if clean else None, kinds=_means(kinds), strata=_means(strata),
        missions=count,
    )  # fmt: skip
