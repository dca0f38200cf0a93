"""What happened to recent requests: recorded as it happens, put together when somebody asks.

Theory of operation.  The runner records frames and turns of its loop, not requests: a batch of 64
costs as much as one request.  A record is a plain tuple in a deque that drops its oldest.  Times
are those of the runner's steady clock, which it has read anyway.  ``Tracer.trace`` finds the
records of a request by binary search, because sequence numbers, journal positions and times grow.

A request has these names: its sequence number; over HTTP, the ids that its client gave or the one
that the voter made (``voter.frontend.request_id``); for a native client, SESSION:NUMBER.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from math import inf
from operator import itemgetter
from typing import Any, TypeVar

from guests.protocol.wire import count_replies
from voter.core import events as ev
from voter.core.dedup import DedupTable
from voter.core.entries import Record

__all__ = ["LATENCY_BOUNDS", "Tracer", "UnknownRequest"]

LATENCY_BOUNDS = tuple(base * 10.0**power for power in range(-5, 2) for base in (1, 2, 5))
"""Upper bounds in seconds of the latency histogram's buckets (10 us to 50 s)."""
FRAMES = 16384
"""Frames of orders, turns of the loop, and frames of each replica that are kept: about 16 MB."""
RARE = 4096
"""Failures, changes of replicas and orders sent again that are kept."""
NAMED = 8192
"""Requests whose ids are kept."""
KEPT = 256
"""Traces of exemplars that outlive their records."""

_EVENTS = (
    "received", "ordered", "journaled", "sent", "synced", "sent-again", "answered", "left",
    "dissented", "decided", "released", "failed",
)  # fmt: skip
"""What may happen to a request, in the usual order."""
_RANKS = {event: rank for rank, event in enumerate(_EVENTS)}

Trace = dict[str, Any]
_Step = tuple[float, str, Trace]
_Order = tuple[float, int, int, int, int]
"""Time, first sequence number, requests, bit mask of replicas, journal position they need."""
T = TypeVar("T", bound=tuple[Any, ...])


class UnknownRequest(LookupError):
    """No request has this id, or its records are no longer kept."""


