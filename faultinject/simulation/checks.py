"""The promises that can be checked only at the end of a run.

The writes that replicas hold are replayed in order through the service itself.  The replies that
clients got, the states that guests hold and the states that were restored are compared with that.
The linearizability checks use the clients' calls alone: they do not rely on the voter's order.
"""

from __future__ import annotations

from pathlib import Path

from deploy.replay.log import logged_writes
from faultinject.history.linearizability import HistoryCall, in_real_time, linearizable, register
from faultinject.history.model import ServiceModel
from faultinject.simulation.clients import OperationOutcome, encode, request_of
from faultinject.simulation.plan import ALL_OF_IT, DEADLY
from faultinject.simulation.promises import PromiseObserver, Write
from faultinject.simulation.world import World
from guests.agent.incarnation import VOIDED
from guests.protocol.message import Reply, encode_reply
from guests.protocol.wire import EMPTY_HISTORY
from voter.core.intake import NOT_KEPT
from voter.errors import JournalError
from voter.journal.history import HISTORY
from voter.journal.reader import JournalReader
from voter.journal.recovery import checkpoint_name

__all__ = ["check", "excess"]

LIMIT = 18.0
"""Simulated seconds within which a request must be answered, under any faults."""
QUICK = 0.3
"""The same while at most one replica is faulty and nothing else is."""
NEEDLESS, OTHERS = 6, 5
"""Most segments of the journal at rest that no checkpoint needs, and most other files."""
LONGEST = 24
"""Most operations on one key that the exact linearizability check handles."""


def check(world: World) -> None:
    """Check the outcome of a run; report breaches to the observer."""
    observer = world.observer
    outcomes = [world.outcomes[index] for index in sorted(world.outcomes)]
    digest = _check_replay(observer, outcomes)
    _check_guests(world, digest)
    _check_order_in_time(observer, outcomes)
    _check_keys(observer, outcomes)
    _check_never_executed(observer, outcomes)
    _check_liveness(world, outcomes)
    _check_bounds(world)
    _check_history(world)


def _check_replay(observer: PromiseObserver, outcomes: list[OperationOutcome]) -> bytes:
    """Check that every reply is that of the service, replayed over the writes in order.

    Return the digest of the state after all writes.
    """
    model = ServiceModel()
    states = {EMPTY_HISTORY: model.service.digest()}
    answered = sorted((o for o in outcomes if o.answer is not None), key=_place)
    acknowledged = {_place(o): o for o in answered}
    reads = [o for o in answered if encode(o)[1]]
    at = 0
    for write in observer.applied_order:
        at = _check_reads(observer, model, reads, at, write.seq)
        reply = _replay(model, write)
        states[write.history] = model.service.digest()
        outcome = acknowledged.get(write.seq)
        if outcome is not None and outcome.operation.index != write.operation:
            observer.breach("Durability", f"place {write.seq} was acknowledged for another write")
        elif outcome is not None:
            _compare(observer, outcome, reply)
    _check_reads(observer, model, reads, at, 1 << 63)
    held = {write.seq for write in observer.applied_order}
    for write in observer.writes.values():
        outcome = acknowledged.get(write.seq)
        if write.void and outcome is not None and outcome.operation.index == write.operation:
            held.add(write.seq)
            _compare(observer, outcome, VOIDED)
    for outcome in answered:
        if not encode(outcome)[1] and _place(outcome) not in held:
            observer.breach(
                "Durability",
                f"operation {outcome.operation.index} was acknowledged at {_place(outcome)}, and "
                f"no replica holds it",
            )
    for history, digest, guest in observer.restores:
        if states.get(history) != digest and _digest_at(observer, history) != digest:
            observer.breach(
                "Order", f"guest {guest} was restored to a state that is not the one at its place"
            )
    return model.service.digest()


def _digest_at(observer: PromiseObserver, history: bytes) -> bytes | None:
    """Return the digest of the state after the writes up to ``history``; None if one is unknown.

    The writes need not be part of the final order: a later power loss may have removed writes to
    which no reply was released.
    """
    chain: list[Write] = []
    while history != EMPTY_HISTORY:
        write = observer.writes.get(history)
        if write is None:
            return None
        chain.append(write)
        history = write.prev
    model = ServiceModel()
    for write in reversed(chain):
        if not write.void:
            _replay(model, write)
    return model.service.digest()


def _replay(model: ServiceModel, write: Write) -> bytes:
    """Apply a write exactly as the replicas do; return the reply."""
    return model.apply(
        write.request,
        write.seq,
        time_ns=write.time_ns,
        history=write.history,
        caller=write.caller.decode(),
    )


def _place(outcome: OperationOutcome) -> int:
    return outcome.answer.vote.seq if outcome.answer is not None else 0


