"""Throughput and latency of the vote beside its peers, in rounds, each round all of them in
random order.

Ratios are made within a round and the median over rounds is reported: what slows this machine
down for a while then slows both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from statistics import median
from typing import Any

import msgspec

from faultinject.load import LatencySummary, Start, pipelined, serial

__all__ = ["RATIOS", "Comparison", "ComparisonRound", "compare"]

IN_FLIGHT = 64


class ComparisonRound(msgspec.Struct, frozen=True, kw_only=True):
    """One target in one round: latency in seconds with one request under way, requests a second
    with 64.
    """

    target: str
    latency: LatencySummary
    rate: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, their medians, and the ratios (name: median over rounds)."""

    rounds: list[list[ComparisonRound]]
    p50: dict[str, float]
    rate: dict[str, float]
    ratios: dict[str, float]


RATIOS: dict[str, tuple[str, str, str, float, float]] = {
    # name: measure, upper target, lower target, to reach, aim
    "b/a p50": ("p50", "b", "a", 3.0, 2.0),
    "b/a rate": ("rate", "b", "a", 0.30, 0.34),
    "f/d rate": ("rate", "f", "d", 1.5, 2.5),
    "c/b rate": ("rate", "c", "b", 0.0, 0.0),
    "f/e rate": ("rate", "f", "e", 0.0, 0.0),
    "f/d p50": ("p50", "f", "d", 0.0, 0.0),
}
"""What is compared; 0 means reported only.  A latency must be at most, a rate at least, the
figure.
"""


async def _measure(name: str, start: Start, number: int) -> ComparisonRound:
    await pipelined(start, number // 10, 8)  # warm up
    latency = await serial(start, number // 4)
    return ComparisonRound(
        target=name, latency=latency, rate=await pipelined(start, number, IN_FLIGHT)
    )


async def compare(
    targets: Mapping[str, Start],
    *,
    rounds: int,
    number: int,
    seed: int,
    progress: Callable[[str], None],
    settle: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0),
) -> Comparison:
    """Measure all targets in ``rounds`` rounds of about ``number`` requests each."""
    random = Random(seed)
    results: list[list[ComparisonRound]] = []
    for at in range(rounds):
        names = random.sample(sorted(targets), len(targets))
        done = []
        for name in names:
            progress(f"round {at + 1} of {rounds}: {name}")
            await settle()
            done.append(await _measure(name, targets[name], number))
        results.append(sorted(done, key=lambda one: one.target))
    return Comparison(
        rounds=results,
        p50=_medians(results, lambda one: one.latency.p50),
        rate=_medians(results, lambda one: one.rate),
        ratios=_ratios(results),
    )


def _medians(
    rounds: list[list[ComparisonRound]], value: Callable[[ComparisonRound], float]
) -> dict[str, float]:
    names = [one.target for one in rounds[0]]
    return {name: median(value(r[at]) for r in rounds) for at, name in enumerate(names)}


def _ratios(rounds: list[list[ComparisonRound]]) -> dict[str, float]:
    ratios = {}
    for name, (measure, upper, lower, _, _) in RATIOS.items():
        values = []
        for done in rounds:
            by_name = {one.target: one for one in done}
            if upper in by_name and lower in by_name:
                above, below = by_name[upper], by_name[lower]
                values.append(
                    above.latency.p50 / below.latency.p50
                    if measure == "p50"
                    else above.rate / below.rate
                )
        if values:
            ratios[name] = median(values)
    return ratios
