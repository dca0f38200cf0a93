"""Metrics in Prometheus' text format, read from the runner at each scrape.

Nothing is counted here: the hot path increments integers of the runner, and a scrape turns them
into samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from voter.core.replica import State
from voter.runner import LATENCY_BOUNDS, Runner

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The media type of what ``render`` returns."""

_COUNTERS = {
    "requests": "Requests submitted by clients",
    "released": "Replies released by the vote",
    "masked": "Replies released although a replica dissented",
    "dissents": "Times that a replica's reply or digest differed from the majority's",
    "expulsions": "Times that a replica left the vote, for any reason",
    "checkpoints": "States that were voted on and fetched",
    "voided": "Writes made void because they killed or hung m replicas twice",
}
STANDINGS = ("ready", "degraded", "refusing", "draining")

Labelled = TypeVar("Labelled", CounterMetricFamily, GaugeMetricFamily)


def _labelled(
    kind: type[Labelled],
    name: str,
    help_text: str,
    labels: Sequence[str],
    samples: Iterable[tuple[Sequence[str], float]],
) -> Labelled:
    """Return a family with one sample for each combination of label values."""
    family = kind(f"trivisor_{name}", help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


class Metrics(Collector):
    """The samples of one voter."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all samples as text."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """prometheus_client: what ``collect`` yields is not fixed in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """prometheus_client: read everything now."""
        runner, members = self._runner, self._runner.engine.members
        for name, words in _COUNTERS.items():
            yield CounterMetricFamily(f"trivisor_{name}", words, value=runner.counters[name])
        failures = (([failure], count) for failure, count in sorted(runner.failures.items()))
        words = "Requests that got no reply"
        yield _labelled(CounterMetricFamily, "failures", words, ["failure"], failures)
        yield self._latency()
        standing = (([name], runner.engine.status == name) for name in STANDINGS)
        words = "1 for the state of the voter"
        yield _labelled(GaugeMetricFamily, "standing", words, ["standing"], standing)
        for name, (words, value) in self._gauges().items():
            yield GaugeMetricFamily(f"trivisor_{name}", words, value=value)
        states = (([r.name, state], r.state is state) for r in members for state in State)
        words = "1 for the state a replica is in"
        yield _labelled(GaugeMetricFamily, "replica_state", words, ["replica", "state"], states)
        lags = (([replica.name], len(replica.outstanding)) for replica in members)
        words = "Requests sent and not yet answered"
        yield _labelled(GaugeMetricFamily, "replica_lag", words, ["replica"], lags)
        for name, words in (
            ("dissents", "Answers that differed from the majority's"),
            ("expulsions", "Times it left the vote"),
        ):
            counts = (([replica.name], getattr(replica, name)) for replica in members)
            yield _labelled(CounterMetricFamily, f"replica_{name}", words, ["replica"], counts)

    def _latency(self) -> Metric:
        """Return the histogram of the times from a request's arrival to its reply's release."""
        bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf"]
        return HistogramMetricFamily(
            "trivisor_request_seconds",
            "Time from a request's arrival to its reply's release",
            buckets=list(zip(bounds, accumulate(self._runner.latency), strict=True)),
            sum_value=self._runner.latency_sum,
        )

    def _gauges(self) -> dict[str, tuple[str, float]]:
        """Return help text and value of the gauges without labels, by name."""
        runner, engine = self._runner, self._runner.engine
        gauges: dict[str, tuple[str, float]] = {
            "active_replicas": ("Replicas whose votes count", len(engine.members.active)),
            "votes_needed": ("Replicas that must agree", runner.policy.need),
            "sequence": ("Last sequence number that was assigned", engine.log.seq),
            "waiting": ("Clients that wait for a verdict", runner.waiting),
            "pending": ("Votes that are not settled", engine.pending),
            "log_writes": ("Writes since the last checkpoint", len(engine.log)),
            "log_bytes": ("Bytes of the writes since the last checkpoint", engine.log.bytes),
            "checkpoint_bytes": ("Size of the last voted state", len(engine.log.checkpoint.state)),
            "throttled": ("1 while writes wait for a learner to catch up", engine.throttle.on),
            "sessions": ("Native sessions that are open", engine.dedup.sessions),
            "idempotency_keys": ("Idempotency-Keys that are kept", engine.dedup.keys),
            "once_bytes": ("Bytes kept to answer retries", engine.dedup.size),
        }
        if runner.journal is not None:
            journal = runner.journal.status()
            gauges |= {
                "journal_bytes": ("Bytes of the journal's segments", journal["bytes"]),
                "journal_unsynced": (
                    "Entries written and not yet on the disk",
                    journal["position"] - journal["synced"],
                ),
                "journal_full": ("1 while there is no room for new writes", journal["full"]),
                "journal_sync_seconds": (
                    "Duration of the last sync",
                    journal["sync_last_ms"] / 1000,
                ),
            }
        return gauges
