"""How many missions more a verdict would take, if they go as those so far."""

from __future__ import annotations

from collections.abc import Callable

from faultinject.estimate.strata import Strata

__all__ = ["missions_needed"]

MOST = 20_000_000
"""Missions at which one stops asking: years of them."""

START = 50
GROWTH = 1.5


def missions_needed(
    strata: Strata, decided: Callable[[Strata], bool], distance: Callable[[Strata], float]
) -> dict[str, int] | None:
    """Missions to add by stratum until ``decided``; None if no affordable number does.

    Greedy: it grows, by half each time, the stratum that brings ``distance`` (how far from decided;
    smaller is better) down most a mission; then it cuts each addition back as far as the verdict
    stands.  An estimate for planning, not a promise, and not the least possible.
    """
    names = list(strata.measured())
    # A ceiling first: where not even a huge sample decides, the truth lies at the margin.
    if not decided(strata.with_more(dict.fromkeys(names, MOST // 100))):
        names_alone = dict.fromkeys(names, MOST)
        if not decided(strata.with_more(names_alone)):
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
        added[name] = _cut(strata, added, name, decided)
    return {name: count for name, count in added.items() if count}


def _step(size: int) -> int:
    return max(START, round(size * (GROWTH - 1.0)))


def _cut(
    strata: Strata, added: dict[str, int], name: str, decided: Callable[[Strata], bool]
) -> int:
    """The least addition to ``name`` that still decides, the others as they are (by bisection)."""
    low, high = -1, added[name]
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        if decided(strata.with_more({**added, name: middle})):
            high = middle
        else:
            low = middle
    return high
