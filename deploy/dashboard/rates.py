"""Rates and latencies between two samples of a voter, from differences of what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FIELDS", "Rates", "quantile"]

FIELDS = ("time", "seconds", "unanimous", "majority", "rejected", "failed", "p50", "p99")
"""A point: seconds since 1970 and since the point before, requests by result in between, and
quantiles of the latency in seconds (None without a request, or without a sample before)."""
REJECTED = frozenset({"not-executed", "overload", "too-large", "key-reused"})
"""Failures of requests that were not executed (see ``voter.core.events.Failure``)."""


class Rates:
    """Turns a voter's counters into points."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._time = 0.0
        self._counters: Mapping[str, Any] = {}
        self._latency: Sequence[int] = ()

    def point(self, now: float, status: Mapping[str, Any]) -> list[float | None]:
        """Return the point of this sample.  A restarted voter counts from zero again."""
        voter = status["voter"]
        counters, latency = voter.get("counters") or {}, voter.get("latency") or {}
        counts: Sequence[int] = latency.get("counts", ())
        same = bool(counters) and bool(self._counters) and voter.get("pid") == self._pid
        seconds, before = now - self._time, self._counters
        point: list[float | None] = [now, *[None] * (len(FIELDS) - 1)]
        if same and seconds > 0:
            released = counters["released"] - before["released"]
            masked = counters["masked"] - before["masked"]
            all_vote = all(guest["replica"]["state"] == "active" for guest in status["guests"])
            majority = masked if all_vote else released
            failures = {
                kind: times - before["failures"].get(kind, 0)
                for kind, times in counters["failures"].items()
            }
            rejected = sum(times for kind, times in failures.items() if kind in REJECTED)
            failed = sum(failures.values()) - rejected
            point[1:6] = seconds, released - majority, majority, rejected, failed
            if len(counts) == len(self._latency):
                differences = [a - b for a, b in zip(counts, self._latency, strict=True)]
                bounds = latency["bounds"]
                point[6:] = quantile(bounds, differences, 0.5), quantile(bounds, differences, 0.99)
        self._pid, self._time = voter.get("pid"), now
        self._counters, self._latency = counters, counts
        return point


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Return a quantile of a histogram; None if it is empty.

    ``bounds`` are the upper bounds of all buckets but the last.  Within a bucket it interpolates
    on a logarithmic scale; the last bucket counts as its lower bound.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, seen = share * total, 0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            if index == len(bounds):
                return float(bounds[-1])
            upper = bounds[index]
            lower = bounds[index - 1] if index else upper / 2
            return float(lower * (upper / lower) ** ((wanted - seen) / count))
        seen += count
    return float(bounds[-1])