class Tracer:
    """Records of one runner's requests.  ``need`` replicas must agree."""

    def __init__(self, names: Sequence[str], need: int) -> None:
        self._names = names
        self._need = need
        self._orders: deque[_Order] = deque(maxlen=FRAMES)
        self._last = 0  # last sequence number that was ordered
        # (time written, time sent, last seq, journal position, mask of links that hold nothing)
        self._flushes: deque[tuple[float, float, int, int, int]] = deque(maxlen=FRAMES)
        self._syncs: deque[tuple[float, int]] = deque(maxlen=FRAMES)  # time, position
        # By replica: (time, first seq, requests, whether the vote was decided after that)
        self._answers: list[deque[tuple[float, int, int, bool]]] = [
            deque(maxlen=FRAMES) for _ in names
        ]
        # (time, received, first ticket, first seq, requests, agreed, dissent, replayed)
        self._releases: deque[tuple[float, float, int, int, int, int, tuple[int, ...], bool]] = (
            deque(maxlen=FRAMES)
        )
        self._again: deque[tuple[float, int, int]] = deque(maxlen=RARE)  # time, seq, mask
        self._failures: deque[tuple[float, float, ev.Fail]] = deque(maxlen=RARE)  # time, received
        self._changes: deque[tuple[float, ev.Changed]] = deque(maxlen=RARE)
        self._ids: OrderedDict[int, tuple[str, ...]] = OrderedDict()  # by ticket
        self._kept: OrderedDict[int, Trace] = OrderedDict()  # by sequence number
        self.tap: Callable[[list[Record]], None] | None = None
        """Gets the records of each order, if somebody reads them (``voter.request_tap``)."""
        self.exemplars: dict[int, tuple[float, float, int, int]] = {}
        """The last request in each bucket: latency, time of release, seq, ticket."""

    # ------------------------------------------------------------- recording

    def begin(self, last: int) -> None:
        """Continue after a voter that used sequence numbers up to ``last``."""
        self._last = last

    def identify(self, ticket: int, ids: tuple[str, ...]) -> None:
        """Record the ids of a request."""
        self._ids[ticket] = ids
        if len(self._ids) > NAMED:
            self._ids.popitem(last=False)

    def ordered(self, now: float, records: list[Record], replicas: int, position: int) -> None:
        """Record requests that are sent to ``replicas`` (a bit mask)."""
        first = records[0].seq
        if first > self._last:
            self._last = first + len(records) - 1
            self._orders.append((now, first, len(records), replicas, position))
            if self.tap is not None:
                self.tap(records)
        else:
            self._again += [(now, record.seq, replicas) for record in records]

    def flushed(self, written: float, sent: float, position: int, links: int) -> None:
        """Record the end of a turn: the journal was written, then links that hold nothing."""
        self._flushes.append((written, sent, self._last, position, links))

    def synced(self, now: float, position: int) -> None:
        """Record that the journal is durable up to a position."""
        self._syncs.append((now, position))

    def answered(self, now: float, event: ev.Answered | ev.AnsweredAll, decided: bool) -> None:
        """Record a frame of a replica's replies; ``decided``: its vote is settled now."""
        count = count_replies(event.replies) if type(event) is ev.AnsweredAll else 1
        self._answers[event.replica].append((now, event.seq, count, decided))

    def released(self, now: float, since: float, releases: list[ev.Release]) -> None:
        """Record replies that are released together; the last one was received at ``since``."""
        first, last, count = releases[0], releases[-1], len(releases)
        if count > 1 and (last.ticket - first.ticket, last.seq - first.seq) != (
            count - 1,
            count - 1,
        ):
            for release in releases:
                self.released(now, since, [release])
            return
        more = first.agreed, first.dissent, first.replayed
        self._releases.append((now, since, first.ticket, first.seq, count, *more))
        latency = now - since
        bucket = bisect_left(LATENCY_BOUNDS, latency)
        self.exemplars[bucket] = latency, now, last.seq, last.ticket

    def failed(self, now: float, since: float, fail: ev.Fail) -> None:
        """Record a request that gets no reply."""
        self._failures.append((now, since, fail))

    def changed(self, now: float, change: ev.Changed) -> None:
        """Record a change of a replica's state, or its dissent."""
        self._changes.append((now, change))

    # ------------------------------------------------------------- reading

    def find(self, name: str, dedup: DedupTable) -> tuple[int, int]:
        """Return sequence number and ticket of a request by any of its names; 0: not known.

        Raises UnknownRequest.
        """
        if name.isascii() and name.isdigit() and len(name) < 20:
            return int(name), 0
        session, _, number = name.partition(":")
        if len(session) == 32 and number.isascii() and number.isdigit() and len(number) < 20:
            try:
                seq = dedup.find(bytes.fromhex(session), int(number))
            except ValueError:
                seq = None
            if seq is not None:
                return seq, 0
        for ticket in reversed(self._ids):
            if name in self._ids[ticket]:
                return self._seq_of(ticket), ticket
        raise UnknownRequest(
            "no recent request has this id: give a sequence number (seq in Trivisor-Vote), the id"
            f" in X-Request-Id, or SESSION:NUMBER; ids of the last {NAMED} HTTP requests are kept"
        )

    def _seq_of(self, ticket: int) -> int:
        """Return the sequence number that a ticket's request got; 0 if it is not known."""
        for _, _, first, seq, count, *_ in reversed(self._releases):
            if first <= ticket < first + count:
                return seq + ticket - first
        return next((f.seq for _, _, f in reversed(self._failures) if f.ticket == ticket), 0)

    def ids(self, ticket: int) -> tuple[str, ...]:
        """Return the ids of the request with this ticket."""
        return self._ids.get(ticket, ())

    def keep(self, seq: int, now: float, wall: float) -> None:
        """Keep the trace of an ordered request longer than its records."""
        if seq in self._kept:
            return
        try:
            self._kept[seq] = self.trace(seq, 0, now, wall)
        except UnknownRequest:
            return
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def trace(self, seq: int, ticket: int, now: float, wall: float) -> Trace:
        """Return what happened to a request, with times in seconds since it was received.

        ``now`` and ``wall`` are the two clocks' times in seconds.  Raises UnknownRequest.
        """
        at = bisect_right(self._orders, seq, key=lambda order: order[1]) - 1
        order = self._orders[at] if seq and at >= 0 else None
        if order is None or seq >= order[1] + order[2]:
            order = None
            if seq in self._kept:
                return self._kept[seq]
            if not ticket:
                raise UnknownRequest(self._why_unknown(seq))
        steps = list(self._steps(order, seq, ticket))
        if not steps:
            raise UnknownRequest("this request waits for its place in the order: ask again")
        start = min(time for time, *_ in steps)
        steps.sort(key=lambda step: (step[0], _RANKS[step[1]]))
        document: Trace = {
            "seq": seq or None,
            "ids": self.ids(ticket or self._ticket_of(seq, start)),
            "time": wall - (now - start),
            "outcome": next((e for _, e, _ in steps if e in ("released", "failed")), "pending"),
            "need": self._need,
            "batch": {"first": order[1], "requests": order[2]} if order else None,
            "timeline": [
                {"at": round(time - start, 6), "event": event, **fields}
                for time, event, fields in steps
            ],
        }
        return document | {"replicas": self._verdicts(order, document["timeline"])}

    def _why_unknown(self, seq: int) -> str:
        if seq > self._last:
            return f"no request has sequence number {seq} yet; the last is {self._last}"
        oldest = self._orders[0][1] if self._orders else self._last + 1
        if seq < oldest:
            text = f"the records of request {seq} are no longer kept; the oldest are of {oldest}"
            return f"{text} (they are kept in the voter's memory)"
        return f"sequence number {seq} belongs to a checkpoint or a change of members, no request"

    def _ticket_of(self, seq: int, begin: float) -> int:
        for _, _, ticket, first, count, *_ in _since(self._releases, begin):
            if first <= seq < first + count:
                return ticket + seq - first
        return 0

    def _steps(self, order: _Order | None, seq: int, ticket: int) -> Iterator[_Step]:
        """Yield the time, the name and the fields of all that happened to a request."""
        begin = order[0] if order is not None else -inf
        if order is not None:
            yield from self._steps_of_order(order, seq)
        found = False
        for release in _since(self._releases, begin):
            time, since, first, base, count, agreed, dissent, replayed = release
            if first <= ticket < first + count or (not ticket and base <= seq < base + count):
                found = True
                yield since, "received", {}
                how = {"agreed": agreed, "dissent": [self._names[index] for index in dissent]}
                yield time, "released", {"replayed": True} if replayed else how
            elif found:
                break
        for time, since, fail in _since(self._failures, begin):
            if fail.ticket == ticket or (seq and fail.seq == seq):
                yield since, "received", {}
                yield time, "failed", {"failure": fail.failure, "reason": fail.detail}

    def _steps_of_order(self, order: _Order, seq: int) -> Iterator[_Step]:
        begin, first, _, replicas, position = order
        yield begin, "ordered", {}
        missing, at = replicas, bisect_left(self._flushes, begin, key=itemgetter(0))
        before = self._flushes[at - 1][3] if at else 0
        for written, sent, last, written_to, links in _since(self._flushes, begin):
            if before < position <= written_to:
                yield written, "journaled", {}
            before = written_to
            if last >= first:
                for index in _bits(missing & links):
                    yield sent, "sent", {"replica": self._names[index]}
                missing &= ~links
            if not missing:
                break
        at = bisect_left(self._syncs, position, key=lambda sync: sync[1])
        if at < len(self._syncs) and self._syncs[at][0] >= begin:
            yield self._syncs[at][0], "synced", {}
        again = [(time, to) for time, each, to in _since(self._again, begin) if each == seq]
        for time, to in again:
            for index in _bits(to):
                yield time, "sent-again", {"replica": self._names[index]}
        silent, decided = replicas, inf
        for index, answers in enumerate(self._answers):
            for time, answered, count, settled in _since(answers, begin):
                if answered <= seq < answered + count:
                    yield time, "answered", {"replica": self._names[index]}
                    silent &= ~(1 << index)
                    decided = min(decided, time) if settled else decided
                if answered >= seq and not again:
                    break
        if decided < inf:
            yield decided, "decided", {}
        for time, change in _since(self._changes, begin):
            if change.seq == seq or silent >> change.replica & 1:
                silent &= ~(1 << change.replica)
                name = "dissented" if change.reason == "dissent" else "left"
                yield time, name, {"replica": self._names[change.replica], "reason": change.reason}

    def _verdicts(self, order: _Order | None, timeline: list[Trace]) -> dict[str, str]:
        """Return how each replica voted, by name."""
        found = dict.fromkeys(self._names, "not-sent")
        if order is not None:
            found |= {self._names[index]: "no-answer" for index in _bits(order[3])}
        decided = False
        for step in timeline:
            event, name = step["event"], step.get("replica", "")
            if event == "answered" and found[name] != "dissents":
                found[name] = "late" if decided else "agrees"
            elif event == "dissented":
                found[name] = "dissents"
            elif event == "decided":
                decided = True
            for each in step.get("dissent", ()):
                found[each] = "dissents"
        return found


def _bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set."""
    return (index for index in range(mask.bit_length()) if mask >> index & 1)


def _since(records: deque[T], begin: float) -> Iterator[T]:
    """Yield the records from a time on."""
    at = bisect_left(records, begin, key=itemgetter(0))
    return (records[index] for index in range(at, len(records)))
