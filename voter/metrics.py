"""Metrics in Prometheus' text format, read from the runner at each scrape.

Nothing is counted here: the hot path increments integers of the runner, and a scrape turns them
into samples.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        runner = self._runner
        for name, words in _COUNTERS.items():
            yield CounterMetricFamily(f"trivisor_{name}", words, value=runner.counters[name])
        failures = CounterMetricFamily(
            "trivisor_failures", "Requests that got no reply", labels=["failure"]
        )
        for failure, count in sorted(runner.failures.items()):
            failures.add_metric([failure], count)
        yield failures
        yield self._latency()
        yield from self._engine()
        yield from self._replicas()

    def _latency(self) -> Metric:
        """Time from a request's arrival to its reply's release."""
        runner, total = self._runner, 0
        buckets = []
        bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf"]
        for bound, count in zip(bounds, runner.latency, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "trivisor_request_seconds",
            "Time from a request's arrival to its reply's release",
            buckets=buckets,
            sum_value=runner.latency_sum,
        )

    def _engine(self) -> Iterator[Metric]:
        runner, engine = self._runner, self._runner.engine
        standing = GaugeMetricFamily(
            "trivisor_standing", "1 for the state of the voter", labels=["standing"]
        )
        for name in STANDINGS:
            standing.add_metric([name], engine.status == name)
        yield standing
        gauges = {
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
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"trivisor_{name}", words, value=value)

    def _replicas(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "trivisor_replica_state", "1 for the state a replica is in", labels=["replica", "state"]
        )
        lag = GaugeMetricFamily(
            "trivisor_replica_lag", "Requests sent and not yet answered", labels=["replica"]
        )
        dissents = CounterMetricFamily(
            "trivisor_replica_dissents",
            "Answers that differed from the majority's",
            labels=["replica"],
        )
        expulsions = CounterMetricFamily(
            "trivisor_replica_expulsions", "Times it left the vote", labels=["replica"]
        )
        for replica in self._runner.engine.members:
            for state in State:
                states.add_metric([replica.name, state], replica.state is state)
            lag.add_metric([replica.name], len(replica.outstanding))
            dissents.add_metric([replica.name], replica.dissents)
            expulsions.add_metric([replica.name], replica.expulsions)
        yield from (states, lag, dissents, expulsions)
