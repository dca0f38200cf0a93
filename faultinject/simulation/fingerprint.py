"""Fingerprint a run: hashes of what the engine decided, what the disk holds, what clients got.

Two versions of the source that behave alike have equal fingerprints for every seed, so a change
that is meant to alter no behaviour is checked by comparing the output of
``trivisor simulate --fingerprint --seeds A..B`` before and after it.  Effects are hashed by the
position of their class in ``voter.core.events`` and by their values, so that classes and fields
may be renamed; texts (reasons, details) are part of the values.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from faultinject.simulation.plan import SimFault, SimPlan
from faultinject.simulation.run import run
from faultinject.simulation.world import World
from voter.core import entries
from voter.core import events as ev
from voter.runner import Runner

__all__ = ["Fingerprint", "fingerprint"]

_CLASSES = {
    kind: b"%d" % index
    for index, kind in enumerate((*ev.Effect.__subclasses__(), *entries.Entry.__args__))
}


class Fingerprint(NamedTuple):
    """Hex digests of one run.

    ``trace``: what the network delivered, and when.  ``effects``: every effect of the engine in
    order, released replies included.  ``journal``: the bytes of all files at each start of the
    voter and at the end.  ``clients``: the outcome of each operation.
    """

    seed: int
    trace: str
    effects: str
    journal: str
    clients: str


class _Recorder:
    """A watcher that hashes what it observes."""

    def __init__(self) -> None:
        self._world: World | None = None
        self.effects = blake2b(digest_size=16)
        self.journal = blake2b(digest_size=16)
        self.clients = blake2b(digest_size=16)

    def attach(self, world: World) -> None:
        """Keep the world."""
        self._world = world

    def fault(self, fault: SimFault, what: str) -> None:
        """Do nothing: the plan determines the faults."""

    def watch_runner(self, runner: Runner) -> None:
        """Hash the disk as this voter finds it, and all effects of its engine."""
        self._hash_disk()
        engine = runner.engine
        for name in ("receive", "begin"):
            setattr(engine, name, self._watched(getattr(engine, name)))

    def _watched(self, method: Any) -> Any:
        def watched(argument: Any) -> list[ev.Effect]:
            effects: list[ev.Effect] = method(argument)
            for effect in effects:
                _update(self.effects, effect)
            return effects

        return watched

    def _hash_disk(self) -> None:
        if self._world is None:
            return
        disk = self._world.disk
        for files in (disk.cached, disk.stored):
            for name, inode in sorted(files.items()):
                _update(self.journal, (name, bytes(inode.cached), bytes(inode.stored)))

    def finish(self) -> None:
        """Hash the disk and the clients' outcomes at the end."""
        self._hash_disk()
        for index, outcome in sorted(self._world.outcomes.items() if self._world else ()):
            answer = outcome.answer
            # Without the reply's headers, which hold the date.
            got = None if answer is None else (answer.status, answer.body, *answer.vote)
            _update(self.clients, (index, outcome.ended, outcome.executed, got))


def _update(digest: Any, item: Any) -> None:
    """Hash a value, structs by class and fields, containers by their items."""
    if isinstance(item, msgspec.Struct):
        digest.update(b"(" + _CLASSES.get(type(item), b""))
        for field in item.__struct_fields__:
            _update(digest, getattr(item, field))
    elif isinstance(item, tuple | list):
        digest.update(b"[%d" % len(item))
        for value in item:
            _update(digest, value)
    elif isinstance(item, dict):
        _update(digest, list(item.items()))
    elif isinstance(item, bytes | bytearray | memoryview):
        digest.update(b"b%d:" % len(item) + item)
    else:
        digest.update(str(item).encode() + b";")


def fingerprint(plan: SimPlan) -> Fingerprint:
    """Run a plan; return its fingerprint."""

    recorder = _Recorder()
    result = run(plan, recorder)
    return Fingerprint(
        plan.seed,
        result.trace,
        recorder.effects.hexdigest(),
        recorder.journal.hexdigest(),
        recorder.clients.hexdigest(),
    )