def _check_reads(
    observer: PromiseObserver,
    model: ServiceModel,
    reads: list[OperationOutcome],
    at: int,
    before: int,
) -> int:
    """Check the reads from index ``at`` on whose sequence number is below ``before``."""
    while at < len(reads) and _place(reads[at]) < before:
        place = _place(reads[at])
        reply = VOIDED
        if reads[at].operation.kind not in DEADLY and not _is_unlucky(observer, reads[at]):
            reply = model.apply(encode(reads[at])[0], place, read_only=True)
        _compare(observer, reads[at], reply)
        at += 1
    return at


def _is_unlucky(observer: PromiseObserver, outcome: OperationOutcome) -> bool:
    """Return whether a read was answered that it is void, and injected faults explain that."""
    name = encode(outcome)[0].partition(b"\r\n")[0]
    since = observer.unlucky_reads.get(name, float("inf"))
    answer, void = outcome.answer, Reply.decode(VOIDED)
    same = answer is not None and (answer.status, answer.body) == (void.status, void.body)
    return same and outcome.ended >= since


def _compare(observer: PromiseObserver, outcome: OperationOutcome, expected: bytes) -> None:
    seen = outcome.answer
    if seen is None:
        return
    headers, wanted = dict(seen.headers), Reply.decode(expected)
    if "via" in headers:  # over HTTP, with more headers
        got = (seen.status, seen.body, headers.get("etag"))
        same = got == (wanted.status, wanted.body, dict(wanted.headers).get("etag"))
    else:
        same = encode_reply(Reply(seen.status, seen.body, tuple(seen.headers))) == expected
    if not same:
        observer.breach(
            "Linearizability",
            f"operation {outcome.operation.index} ({outcome.operation.kind}) was answered "
            f"{seen.status} {seen.body!r} at {seen.vote.seq}, the order gives "
            f"{wanted.status} {bytes(wanted.body)!r}",
        )


def _check_guests(world: World, digest: bytes) -> None:
    """Check that at rest all honest replicas hold the state after all writes of the order."""
    if not world.at_rest:
        return
    for guest in world.guests:
        service = guest.service
        if guest.honest and service is not None and service.digest() != digest:
            world.observer.breach(
                "Order", f"guest {guest.index} holds a state that the order does not lead to"
            )


def _check_order_in_time(observer: PromiseObserver, outcomes: list[OperationOutcome]) -> None:
    places = [(o.started, o.ended, _place(o)) for o in outcomes if o.answer is not None]
    wrong = in_real_time(places)
    if wrong is not None:
        observer.breach(
            "Linearizability",
            f"what was released at {wrong[0]} had ended before what is at {wrong[1]} began",
        )


def _check_keys(observer: PromiseObserver, outcomes: list[OperationOutcome]) -> None:
    """Check the calls on each key for linearizability.

    A voided write has no effect.  Injected losses of replicas can void any write, not only those
    that kill; ``_check_replay`` checks its reply.
    """
    void = {(write.operation, write.seq) for write in observer.writes.values() if write.void}
    keys: dict[str, list[HistoryCall]] = {}
    for outcome in outcomes:
        operation, seen = outcome.operation, outcome.answer
        if (
            outcome.executed is False
            or operation.kind in DEADLY
            or (seen is None and operation.kind == "get")
            or _is_unlucky(observer, outcome)
            or (seen is not None and (operation.index, _place(outcome)) in void)
        ):
            continue
        reply = None
        if seen is not None:
            tag = next((value for name, value in seen.headers if name == "etag"), "?")
            reply = (seen.status, seen.body, tag)
        keys.setdefault(operation.key, []).append(
            HistoryCall(
                outcome.started,
                outcome.ended if seen is not None else float("inf"),
                operation.kind,
                request_of(outcome)[2],
                outcome.condition,
                reply,
            )
        )
    for key, calls in keys.items():
        # Undecided is no breach: _check_order_in_time is a second check.
        if len(calls) <= LONGEST and linearizable(calls, register, None) is False:
            observer.breach("Linearizability", f"no order explains what was seen of key {key!r}")


def _check_never_executed(observer: PromiseObserver, outcomes: list[OperationOutcome]) -> None:
    """Check that no write that was reported as not executed is part of the order."""
    executed: dict[int, Write] = {
        w.operation: w for w in observer.applied_order if w.operation is not None
    }
    for outcome in outcomes:
        write = executed.get(outcome.operation.index)
        if outcome.executed is False and write is not None:
            observer.breach(
                "Fail-safe",
                f"operation {outcome.operation.index} reported not executed, is at {write.seq}",
            )


