"""The voter's metrics, read from the runner at each scrape.

Nothing is counted here: the hot path increments integers of the runner, and a scrape turns them
into samples.  ``FAMILIES`` is the catalogue of names (``voter.exposition``).
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path

from voter.core.events import Failure
from voter.core.replica import Role, State
from voter.exposition import (
    LONGEST_EXEMPLAR,
    Exemplar,
    Family,
    Histogram,
    Samples,
    expose,
    wants_openmetrics,
)
from voter.runner import Runner
from voter.trace import LATENCY_BOUNDS

__all__ = ["FAMILIES", "PROCESS_FAMILIES", "Metrics", "ProcessSamples"]

STATUSES = ("ready", "degraded", "refusing", "draining")
_REPLICA = ("replica",)
_FAILURES = sorted(each for name, each in vars(Failure).items() if name.isupper())

PROCESS_FAMILIES = {
    "process_virtual_memory_bytes": Family("gauge", "Virtual memory size in bytes."),
    "process_resident_memory_bytes": Family("gauge", "Resident memory size in bytes."),
    "process_start_time_seconds": Family("gauge", "Start time since the Unix epoch."),
    "process_cpu_seconds_total": Family("counter", "Total user and system CPU time."),
    "process_open_fds": Family("gauge", "Open file descriptors."),
    "process_max_fds": Family("gauge", "Most open file descriptors."),
}
"""What Prometheus' clients report of every process, under their names."""

FAMILIES = {
    "trivisor_voter_info": Family("info", "How this voter works", ("vote", "durability")),
    "trivisor_requests_total": Family("counter", "Requests submitted by clients"),
    "trivisor_released_total": Family("counter", "Replies released by the vote"),
    "trivisor_masked_total": Family("counter", "Replies released although a replica dissented"),
    "trivisor_denied_total": Family("counter", "Requests that the function F did not authorize"),
    "trivisor_failures_total": Family("counter", "Requests that got no reply", ("failure",)),
    "trivisor_dissents_total": Family(
        "counter", "Times that a replica's reply or digest differed from the majority's"
    ),
    "trivisor_voided_total": Family(
        "counter", "Requests made void because they killed or hung replicas twice"
    ),
    "trivisor_checkpoints_total": Family("counter", "States that were voted on and fetched"),
    "trivisor_clock_steps_total": Family(
        "counter", "Times that the wall clock was set, or that agreed time stepped to it"
    ),
    "trivisor_incarnations_ended_total": Family(
        "counter", "Times that a replica's incarnation was ended, for any reason"
    ),
    "trivisor_request_duration_seconds": Family(
        "histogram", "Time from a request's arrival to its reply's release"
    ),
    "trivisor_status": Family("gauge", "1 for the state of the voter, 0 for others", ("status",)),
    "trivisor_active_replicas": Family("gauge", "Replicas whose votes count"),
    "trivisor_votes_needed": Family("gauge", "Replicas that must agree"),
    "trivisor_sequence_number": Family("gauge", "Last sequence number that was assigned"),
    "trivisor_waiting_clients": Family("gauge", "Clients that wait for a result"),
    "trivisor_pending_votes": Family("gauge", "Votes that are not settled"),
    "trivisor_log_writes": Family("gauge", "Writes since the last checkpoint"),
    "trivisor_log_bytes": Family("gauge", "Bytes of the writes since the last checkpoint"),
    "trivisor_checkpoint_bytes": Family("gauge", "Size of the last voted state"),
    "trivisor_throttled": Family("gauge", "1 while writes wait for a learner to catch up"),
    "trivisor_sessions": Family("gauge", "Native sessions that are open"),
    "trivisor_idempotency_keys": Family("gauge", "Idempotency-Keys that are kept"),
    "trivisor_deduplication_bytes": Family("gauge", "Bytes kept to answer retries"),
    "trivisor_journal_bytes": Family("gauge", "Bytes of the journal's segments"),
    "trivisor_journal_unsynced_entries": Family(
        "gauge", "Entries written and not yet on the disk"
    ),
    "trivisor_journal_full": Family("gauge", "1 while there is no room for new writes"),
    "trivisor_journal_last_sync_seconds": Family("gauge", "Duration of the last sync"),
    "trivisor_replica_state": Family(
        "gauge", "1 for the state a replica is in, 0 for others", ("replica", "state")
    ),
    "trivisor_replica_role": Family("gauge", "1 for a replica's role, else 0", ("replica", "role")),
    "trivisor_replica_compared_total": Family("counter", "Replies compared, not counted", _REPLICA),
    "trivisor_replica_differed_total": Family("counter", "Those of them that differed", _REPLICA),
    "trivisor_replica_lag_requests": Family(
        "gauge", "Requests sent to a replica and not yet answered", _REPLICA
    ),
    "trivisor_replica_dissents_total": Family(
        "counter", "Answers of a replica that differed from the majority's", _REPLICA
    ),
    "trivisor_replica_incarnations_ended_total": Family(
        "counter", "Times that a replica's incarnation was ended, for any reason", _REPLICA
    ),
} | PROCESS_FAMILIES  # fmt: skip
"""Everything that the voter exports; ``journal_*`` only with a journal, ``denied`` with F."""


