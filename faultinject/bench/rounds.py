"""Rounds: every target is measured once in a round, in random order.

Whatever slows this machine for a while then slows all targets alike.  A ratio of two targets is
taken within a round, and the median over rounds is reported.  So many short rounds are better than
a few long ones.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import TypeVar

__all__ = ["IN_FLIGHT", "ratios", "run_rounds"]

IN_FLIGHT = 64
"""Requests in flight while throughput is measured."""

M = TypeVar("M")


async def run_rounds(
    names: Sequence[str],
    measure: Callable[[str], Awaitable[M]],
    done: list[dict[str, M]],
    *,
    random: Random,
    seconds: float,
    least: int,
) -> None:
    """Call ``measure(name)`` for each target in each round, and append each complete round.

    The last round ends within ``seconds``, as far as the rounds before predict it; but at least so
    many are run.
    """
    began = time.monotonic()
    number = 0
    while number < least or (time.monotonic() - began) * (number + 1) / number <= seconds:
        results = {name: await measure(name) for name in random.sample(names, len(names))}
        done.append({name: results[name] for name in names})
        number += 1


def ratios(
    rounds: Sequence[Mapping[str, M]], figure: Callable[[M], float], upper: str, lower: str
) -> list[float]:
    """Return the ratio of two targets in each round in which both were measured."""
    return [
        figure(each[upper]) / figure(each[lower])
        for each in rounds
        if upper in each and lower in each
    ]
