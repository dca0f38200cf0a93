"""What runs reach: branches of the code, moves of replicas, and faults that overlap.

A range of seeds that passes proves nothing about situations that none of its runs was in.  This
module measures which situations those are.  ``reach`` makes one run and returns what it reached,
``measure`` counts over many runs, and ``compare`` returns what only the second of two groups
reached.  The code measured is that of the tree from which this module is imported.

Branches come from ``sys.settrace``, for the files in ``MEASURED`` only.  The rest comes from
methods that are wrapped while ``watching`` lasts.  Wrappers and tracer only read: a run takes the
same course with them, and has the same trace hash.  A traced run takes about four times as long.
"""

from __future__ import annotations

import gc
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import wraps
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from faultinject.simulation.faults import SimFaultInjector
from faultinject.simulation.loop import Process
from faultinject.simulation.plan import SimFault, SimPlan
from faultinject.simulation.world import RunResult, World, run
from voter.core.replica import Cause, Replica, State

__all__ = [
    "DIMENSIONS", "MEASURED", "ReachDifference", "ReachGroup", "Reached", "compare",
    "describe_plan",
    "measure", "planned_pairs", "reach",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
"""The top of the tree that is measured."""
MEASURED = (
    "voter/core/*.py", "voter/journal/*.py", "voter/runner.py", "voter/link.py",
    "guests/agent/incarnation.py",
)  # fmt: skip
"""Files whose branches are measured, relative to the top of the tree."""
DIMENSIONS = (
    "branch", "transition", "reason", "transition pair", "states", "fault pair", "fault at",
    "voter death", "plan",
)  # fmt: skip
"""What is measured.

``branch``: an arc between two lines of one function; it may also leave the function or raise.
``transition``: a replica's state before, the cause, and its state after.
``reason``: a transition with the reason that the engine gave, its numbers left out.
``transition pair``: two consecutive transitions, of the same replica or of another one.
``states``: the states of all replicas right after a transition, sorted.
``fault pair``: two kinds, where the second fault began before the system had recovered from the
first.  Recovered means: all replicas vote, and what the first delayed or broke is over.
``fault at``: a kind, and the situation in which a fault of that kind began.
``voter death``: the situation in which a voter ended, and how many ended since all replicas voted.
``plan``: the parameters that the plan was drawn with.
"""
STALL = 0.01
"""Seconds by which ``slow-link`` delays each delivery, for each unit of its amount."""
LEAVES, RAISES = 0, -1
"""In place of an arc's second line."""
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?")

Arc = tuple[int, int]


class Reached(NamedTuple):
    """What one run reached: for each of ``DIMENSIONS`` the texts, each one once."""

    result: RunResult
    items: dict[str, frozenset[str]]


class ReachGroup(NamedTuple):
    """How many runs of a group reached each text of each dimension."""

    runs: int
    counts: dict[str, Counter[str]]


class ReachDifference(NamedTuple):
    """A text that runs of one group reached and no run of the other: ``runs`` of them."""

    dimension: str
    text: str
    runs: int


# ------------------------------------------------------------------ branches


class _Tracer:
    """Collects the arcs of the measured files while it is installed."""

    def __init__(self) -> None:
        self._arcs: dict[str, set[Arc] | None] = {}  # by file name as compiled; None: not measured

    def install(self) -> None:
        """Start to trace this thread.  Raises RuntimeError if something else traces it."""
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
                words = {LEAVES: "leaves", RAISES: "raises"}.get(last, str(last))
                yield f"{short}:{first}->{words}"

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
    """Return a file's name relative to the tree; as it is if the file is elsewhere."""
    path = Path(name)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else name


def _is_measured(name: str) -> bool:
    return any(fnmatch(_short(name), pattern) for pattern in MEASURED)


# --------------------------------------------------------------- the system


class _Watcher:
    """Notes what one run reaches besides branches."""

    def __init__(self) -> None:
        self.items: dict[str, set[str]] = {dimension: set() for dimension in DIMENSIONS}
        self._pending: list[tuple[SimFault, float]] = []  # begun, and the system has not recovered
        self._deaths = 0  # voters that ended since all replicas voted
        self._last: tuple[int, str] | None = None  # the last transition
        self.over = False  # the run is being taken apart: what happens now is no part of it

    def _recover(self, world: World) -> None:
        """Forget the faults that are over, if all replicas vote now."""
        if not world.all_vote:
            return
        now, voter = world.loop.time(), world.voter
        doomed = voter is not None and bool(voter.fuse or voter.call_fuse)
        self._pending = [
            (fault, since)
            for fault, since in self._pending
            if now < since + _lasts(fault) or (doomed and fault.kind.startswith("kill-voter"))
        ]
        self._deaths = 0

    def begins(self, world: World, fault: SimFault) -> None:
        """Note that a fault begins."""
        self._recover(world)
        for before, _ in self._pending:
            self.items["fault pair"].add(f"{before.kind}, then {fault.kind}")
        self._pending.append((fault, world.loop.time()))
        self.items["fault at"].add(f"{fault.kind} while {_situation(world)}")

    def moves(self, world: World, replica: Replica, before: State, cause: Cause) -> None:
        """Note that a replica has changed its state."""
        if self.over:
            return
        text = f"{before} -{cause}-> {replica.state}"
        self.items["transition"].add(text)
        self.items["reason"].add(f"{text} ({_NUMBER.sub('N', replica.reason)})")
        if self._last is not None:
            whose = "same" if self._last[0] == replica.index else "other"
            self.items["transition pair"].add(f"{self._last[1]}, then {whose} {text}")
        self._last = replica.index, text
        runner = world.runner
        if runner is not None:
            self.items["states"].add(_states(runner.engine.members))
            if replica.state is State.ACTIVE:
                self._recover(world)

    def dies(self, world: World) -> None:
        """Note that the voter is about to end."""
        if self.over:
            return
        self._recover(world)
        self._deaths += 1
        text = f"{_situation(world)}; death {min(self._deaths, 4)} since all voted"
        self.items["voter death"].add(text)


def _lasts(fault: SimFault) -> float:
    """Return for how many seconds a fault has an effect, as far as its plan says.

    What a slow link has delayed arrives only after its delay, though the link is fast again and
    the voter still calls the replica active.
    """
    delay = STALL * fault.amount if fault.kind == "slow-link" else 0.0
    return fault.seconds + delay


def _states(members: Iterable[Replica]) -> str:
    return "+".join(sorted(replica.state for replica in members))


def _situation(world: World) -> str:
    """Return in words what the system is doing now."""
    runner = world.runner
    if runner is None:
        return "no voter runs"
    engine = runner.engine
    words = [_states(engine.members)]
    if engine.pending:
        words.append("votes under way")
    marker = engine.checkpoints.marker
    if marker is not None:
        fetching = marker.fetching_since is not None
        words.append("state is fetched" if fetching else "digests are voted on")
    return ", ".join(words)


@contextmanager
def _watching(watcher: _Watcher, tracer: _Tracer) -> Iterator[None]:
    """Wrap the methods that show what a run does, as long as this lasts."""
    move, kill, end = Replica.move, Process.kill, World.end
    begin, begin_replica = SimFaultInjector._begin, SimFaultInjector._begin_replica

    @wraps(move)
    def moved(self: Replica, cause: Cause, reason: str) -> None:
        before = self.state
        move(self, cause, reason)
        watcher.moves(World.current, self, before, cause)

    @wraps(kill)
    def killed(self: Process) -> None:
        world = World.current
        if self.alive and self is world.voter:
            watcher.dies(world)
        kill(self)

    @wraps(end)
    def ended(self: World) -> None:
        watcher.over = True
        tracer.remove()
        end(self)

    def noting(
        method: Callable[[SimFaultInjector, SimFault], Any],
    ) -> Callable[[SimFaultInjector, SimFault], Any]:
        @wraps(method)
        def begun(self: SimFaultInjector, fault: SimFault) -> Any:
            watcher.begins(self._world, fault)
            return method(self, fault)

        return begun

    wrapped = (
        (Replica, "move", move, moved),
        (Process, "kill", kill, killed),
        (World, "end", end, ended),
        (SimFaultInjector, "_begin", begin, noting(begin)),
        (SimFaultInjector, "_begin_replica", begin_replica, noting(begin_replica)),
    )
    for owner, name, _, wrapper in wrapped:
        setattr(owner, name, wrapper)
    try:
        yield
    finally:
        for owner, name, original, _ in wrapped:
            setattr(owner, name, original)


# -------------------------------------------------------------------- plans


def describe_plan(plan: SimPlan) -> dict[str, str]:
    """Return the parameters that a plan was drawn with, as text."""
    pauses = [operation.pause for operation in plan.operations]
    mean = sum(pauses) / len(pauses) if pauses else 0.0
    gaps = [later.at - earlier.at for earlier, later in pairwise(plan.faults)]
    return {
        "durability": plan.durability,
        "two": str(plan.two),
        "delay": f"{plan.delay:g}",
        "split": f"{plan.split:g}",
        "marker_every": str(plan.marker_every),
        "segment": str(plan.segment),
        "block": str(plan.block),
        "faults": str(len(plan.faults)),
        # The gap drawn is 0.002, 0.01 or 0.04 s; the mean of the pauses tells which one it was.
        "operation gap": "0.002" if mean < 0.0045 else "0.01" if mean < 0.02 else "0.04",
        "least gap between faults": (
            "none" if not gaps else "< 0.05" if min(gaps) < 0.05 else "< 0.2" if min(gaps) < 0.2
            else ">= 0.2"
        ),
        "deadly": str(plan.deadly),
        "plain clients": str(len(plan.plain)),
        "clients over HTTP": str(len(plan.keyed)),
    }  # fmt: skip


def planned_pairs(plan: SimPlan, within: float) -> frozenset[str]:
    """Return the ordered pairs of kinds whose planned times are at most ``within`` seconds apart.

    The plan alone decides it.  Whether the faults meet in the run is what ``fault pair`` counts.
    """
    return frozenset(
        f"{first.kind}, then {second.kind}"
        for at, first in enumerate(plan.faults)
        for second in plan.faults[at + 1 :]
        if second.at - first.at <= within
    )


# ---------------------------------------------------------------- measuring


def reach(plan: SimPlan, *, branches: bool = True) -> Reached:
    """Make one run and return what it reached.

    Without ``branches`` that dimension stays empty, and the run takes little longer than usual.
    Raises RuntimeError if branches are wanted while another tracer is active.
    """
    if "current" in vars(World):
        # Free the previous run now: else its coroutines are closed while the tracer is active.
        del World.current
    gc.collect()
    tracer, watcher = _Tracer(), _Watcher()
    with _watching(watcher, tracer):
        if branches:
            tracer.install()
        try:
            result = run(plan)
        finally:
            tracer.remove()
    watcher.items["branch"].update(tracer.texts())
    watcher.items["plan"].update(f"{name}: {value}" for name, value in describe_plan(plan).items())
    return Reached(result, {name: frozenset(texts) for name, texts in watcher.items.items()})


def measure(plans: Iterable[SimPlan], *, branches: bool = True) -> ReachGroup:
    """Make a run of each plan and count how many runs reached each text."""
    runs = 0
    counts: dict[str, Counter[str]] = {dimension: Counter() for dimension in DIMENSIONS}
    for plan in plans:
        runs += 1
        for dimension, texts in reach(plan, branches=branches).items.items():
            counts[dimension].update(texts)
    return ReachGroup(runs, counts)


def compare(first: ReachGroup, second: ReachGroup) -> list[ReachDifference]:
    """Return what runs of the second group reached and no run of the first.

    What most runs reached comes first; equal numbers are in the order of ``DIMENSIONS`` and text.
    """
    found = [
        ReachDifference(dimension, text, runs)
        for dimension in DIMENSIONS
        for text, runs in second.counts[dimension].items()
        if text not in first.counts[dimension]
    ]
    return sorted(found, key=lambda d: (-d.runs, DIMENSIONS.index(d.dimension), d.text))