class ProcessSamples:
    """The samples of PROCESS_FAMILIES of this process."""

    def __init__(self) -> None:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self.started = time.time() - age
        """When the process started, in seconds since 1970."""

    def read(self) -> dict[str, float]:
        """Return the values by name."""
        size, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
        page = resource.getpagesize()
        return {
            "process_virtual_memory_bytes": size * page,
            "process_resident_memory_bytes": resident * page,
            "process_start_time_seconds": self.started,
            "process_cpu_seconds_total": time.process_time(),
            "process_open_fds": len(os.listdir("/proc/self/fd")),
            "process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }


class Metrics:
    """The samples of one voter."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._process = ProcessSamples()

    def render(self, accept: bytes) -> tuple[bytes, str]:
        """Return all samples in the format that an Accept header asks for, and its media type.

        The traces of requests that OpenMetrics names as exemplars are kept for ``trivisor trace``.
        """
        openmetrics = wants_openmetrics(accept)
        singles = self._singles() | self._journal() | self._process.read()
        samples: dict[str, Samples] = {name: [((), value)] for name, value in singles.items()}
        samples |= self._labelled()
        runner = self._runner
        exemplars = self._exemplars() if openmetrics else {}
        latency = Histogram(LATENCY_BOUNDS, runner.latency, runner.latency_sum, exemplars)
        samples["trivisor_request_duration_seconds"] = latency
        return expose(FAMILIES, samples, self._process.started, openmetrics=openmetrics)

    def _singles(self) -> dict[str, float]:
        """Return the values without labels, by name."""
        runner, engine = self._runner, self._runner.engine
        counters = {f"trivisor_{name}_total": float(n) for name, n in runner.counters.items()}
        return counters | {
            "trivisor_incarnations_ended_total": engine.members.incarnations_ended,
            "trivisor_active_replicas": len(engine.members.active),
            "trivisor_votes_needed": runner.policy.need,
            "trivisor_sequence_number": engine.log.seq,
            "trivisor_waiting_clients": runner.waiting,
            "trivisor_pending_votes": engine.pending,
            "trivisor_log_writes": len(engine.log),
            "trivisor_log_bytes": engine.log.bytes,
            "trivisor_checkpoint_bytes": len(engine.log.checkpoint.state),
            "trivisor_throttled": engine.throttle.on,
            "trivisor_sessions": engine.dedup.sessions,
            "trivisor_idempotency_keys": engine.dedup.keys,
            "trivisor_deduplication_bytes": engine.dedup.size,
        }

    def _journal(self) -> dict[str, float]:
        if self._runner.journal is None:
            return {}
        journal = self._runner.journal.status()
        return {
            "trivisor_journal_bytes": journal["bytes"],
            "trivisor_journal_unsynced_entries": journal["position"] - journal["synced"],
            "trivisor_journal_full": journal["full"],
            "trivisor_journal_last_sync_seconds": journal["sync_last_ms"] / 1000,
        }

    def _labelled(self) -> Mapping[str, Samples]:
        """Return the samples with labels, by name."""
        runner, members = self._runner, self._runner.engine.members
        about = (str(runner.policy), runner.config.durable)
        return {
            "trivisor_voter_info": [(about, 1)],
            # All kinds from the start: Prometheus sees no increase in what was not there before.
            "trivisor_failures_total": [
                ((each,), runner.failures.get(each, 0)) for each in _FAILURES
            ],
            "trivisor_status": [((name,), runner.engine.status == name) for name in STATUSES],
            "trivisor_replica_state": [
                ((replica.name, str(state)), replica.state is state)
                for replica in members
                for state in State
            ],
            "trivisor_replica_role": [
                ((each.name, str(role)), each.role is role) for each in members for role in Role
            ],
            "trivisor_replica_compared_total": [((each.name,), each.compared) for each in members],
            "trivisor_replica_differed_total": [((each.name,), each.differed) for each in members],
            "trivisor_replica_lag_requests": [((each.name,), each.requests) for each in members],
            "trivisor_replica_dissents_total": [((each.name,), each.dissents) for each in members],
            "trivisor_replica_incarnations_ended_total": [
                ((each.name,), each.incarnations_ended) for each in members
            ],
        }

    def _exemplars(self) -> dict[int, Exemplar]:
        """Return the last request in each bucket, by its sequence number and its first id."""
        found, (now, wall) = {}, self._runner.clocks()
        for bucket, (latency, at, seq, ticket) in self._runner.tracer.exemplars.items():
            labels = {"seq": str(seq)}
            for name in self._runner.tracer.ids(ticket)[:1]:
                if len(name) + len("request_id") + len("seq") + len(str(seq)) <= LONGEST_EXEMPLAR:
                    labels["request_id"] = name
            found[bucket] = Exemplar(latency, wall - (now - at), labels)
            self._runner.tracer.keep(seq, now, wall)
        return found
