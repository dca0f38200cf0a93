"""Measure what runs reach: branches of the code, transitions of replicas, overlapping faults.

A range of seeds that passes proves nothing about situations that none of its runs was in.
``reach`` makes one run and returns what it reached, ``measure`` counts over many runs, and
``compare`` returns what only the second of two groups reached.

A run is observed by a watcher, and by a wrapper around ``Replica.move`` while ``_wrapping`` lasts.
Branches come from ``sys.settrace``, for the files in ``MEASURED``.  All of these only read: the run
takes the same course and has the same trace hash.  A traced run takes about four times as long.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from faultinject.simulation.plan import SimFault, SimPlan
from faultinject.simulation.run import RunResult, run
from faultinject.simulation.world import World
from voter.core.batch import Batch
from voter.core.engine import Engine
from voter.core.events import Effect, Event
from voter.core.polls import Polls
from voter.core.replica import Cause, Replica, State
from voter.runner import Runner

__all__ = [
    "DIMENSIONS", "MEASURED", "ReachDifference", "ReachGroup", "Reached", "compare", "measure",
    "reach",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
"""The top of the measured source tree, from which this module was imported."""
MEASURED = (
    "voter/core/*.py", "voter/journal/*.py", "voter/runner.py", "voter/link.py",
    "guests/agent/incarnation.py",
)  # fmt: skip
"""Files whose branches are measured, relative to ROOT."""
DIMENSIONS = ("branch", "transition", "fault pair", "fault at", "batch")
"""What is measured.

``branch``: an arc between two lines of one function, or out of it by return or exception.
``transition``: a replica's state before, the cause, and its state after.
``fault pair``: two kinds, where the second fault began before the system had recovered from the
first.  Recovered means that all replicas vote, and that the first fault and its delays are over.
``fault at``: a kind, and the situation in which a fault of that kind began.
``batch``: what became of a batch: settled, settled against a lie, or taken apart by which event.
"""
STALL = 0.01
"""Seconds by which ``slow-link`` delays each delivery, for each unit of its amount."""
LEAVES, RAISES = 0, -1
"""In place of an arc's second line: the function returns, or raises."""

Arc = tuple[int, int]


class Reached(NamedTuple):
    """The items that one run reached, by dimension."""

    result: RunResult
    items: dict[str, frozenset[str]]


class ReachGroup(NamedTuple):
    """A number of runs, and how many of them reached each item, by dimension."""

    runs: int
    counts: dict[str, Counter[str]]


class ReachDifference(NamedTuple):
    """An item that ``runs`` runs of one group reached and no run of the other."""

    dimension: str
    text: str
    runs: int


# ------------------------------------------------------------------ branches


class _Tracer:
    """A trace function that collects the arcs of the measured files."""

    def __init__(self) -> None:
        self._arcs: dict[str, set[Arc] | None] = {}  # by compiled file name; None: not measured

    def install(self) -> None:
        """Start tracing this thread.  Raises RuntimeError if another tracer is active."""
        if sys.gettrace() is not None:
            raise RuntimeError(
                "reach: another tracer (a debugger, or coverage) is active; run without it"
            )
        sys.settrace(self._called)

    def remove(self) -> None:
        """Stop tracing this thread, if this tracer does."""
        if sys.gettrace() == self._called:
            sys.settrace(None)

    def texts(self) -> Iterator[str]:
        """Yield each arc as text: ``voter/link.py:12->15``, ``->leaves`` or ``->raises``."""
        for name, arcs in self._arcs.items():
            if arcs is None:
                continue
            short = _short(name)
            for first, last in arcs:
                end = {LEAVES: "leaves", RAISES: "raises"}.get(last, str(last))
                yield f"{short}:{first}->{end}"

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        try:
            arcs = self._arcs[name]
        except KeyError:
            arcs = self._arcs[name] = set() if _is_measured(name) else None
        if arcs is None:
            frame.f_trace_lines = False
            return None
        return _local(arcs, frame.f_lineno)


def _local(arcs: set[Arc], line: int) -> Any:
    """Return the trace function of one call (or resumption), which begins at ``line``."""
    raised = False

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal line, raised
        if event == "line":
            arcs.add((line, frame.f_lineno))
            line, raised = frame.f_lineno, False
        elif event == "exception":
            arcs.add((line, RAISES))
            raised = True
        elif event == "return" and not raised:
            arcs.add((line, LEAVES))
        return trace

    return trace


def _short(name: str) -> str:
    """Return a file's name relative to ROOT, or unchanged if the file is elsewhere."""
    path = Path(name)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else name


def _is_measured(name: str) -> bool:
    return any(fnmatch(_short(name), pattern) for pattern in MEASURED)


# --------------------------------------------------------------- the system


