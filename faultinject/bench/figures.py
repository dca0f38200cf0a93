"""The figures of ``trivisor bench``, each with the value to reach, and its result in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple

import msgspec

__all__ = ["FIGURES", "GOALS", "Goal", "Value", "evaluate", "number"]

FIGURES = {
    "haproxy": "throughput compared with one hop of HAProxy",
    "durable": "durable writes compared with etcd's, on three members",
    "guests": "throughput of three real guests",
    "latency": "latency of a vote compared with one guest's bare link",
    "processor": "processor time per voted request",
    "failure": "what killing or freezing a guest adds to latency",
    "recovery": "seconds until a failed guest votes again",
    "transfer": "what clients notice of a large state that a returning guest takes",
    "campaign": "campaign missions per hour",
    "idle": "memory of idle HTTP connections",
}
"""What ``--only`` selects from, in the order of the tables."""


class Goal(NamedTuple):
    """A figure's value, what it has to reach and what it aims at: None if it is only reported.

    ``name``: "/s at 64" is requests a second with 64 in flight; "p50" is the median latency with
    one in flight.  ``unit``: of the value; empty for a ratio or a number.  ``at_most``: small
    values are good.
    """

    figure: str
    name: str
    reach: float | None = None
    aim: float | None = None
    at_most: bool = False
    unit: str = ""

    def reached(self, value: float) -> bool | None:
        """Return whether a value is good enough; None if there is nothing to reach."""
        if self.reach is None:
            return None
        return value <= self.reach if self.at_most else value >= self.reach


def _goals() -> dict[str, Goal]:
    low = True
    goals = [
        Goal("haproxy", "exec: / HAProxy, /s at 64", 1.0, 1.6),
        Goal("haproxy", "exec: / aiohttp proxy, /s at 64", 1.5, 2.5),
        Goal("haproxy", "exec: / old exec:, /s at 64"),
        Goal("haproxy", "exec: / old exec:, p50", at_most=low),
        Goal("durable", "fsync / etcd, /s at 64, 1 connection", 2.5, 4.0),
        Goal("durable", "fsync / etcd, /s at 64, 64 connections", 2.5, 4.0),
        Goal("durable", "fsync / etcd, p50", 0.6, 0.4, low),
        Goal("durable", "fsync / old fsync, /s at 64"),
        Goal("durable", "fsync / old fsync, p50", at_most=low),
        Goal("durable", "os / none, /s at 64", 0.85),
        Goal("durable", "fsync / none, /s at 64"),
        Goal("durable", "fsync in a session / without, /s at 64"),
        Goal("guests", "voted / old voted, /s at 64", 2.5, 4.0),
        Goal("guests", "voted / bare link, /s at 64"),
        Goal("guests", "voted, HTTP / native, /s at 64"),
        Goal("latency", "voted / bare link, p50", 2.2, 1.4, low),
        Goal("latency", "voted / bare link, p50, 8 ms pauses", 2.2, 1.4, low),
        Goal("latency", "voted / old voted, p50", at_most=low),
        Goal("latency", "voted / old voted, p50, 8 ms pauses", at_most=low),
        Goal("processor", "voter, exec:", None, None, low, "us"),
        Goal("processor", "three agents, exec:", None, None, low, "us"),
        Goal("processor", "driver, exec:", None, None, low, "us"),
        Goal("processor", "voter, agents and driver, exec:", 60.0, 40.0, low, "us"),
        Goal("processor", "exec: / old exec:", at_most=low),
        Goal("processor", "voter, guests", None, None, low, "us"),
        Goal("processor", "three guests", None, None, low, "us"),
        Goal("processor", "voter, guests and driver", None, None, low, "us"),
        Goal("processor", "guests / old guests", at_most=low),
        Goal("failure", "kill: added p99.9", 50.0, 10.0, low, "ms"),
        Goal("failure", "freeze: added p99.9", 50.0, 10.0, low, "ms"),
        Goal("failure", "failed requests", 0.0, 0.0, low),
        Goal("recovery", "QEMU alive, 1,000 keys", 0.5, 0.2, low, "s"),
        Goal("recovery", "QEMU killed, 1,000 keys", 0.8, 0.5, low, "s"),
        Goal("transfer", "p99 of the others, during / before", 2.0, 1.3, low),
        Goal("transfer", "voting again after", None, None, low, "s"),
        Goal("transfer", "failed requests", 0.0, 0.0, low),
        Goal("campaign", "one guest hit, QEMU alive", 20_000.0, 36_000.0, unit="/h"),
        Goal("idle", "each connection", None, None, low, "KiB"),
    ]
    return {f"{each.figure}: {each.name}": each for each in goals}


GOALS: Mapping[str, Goal] = _goals()
"""All values by figure and name; the targets are those of issue 16 and of earlier ones."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A value in one run: the median over its rounds, pairs or tries, and its quartiles."""

    figure: str
    name: str
    unit: str
    value: float
    low: float
    high: float
    count: int
    reach: float | None
    aim: float | None
    at_most: bool
    reached: bool | None


def evaluate(figure: str, name: str, values: Sequence[float] | Iterable[float]) -> Value | None:
    """Return the value of what was measured; None if nothing was.

    Raises KeyError for a value without an entry in ``GOALS``.
    """
    goal, found = GOALS[f"{figure}: {name}"], list(values)
    if not found:
        return None
    middle = median(found)
    low, _, high = quantiles(found, n=4, method="inclusive") if len(found) > 1 else [middle] * 3
    return Value(
        figure=figure, name=name, unit=goal.unit, value=middle, low=low, high=high,
        count=len(found), reach=goal.reach, aim=goal.aim, at_most=goal.at_most,
        reached=goal.reached(middle),
    )  # fmt: skip


def number(value: float) -> str:
    """Return a value with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
