"""The promises that can be checked only when a run is over: what the clients saw, replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultinject.history.linearizability import HistoryCall, in_real_time, linearizable, register
from faultinject.simulation.clients import OperationOutcome, encode, request_of
from faultinject.simulation.guest import ROOT
from faultinject.simulation.plan import DEADLY
from faultinject.simulation.promises import PromiseObserver, Write
from guests.agent.incarnation import VOIDED
from guests.protocol.message import Reply, encode_reply
from guests.service import Context, answer
from guests.services.kv import KeyValue

if TYPE_CHECKING:
    from faultinject.simulation.world import World

__all__ = ["check", "excess"]

LIMIT = 18.0
"""Simulated seconds within which a request must be answered, whatever happens."""
QUICK = 0.3
"""... while at most one replica is faulty and nothing else."""
NOT_KEPT = "too long to be kept"
"""What a retry is told of a write whose long reply a full disk had no room for: executed, and the
reply is gone.  The README says so; it is no breach if the disk was full."""
NEEDLESS, OTHERS = 6, 5
"""Needless segments of the journal that may be there at rest, and files that are no segments."""
LONGEST = 24
"""Operations of one key that the exact checker takes on."""


def check(world: World) -> None:
    """Check everything that is left to check; breaches go to the observer."""
    observer = world.observer
    outcomes = [world.outcomes[index] for index in sorted(world.outcomes)]
    _check_replay(observer, outcomes)
    _check_guests(world)
    _check_order_in_time(observer, outcomes)
    _check_keys(observer, outcomes)
    _check_never_executed(observer, outcomes)
    _check_liveness(world, outcomes)
    _check_bounds(world)


def _check_replay(observer: PromiseObserver, outcomes: list[OperationOutcome]) -> None:
    """Every reply must be that of the service itself, run over the writes in order."""
    oracle = KeyValue()
    states = {ROOT: oracle.digest()}
    answered = sorted((o for o in outcomes if o.answer is not None), key=_place)
    acknowledged = {_place(o): o for o in answered}
    reads = [o for o in answered if encode(o)[1]]
    at = 0
    for write in observer.main:
        at = _check_reads(observer, oracle, reads, at, write.seq)
        context = Context(write.seq, write.time_ns, write.history, write.caller.decode())
        reply = answer(oracle, write.request, context)
        states[write.history] = oracle.digest()
        outcome = acknowledged.get(write.seq)
        if outcome is not None and outcome.operation.index != write.operation:
            observer.breach("Durability", f"place {write.seq} was acknowledged for another write")
        elif outcome is not None:
            _compare(observer, outcome, reply)
    _check_reads(observer, oracle, reads, at, 1 << 63)
    held = {write.seq for write in observer.main}
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


def _digest_at(observer: PromiseObserver, history: bytes) -> bytes | None:
    """Return the digest of the state that the writes up to ``history`` lead to.

    They need not be in the order that was left in the end: power may have been lost since, and
    with it writes that nobody was told of.
    """
    chain: list[Write] = []
    while history != ROOT:
        write = observer.writes.get(history)
        if write is None:
            return None
        chain.append(write)
        history = write.prev
    service = KeyValue()
    for write in reversed(chain):
        if not write.void:
            context = Context(write.seq, write.time_ns, write.history, write.caller.decode())
            answer(service, write.request, context)
    return service.digest()


def _place(outcome: OperationOutcome) -> int:
    return outcome.answer.vote.seq if outcome.answer is not None else 0


def _check_reads(
    observer: PromiseObserver, oracle: KeyValue, reads: list[OperationOutcome], at: int, before: int
) -> int:
    while at < len(reads) and _place(reads[at]) < before:
        place = _place(reads[at])
        reply = answer(oracle, encode(reads[at])[0], Context(place, 0, bytes(8), "", True))
        _compare(observer, reads[at], reply)
        at += 1
    return at


def _compare(observer: PromiseObserver, outcome: OperationOutcome, expected: bytes) -> None:
    seen = outcome.answer
    if seen is None:
        return
    headers, wanted = dict(seen.headers), Reply.decode(expected)
    if "via" in headers:  # over HTTP, with more headers
        told = (seen.status, seen.body, headers.get("etag"))
        same = told == (wanted.status, wanted.body, dict(wanted.headers).get("etag"))
    else:
        same = encode_reply(Reply(seen.status, seen.body, tuple(seen.headers))) == expected
    if not same:
        observer.breach(
            "Linearizability",
            f"operation {outcome.operation.index} ({outcome.operation.kind}) was answered "
            f"{seen.status} {seen.body!r} at {seen.vote.seq}, the order says "
            f"{wanted!r}",
        )


def _check_guests(world: World) -> None:
    """At rest all honest replicas hold the state that the order leads to."""
    if not world.quiet:
        return
    oracle = KeyValue()
    for write in world.observer.main:
        context = Context(write.seq, write.time_ns, write.history, write.caller.decode())
        answer(oracle, write.request, context)
    for guest in world.guests:
        service = guest.service
        if guest.honest and service is not None and service.digest() != oracle.digest():
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
    """The exact check of each key's history."""
    keys: dict[str, list[HistoryCall]] = {}
    for outcome in outcomes:
        operation, seen = outcome.operation, outcome.answer
        if (
            outcome.executed is False
            or operation.kind in DEADLY
            or (seen is None and operation.kind == "get")
        ):
            continue
        reply = None
        if seen is not None:
            told = next((value for name, value in seen.headers if name == "etag"), "?")
            reply = (seen.status, seen.body, told)
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
        # Undecided is no breach: the released places are a second witness (_check_order_in_time).
        if len(calls) <= LONGEST and linearizable(calls, register, None) is False:
            observer.breach("Linearizability", f"no order explains what was seen of key {key!r}")