class _ReachWatcher:
    """A watcher that collects what one run reaches besides branches, and ends the tracing."""

    def __init__(self, tracer: _Tracer) -> None:
        self.items: dict[str, set[str]] = {dimension: set() for dimension in DIMENSIONS}
        self._tracer = tracer
        self._world: World | None = None  # None before and after the run
        self._pending: list[tuple[SimFault, float]] = []  # not recovered from, since when

    def attach(self, world: World) -> None:
        """Watch this world."""
        self._world = world

    def watch_runner(self, runner: Runner) -> None:
        """Do nothing: transitions are seen by the wrapped methods."""

    def finish(self) -> None:
        """Stop watching and tracing, before the run is cleaned up."""
        self._world = None
        self._tracer.remove()

    def fault(self, fault: SimFault, what: str) -> None:
        """Record a fault that begins."""
        world = self._world
        if world is None or what != "begins":
            return
        self._recover(world)
        for before, _ in self._pending:
            self.items["fault pair"].add(f"{before.kind}, then {fault.kind}")
        self._pending.append((fault, world.loop.time()))
        self.items["fault at"].add(f"{fault.kind} while {_situation(world)}")

    def moved(self, replica: Replica, before: State, cause: Cause) -> None:
        """Record that a replica has changed its state."""
        world = self._world
        if world is None:
            return
        self.items["transition"].add(f"{before} -{cause}-> {replica.state}")
        if world.runner is not None and replica.state is State.ACTIVE:
            self._recover(world)

    def _recover(self, world: World) -> None:
        """Forget the faults that are over, if all replicas vote now."""
        if not world.all_vote:
            return
        now, voter = world.loop.time(), world.voter
        doomed = voter is not None and bool(voter.callbacks_left or voter.calls_left)
        self._pending = [
            (fault, since)
            for fault, since in self._pending
            if now < since + _effect_seconds(fault)
            or (doomed and fault.kind.startswith("kill-voter"))
        ]


def _effect_seconds(fault: SimFault) -> float:
    """Return the seconds for which a fault has an effect, according to its plan.

    Bytes that a slow link has delayed arrive after their delay, although the link is fast again.
    """
    delay = STALL * fault.amount if fault.kind == "slow-link" else 0.0
    return fault.seconds + delay


def _states(members: Iterable[Replica]) -> str:
    return "+".join(sorted(replica.state for replica in members))


def _situation(world: World) -> str:
    """Describe what the system is doing now."""
    runner = world.runner
    if runner is None:
        return "no voter runs"
    engine = runner.engine
    parts = [_states(engine.members)]
    if engine.pending:
        parts.append("batches under way" if engine.polls.batches else "votes under way")
    marker = engine.checkpoints.marker
    if marker is not None:
        fetching = marker.fetching_since is not None
        parts.append("state is fetched" if fetching else "digests are voted on")
    return ", ".join(parts)


@contextmanager
def _wrapping(watcher: _ReachWatcher) -> Iterator[None]:
    """Wrap the methods by which replicas change their state, and what becomes of batches."""
    move, split, settle, receive = Replica.move, Polls.split, Polls.settle_batch, Engine.receive
    event = ""

    @wraps(move)
    def moved(self: Replica, cause: Cause, reason: str) -> None:
        before = self.state
        move(self, cause, reason)
        watcher.moved(self, before, cause)

    @wraps(split)
    def watched_split(self: Polls) -> None:
        if self.batches:
            watcher.items["batch"].add(f"taken apart by {event}")
        split(self)

    @wraps(settle)
    def watched_settle(
        self: Polls, batch: Batch, payload: bytes, replies: list[bytes]
    ) -> dict[int, bytes]:
        ballots = settle(self, batch, payload, replies)
        lie = any(ballot != payload for ballot in ballots.values())
        watcher.items["batch"].add("settled against a lie" if lie else "settled")
        return ballots

    @wraps(receive)
    def watched_receive(self: Engine, received: Event) -> list[Effect]:
        nonlocal event
        event = type(received).__name__
        return receive(self, received)

    watched: tuple[tuple[type, str, Callable[..., Any]], ...] = (
        (Replica, "move", moved),
        (Polls, "split", watched_split),
        (Polls, "settle_batch", watched_settle),
        (Engine, "receive", watched_receive),
    )
    for owner, name, method in watched:
        setattr(owner, name, method)
    try:
        yield
    finally:
        unwatched = (move, split, settle, receive)
        for (owner, name, _), original in zip(watched, unwatched, strict=True):
            setattr(owner, name, original)


# ---------------------------------------------------------------- measuring


def reach(plan: SimPlan) -> Reached:
    """Make one run and return what it reached.  Raises RuntimeError if another tracer is active."""
    if "current" in vars(World):
        del World.current  # or its coroutines are closed while the tracer is active
    gc.collect()
    tracer = _Tracer()
    watcher = _ReachWatcher(tracer)
    with _wrapping(watcher):
        tracer.install()
        try:
            result = run(plan, watcher)
        finally:
            tracer.remove()
    watcher.items["branch"].update(tracer.texts())
    return Reached(result, {name: frozenset(texts) for name, texts in watcher.items.items()})


def measure(plans: Iterable[SimPlan]) -> ReachGroup:
    """Make a run of each plan and count how many runs reached each item."""
    runs = 0
    counts: dict[str, Counter[str]] = {dimension: Counter() for dimension in DIMENSIONS}
    for plan in plans:
        runs += 1
        for dimension, texts in reach(plan).items.items():
            counts[dimension].update(texts)
    return ReachGroup(runs, counts)


def compare(first: ReachGroup, second: ReachGroup) -> list[ReachDifference]:
    """Return what runs of the second group reached and no run of the first.

    Items that most runs reached come first, equal counts in the order of DIMENSIONS and text.
    """
    found = [
        ReachDifference(dimension, text, runs)
        for dimension in DIMENSIONS
        for text, runs in second.counts[dimension].items()
        if text not in first.counts[dimension]
    ]
    return sorted(found, key=lambda d: (-d.runs, DIMENSIONS.index(d.dimension), d.text))
