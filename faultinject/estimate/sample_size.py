"""Sample size: how many more missions a verdict needs at the failure rates seen so far."""

from __future__ import annotations

from collections.abc import Callable

from faultinject.estimate.strata import Strata

__all__ = ["missions_needed"]

MOST = 20_000_000
"""Missions at which the search ends without a result: they would take years."""
START = 50
GROWTH = 1.5


def missions_needed(
    strata: Strata, decided: Callable[[Strata], bool], distance: Callable[[Strata], float]
) -> dict[str, int] | None:
    """Return missions to add by stratum until ``decided``; None if no affordable number is enough.

    Greedy: it repeatedly grows, by half, the stratum that most reduces ``distance`` (how far from
    decided) per mission.  It then reduces each addition as far as the verdict allows.  The result
    is an estimate for planning, neither exact nor minimal.
    """
    names = list(strata.measured())
    # An upper limit first: where not even a huge sample decides, the truth lies at the margin.
    if not any(
        decided(strata.with_more(dict.fromkeys(names, most))) for most in (MOST // 100, MOST)
    ):
        return None
    sizes = {name: counts.trials for name, counts in strata.measured().items()}
    added = dict.fromkeys(names, 0)
    while not decided(strata.with_more(added)):
        if sum(added.values()) > MOST:
            return None
        before = distance(strata.with_more(added))
        best, best_rate = names[0], -float("inf")
        for name in names:
            step = _step(sizes[name] + added[name])
            after = distance(strata.with_more({**added, name: added[name] + step}))
            rate = (before - after) / step
            if rate > best_rate:
                best, best_rate = name, rate
        added[best] += _step(sizes[best] + added[best])
    for name in names:
        added[name] = _reduced(strata, added, name, decided)
    return {name: count for name, count in added.items() if count}


def _step(size: int) -> int:
    return max(START, round(size * (GROWTH - 1.0)))


def _reduced(
    strata: Strata, added: dict[str, int], name: str, decided: Callable[[Strata], bool]
) -> int:
    """Return the least addition to ``name`` that still decides, the others unchanged."""
    low, high = -1, added[name]
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        if decided(strata.with_more({**added, name: middle})):
            high = middle
        else:
            low = middle
    return high
