"""How long missions take: learned from missions that were run, used for those that were not. Pure.

Seconds of one worker: a clean mission's, and for each kind of fault what a mission hit by it took
more.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from faultinject.campaign.trial import MissionPlan

__all__ = ["Rates", "learn"]


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``clean``: seconds of a mission without a fault; ``kinds``: what one of each kind adds;
    ``missions``: from how many this was learned.
    """

    clean: float
    kinds: dict[str, float] = {}
    missions: int = 0

    def mission(self, plan: MissionPlan) -> float:
        """Return the seconds that a mission will take.

        A kind that was never seen is taken for the mean of those that were.
        """
        other = sum(self.kinds.values()) / len(self.kinds) if self.kinds else 0.0
        struck = {(hit.target, hit.kind) for hit in plan.hits}
        return self.clean + sum(self.kinds.get(kind, other) for _, kind in struck)


def learn(rows: Iterable[tuple[tuple[str, ...], float]]) -> Rates | None:
    """Learn from (kinds of its faults, seconds) of missions; None without a mission.

    A kind's share is estimated from missions that were hit by it alone where there are any, else
    from those where it came with others, each of them taken to have added as much.
    """
    clean: list[float] = []
    alone: dict[str, list[float]] = {}
    shared: dict[str, list[float]] = {}
    count, total = 0, 0.0
    for kinds, seconds in rows:
        count, total = count + 1, total + seconds
        if not kinds:
            clean.append(seconds)
        elif len(kinds) == 1:
            alone.setdefault(kinds[0], []).append(seconds)
        else:
            for kind in kinds:
                shared.setdefault(kind, []).append(seconds / len(kinds))
    if not count:
        return None
    base = sum(clean) / len(clean) if clean else 0.0
    known = {
        kind: max(0.0, sum(times) / len(times) - base) for kind, times in sorted(alone.items())
    }
    for kind, times in sorted(shared.items()):
        known.setdefault(kind, max(0.0, sum(times) / len(times) - base / 2))
    return Rates(clean=base, kinds=known, missions=count)