def _check_liveness(world: World, outcomes: list[OperationOutcome]) -> None:
    """Check that every request ended in time, and with a reply where one is promised."""
    plan = world.plan
    quick = not plan.two_faulty and plan.only_replicas
    filled = any(fault.kind == "disk-full" for fault in plan.faults)
    if world.refuses_to_start:
        return
    for outcome in outcomes:
        taken = outcome.ended - outcome.started
        name = f"operation {outcome.operation.index}"
        # A full disk has no room for the long reply of an executed write (reference/behaviour.md).
        if plan.two_faulty or (filled and NOT_KEPT in outcome.failure):
            continue
        if taken > (QUICK if quick else LIMIT):
            world.observer.breach("Liveness", f"{name} took {taken:.1f} s ({outcome.failure})")
        elif outcome.answer is None and (
            outcome.operation.client not in plan.clients_without_retry
            or (quick and outcome.started >= world.ready_at)
        ):
            world.observer.breach("Liveness", f"{name} got no reply: {outcome.failure}")


def _check_bounds(world: World) -> None:
    """Check that at rest neither the voter nor the journal keeps what is not needed."""
    runner = world.runner
    if runner is None or not world.at_rest:
        return
    if runner.waiting or runner.engine.pending > 1:
        world.observer.breach(
            "Bounded",
            f"at rest {runner.waiting} clients and {runner.engine.pending} votes are waited for",
        )
    problem = excess(world)
    if problem:
        world.observer.breach("Bounded", problem)


def excess(world: World) -> str:
    """Describe what the journal keeps without need; empty if it is within the limits."""
    kept = [inode for name, inode in world.disk.cached.items() if name.startswith(HISTORY)]
    size = sum(len(inode.cached) for inode in kept)
    if size > world.plan.history:
        return f"the history has {size} bytes, more than {world.plan.history}"
    needless, others = _needless_segments(world)
    if needless <= NEEDLESS and others <= OTHERS:
        return ""
    return (
        f"the journal keeps {needless} segments that no checkpoint needs, and {others} other files"
    )


def _needless_segments(world: World) -> tuple[int, int]:
    """Return the number of segments that no checkpoint needs, and of files that are no segments.

    A segment is needed if it holds entries written since the older checkpoint was made: writes,
    and also changes of membership and opened sessions.
    """
    files = {
        name: inode for name, inode in world.disk.cached.items() if not name.startswith(HISTORY)
    }
    points = sorted(int(n[11:]) for n in files if n.startswith("checkpoint-") and n[11:].isdigit())
    segments = sorted(name for name in files if name.startswith("segment-"))
    if len(points) < 2:
        return 0, len(files) - len(segments)
    later = [write.history for write in world.observer.applied_order if write.seq > points[-2]]
    since = world.observer.checkpoints.get(points[-2], "")
    needless = 0
    for name in segments[:-2]:  # the last one is in use, or empty
        if name >= since or any(history in files[name].cached for history in later):
            break
        needless += 1
    return needless, len(files) - len(segments)


class _DiskFiles:
    """The files of a simulated disk, for a reader of the journal."""

    def __init__(self, world: World) -> None:
        self._files = world.disk.cached

    def names(self) -> list[str]:
        """Return the names of all files, those of the history without their prefix."""
        return sorted({name.removeprefix(HISTORY) for name in self._files})

    def read(self, name: str, most: int = -1) -> tuple[bytes, str] | None:
        """Return a file's bytes and its place; None if there is none."""
        for place in (name, HISTORY + name):
            if place in self._files:
                data = bytes(self._files[place].cached)
                return (data if most < 0 else data[:most]), place
        return None


def _check_history(world: World) -> None:
    """Check that a reader finds all writes after each checkpoint that is kept, in their order.

    With room for all of it, and a disk that was never full, that is so from the first write on.
    """
    plan, observer = world.plan, world.observer
    if not plan.history or world.disk_damaged or world.refuses_to_start or not world.at_rest:
        return
    try:
        reader = JournalReader(Path("journal"), _DiskFiles(world))
        checkpoints = reader.checkpoints()
        filled = any(fault.kind == "disk-full" for fault in plan.faults)
        if plan.history == ALL_OF_IT and not filled and checkpoints[0].seq:
            observer.breach("Durability", f"the history begins at {checkpoints[0].seq}")
        found = {checkpoint_name(each.seq) for each in checkpoints}
        kept = {name for name in world.disk.cached if name.startswith(f"{HISTORY}checkpoint-")}
        if lost := kept - {HISTORY + name for name in found}:
            observer.breach("Durability", f"the history cannot be read from {sorted(lost)} on")
        for checkpoint in checkpoints:
            reader.load(checkpoint)
            logged = logged_writes(reader.entries(checkpoint))
            hashes = [write.record.history for write in logged if not write.void]
            applied = [w.history for w in observer.applied_order if w.seq > checkpoint.seq]
            if hashes[: len(applied)] != applied:
                text = f"the history after {checkpoint.seq} is not that of the replicas"
                observer.breach("Durability", text)
    except JournalError as error:
        observer.breach("Durability", f"the history cannot be read: {error}")
