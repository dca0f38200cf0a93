"""Metrics in Prometheus' text format, read from the runner at each scrape.

Nothing is counted here: the hot path increments integers of the runner, and a scrape turns them
into samples.  The text format (version 0.0.4) needs no library.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from voter.core.replica import State
from voter.runner import LATENCY_BOUNDS, Runner

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of what ``render`` returns."""

_COUNTERS = {
    "requests": "Requests submitted by clients",
    "released": "Replies released by the vote",
    "masked": "Replies released although a replica dissented",
    "dissents": "Times that a replica's reply or digest differed from the majority's",
    "checkpoints": "States that were voted on and fetched",
    "voided": "Requests made void because they killed or hung replicas twice",
    "clock_steps": "Times that the wall clock was set, or that agreed time stepped to it",
}
STATUSES = ("ready", "degraded", "refusing", "draining")

Samples = Iterable[tuple[dict[str, str], float]]


def _family(name: str, kind: str, help_text: str, samples: Samples) -> Iterator[str]:
    """Yield the lines of one metric: its help, its type, and a sample for each set of labels."""
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        text = ",".join([f'{label}="{name_of}"' for label, name_of in labels.items()])
        yield f"{name}{{{text}}} {float(value)}" if text else f"{name} {float(value)}"


class Metrics:
    """The samples of one voter."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self._started = time.time() - age

    def render(self) -> bytes:
        """Return all samples as text."""
        return "".join([f"{line}\n" for line in self._lines()]).encode()

    def _lines(self) -> Iterator[str]:
        runner, members = self._runner, self._runner.engine.members
        for name, words in _COUNTERS.items():
            count = runner.counters[name]
            yield from _family(f"trivisor_{name}_total", "counter", words, [({}, count)])
        words = "Times that a replica's incarnation was ended, for any reason"
        ended: Samples = [({}, members.incarnations_ended)]
        yield from _family("trivisor_incarnations_ended_total", "counter", words, ended)
        failures = [({"failure": kind}, times) for kind, times in sorted(runner.failures.items())]
        words = "Requests that got no reply"
        yield from _family("trivisor_failures_total", "counter", words, failures)
        yield from self._latency()
        status = [({"status": name}, runner.engine.status == name) for name in STATUSES]
        words = "1 for the state of the voter"
        yield from _family("trivisor_status", "gauge", words, status)
        for name, (words, value) in self._gauges().items():
            yield from _family(f"trivisor_{name}", "gauge", words, [({}, value)])
        states = [
            ({"replica": replica.name, "state": state}, replica.state is state)
            for replica in members
            for state in State
        ]
        words = "1 for the state a replica is in"
        yield from _family("trivisor_replica_state", "gauge", words, states)
        lags = [({"replica": replica.name}, replica.requests) for replica in members]
        words = "Requests sent and not yet answered"
        yield from _family("trivisor_replica_lag", "gauge", words, lags)
        for name, words in (
            ("dissents", "Answers that differed from the majority's"),
            ("incarnations_ended", "Times that its incarnation was ended, for any reason"),
        ):
            counts = [({"replica": replica.name}, getattr(replica, name)) for replica in members]
            yield from _family(f"trivisor_replica_{name}_total", "counter", words, counts)
        yield from self._process()

    def _latency(self) -> Iterator[str]:
        """Yield the histogram of the times from a request's arrival to its reply's release."""
        name = "trivisor_request_seconds"
        words = "Time from a request's arrival to its reply's release"
        yield from _family(name, "histogram", words, [])
        total = 0
        bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf"]
        for bound, total in zip(bounds, accumulate(self._runner.latency), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {float(total)}'
        yield f"{name}_count {float(total)}"
        yield f"{name}_sum {self._runner.latency_sum}"

    def _process(self) -> Iterator[str]:
        """Yield what Prometheus' clients report of every process, under their names."""
        size, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
        page, clock = resource.getpagesize(), time.process_time()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for name, kind, words, value in (
            ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", size * page),
            ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident * page),
            ("start_time_seconds", "gauge", "Start time since the Unix epoch.", self._started),
            ("cpu_seconds_total", "counter", "Total user and system CPU time.", clock),
            ("open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd"))),
            ("max_fds", "gauge", "Most open file descriptors.", most),
        ):
            yield from _family(f"process_{name}", kind, words, [({}, value)])

    def _gauges(self) -> dict[str, tuple[str, float]]:
        """Return help text and value of the gauges without labels, by name."""
        runner, engine = self._runner, self._runner.engine
        gauges: dict[str, tuple[str, float]] = {
            "active_replicas": ("Replicas whose votes count", len(engine.members.active)),
            "votes_needed": ("Replicas that must agree", runner.policy.need),
            "sequence": ("Last sequence number that was assigned", engine.log.seq),
            "waiting": ("Clients that wait for a result", runner.waiting),
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