def _check_never_executed(observer: PromiseObserver, outcomes: list[OperationOutcome]) -> None:
    """What a client was told is not executed must be nowhere."""
    executed: dict[int, Write] = {w.operation: w for w in observer.main if w.operation is not None}
    for outcome in outcomes:
        write = executed.get(outcome.operation.index)
        if outcome.executed is False and write is not None:
            observer.breach(
                "Fail-safe",
                f"operation {outcome.operation.index} was told not executed, and is at {write.seq}",
            )


def _check_liveness(world: World, outcomes: list[OperationOutcome]) -> None:
    """Every request gets its verdict in time; a reply, if at most one replica was faulty."""
    plan = world.plan
    quick = not plan.two and plan.only_replicas
    filled = any(fault.kind == "disk-full" for fault in plan.faults)
    if world.refused:
        return
    for outcome in outcomes:
        taken = outcome.ended - outcome.started
        name = f"operation {outcome.operation.index}"
        if plan.two or (filled and NOT_KEPT in outcome.failure):
            continue
        if taken > (QUICK if quick else LIMIT):
            world.observer.breach("Liveness", f"{name} took {taken:.1f} s ({outcome.failure})")
        elif outcome.answer is None and (
            (quick and outcome.started >= world.ready) or outcome.operation.client not in plan.plain
        ):
            world.observer.breach("Liveness", f"{name} got no reply: {outcome.failure}")


def _check_bounds(world: World) -> None:
    """Nothing is held that nobody needs any more."""
    runner = world.runner
    if runner is None or not world.quiet:
        return
    if runner.waiting or runner.engine.pending > 1:
        world.observer.breach(
            "Bounded",
            f"at rest {runner.waiting} clients and {runner.engine.pending} votes are waited for",
        )
    what = excess(world)
    if what:
        world.observer.breach("Bounded", what)


def excess(world: World) -> str:
    """Return in words what the journal keeps although nobody needs it; empty if it is little."""
    needless, others = _needless_segments(world)
    if needless <= NEEDLESS and others <= OTHERS:
        return ""
    return (
        f"the journal keeps {needless} segments that no checkpoint needs, and {others} other files"
    )


def _needless_segments(world: World) -> tuple[int, int]:
    """Return how many segments hold only what is in both checkpoints, and how many other files
    there are.

    What was written since the older one was made is not in it: membership and sessions, too.
    """
    files = world.disk.cached
    points = sorted(int(n[11:]) for n in files if n.startswith("checkpoint-") and n[11:].isdigit())
    segments = sorted(name for name in files if name.startswith("segment-"))
    if len(points) < 2:
        return 0, len(files) - len(segments)
    later = [write.history for write in world.observer.main if write.seq > points[-2]]
    since = world.observer.checkpoints.get(points[-2], "")
    needless = 0
    for name in segments[:-2]:  # the last one is written on, or empty
        if name >= since or any(history in files[name].cached for history in later):
            break
        needless += 1
    return needless, len(files) - len(segments)
