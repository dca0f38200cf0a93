"""Traces of requests in simulated runs: possible under every fault, and the same for one seed."""

from __future__ import annotations

from typing import Any

import pytest

from faultinject.simulation.plan import SimFault, make_plan
from faultinject.simulation.run import run
from faultinject.simulation.world import World
from voter.runner import Runner
from voter.trace import UnknownRequest

SEEDS = range(0, 60, 4)


class Runners:
    """A watcher that keeps the runners of all voters of a run."""

    def __init__(self) -> None:
        self.all: list[Runner] = []

    def attach(self, world: World) -> None:
        """Do nothing."""

    def fault(self, fault: SimFault, what: str) -> None:
        """Do nothing."""

    def watch_runner(self, runner: Runner) -> None:
        """Keep it."""
        self.all.append(runner)

    def finish(self) -> None:
        """Do nothing."""

    def traces(self) -> list[dict[str, Any]]:
        """Return the traces of all requests that each voter knows."""
        found = []
        for runner in self.all:
            for seq in range(1, runner.engine.log.seq + 1):
                try:
                    found.append(runner.tracer.trace(seq, 0, 0.0, 0.0))
                except UnknownRequest:
                    continue  # a marker, or another voter's
        return found


def traces_of(seed: int) -> list[dict[str, Any]]:
    """Return all traces of one run."""
    runners = Runners()
    run(make_plan(seed), runners)
    return runners.traces()


@pytest.mark.parametrize("seed", SEEDS)
def test_trace_of_a_released_reply_shows_a_majority_before_it(seed: int) -> None:
    released = 0
    for trace in traces_of(seed):
        events = [step["event"] for step in trace["timeline"]]
        if trace["outcome"] != "released" or "agreed" not in str(trace["timeline"]):
            continue
        released += 1
        assert events[0] in ("received", "ordered"), trace
        place = {event: index for index, event in reversed(list(enumerate(events)))}
        answered = {
            step["replica"]
            for step in trace["timeline"][: place["released"]]
            if step["event"] == "answered"
        }
        assert len(answered) >= trace["need"], trace
        sent = {s["replica"] for s in trace["timeline"] if s["event"].startswith("sent")}
        assert answered <= sent, trace
        if "decided" in place:
            assert place["ordered"] < place["decided"] <= place["released"], trace
    assert released > 0


def test_traces_depend_on_the_seed_alone() -> None:
    assert traces_of(8) == traces_of(8)
