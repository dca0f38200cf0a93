"""Linearizability of the clients' history.  It uses neither the service model nor the voter.

``linearizable`` is the algorithm of Wing and Gong with Lowe's memory of visited states.  It
searches for an order of the operations on one key that respects real time and in which every reply
is right.  It is for small histories: its time is exponential in the number of operations that
overlap.

``in_real_time`` checks a long history by a witness: the place at which each reply was released.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

__all__ = ["HistoryCall", "ModelState", "Step", "in_real_time", "linearizable", "register"]

ModelState = Hashable
Step = Callable[[ModelState, "HistoryCall"], list[ModelState]]
"""The possible states after a call, from a state.  Empty if the reply is wrong there."""


class HistoryCall(NamedTuple):
    """One operation on a key, with the times when it began and ended (infinite: no reply).

    If ``reply`` is None, its outcome is unknown: it may take effect at any time after ``started``,
    or never.
    """

    started: float
    ended: float
    kind: str
    argument: bytes = b""
    condition: str = ""
    reply: tuple[int, bytes, str] | None = None  # status, body, entity tag


def linearizable(
    calls: Sequence[HistoryCall], step: Step, first: ModelState, most: int = 20_000
) -> bool | None:
    """Return whether there is an order that explains all replies.

    Return None if that is not decided after ``most`` states.  The number of states grows
    exponentially with the number of operations that overlap or have no reply.
    """
    calls = sorted(calls, key=lambda call: call.started)
    must = sum(1 << at for at, call in enumerate(calls) if call.reply is not None)
    seen: set[tuple[int, ModelState]] = set()
    stack: list[tuple[int, ModelState]] = [(0, first)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > most:
            return None
        # No operation may precede one that had ended before it began.
        left = [at for at in range(len(calls)) if not done >> at & 1]
        horizon = min(calls[at].ended for at in left)
        for at in left:
            if calls[at].started > horizon:
                break
            stack += [(done | 1 << at, after) for after in step(state, calls[at])]
    return False


def register(state: ModelState, call: HistoryCall) -> list[ModelState]:
    """Apply a call to a key of the key-value service: ``(value, tag)``, or None if it is absent.

    The tag is ``"?"`` if no reply contained it.  A condition on it may then hold or not.
    """
    value, tag = state if isinstance(state, tuple) else (None, "")
    reply = call.reply
    status, body, etag = reply if reply is not None else (0, b"", "?")
    if call.kind == "get":
        if value is None:
            return [None] if status in (0, 404) else []
        if reply is not None and (status, body) != (200, value):
            return []
        return _same_tag(value, tag, etag)
    holds = _condition_holds(call, value, tag)
    after: list[ModelState] = []
    if holds is not True and status in (0, 412):
        after.append(state)
    if holds is False:
        return after
    if call.kind == "delete":
        if status in (0, 404 if value is None else 204):
            after.append(None)
    elif call.kind == "increment":
        after += _increment(value, tag, reply)
    elif status in (0, 201 if value is None else 204):
        after.append((call.argument, etag))
    return after


def _same_tag(value: bytes, tag: str, etag: str) -> list[ModelState]:
    if etag == "?" or tag == etag:
        return [(value, tag)]
    return [(value, etag)] if tag == "?" else []


def _condition_holds(call: HistoryCall, value: bytes | None, tag: str) -> bool | None:
    """Return whether the condition holds; None if that is unknown."""
    if call.kind == "create":
        return value is None
    if call.kind != "swap":
        return True
    if value is None:
        return False
    return None if tag == "?" else tag == call.condition


def _increment(
    value: bytes | None, tag: str, reply: tuple[int, bytes, str] | None
) -> list[ModelState]:
    try:
        total = b"%d" % (int(value or b"0") + 1)
    except ValueError:
        return [(value, tag)] if reply is None or reply[0] == 409 else []
    if reply is None:
        return [(total, "?")]
    return [(total, reply[2])] if reply[:2] == (200, total) else []


def in_real_time(places: Sequence[tuple[float, float, int]]) -> tuple[int, int] | None:
    """Check (started, ended, place) of a long history against real time.

    Return the places of two operations in the wrong order: the first had ended before the second
    began, and yet comes after it.  Return None if there are none.
    """
    ends = sorted((ended, place) for _, ended, place in places)
    at, highest = 0, -1
    for started, _, place in sorted(places):
        while at < len(ends) and ends[at][0] < started:
            highest = max(highest, ends[at][1])
            at += 1
        if place < highest:
            return highest, place
    return None
