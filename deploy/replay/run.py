"""A replay: the writes from one checkpoint on, executed, compared and judged.

Theory of operation.  The replica gets the checkpoint and then the writes of the log, each with the
agreed time, caller and seed of its record.  Each reply's tag is compared with the one that the
voter journaled when it released the reply.  At each later checkpoint of the range the replica's
digest is compared with the voted one: so replies that agree over a wrong state do not pass.

A journal that was reverted (`trivisor monitor`) has a checkpoint that does not continue the writes
before it.  There the replica gets that checkpoint, as the guests did.

A write may end the service, which its own vote may have survived.  Then the replica starts again
from the last checkpoint that it passed, and executes the writes that were under way one at a time.
The one that ends it again is reported, and skipped from then on, as a voter voids it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from deploy.errors import DeployError
from deploy.replay.log import LoggedWrite, logged_writes
from deploy.replay.predicates import Predicates, ReplyContext, RequestContext, StateContext
from deploy.replay.replica import WINDOW, Executed, Replica, ReplicaEnded
from guests.protocol.message import MessageError, Reply, decode_request
from guests.protocol.wire import MOST_ORDERS
from voter.core import events as ev
from voter.core.entries import Entry, Record, RoleChange
from voter.core.order import TAG_SIZE, tag
from voter.journal.reader import JournalReader, KeptCheckpoint

__all__ = ["Difference", "DigestCheck", "Match", "Replay", "ReplayReport"]

MOST_LISTED = 10_000
"""Differences, and matches, that a report lists; more are only counted."""
MOST_CALLERS = 1000
"""Callers whose matches are counted."""
MOST_ENDS = 50
"""Ends of the service after which a replay fails."""
PROGRESS_SECONDS = 2.0
"""Seconds between two reports of progress."""
_TEXT = 200
"""Characters that are shown of a request's target or of a reply."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A write whose replay did not end as its vote: ``reply``, or ``ended``: it ended the service.

    ``released`` and ``replayed`` describe the two replies.
    """

    seq: int
    time: float
    caller: str
    request: str
    kind: Literal["reply", "ended"]
    released: str
    replayed: str


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """What a predicate reported; a state has neither caller nor request."""

    seq: int
    time: float
    predicate: Literal["request", "reply", "state"]
    text: str
    caller: str = ""
    request: str = ""


class DigestCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The replica's digest at a voted checkpoint."""

    seq: int
    same: bool


class ReplayReport(msgspec.Struct, kw_only=True):
    """What a replay found.  Times are agreed ones in seconds since 1970."""

    start: int  # sequence number of the checkpoint
    last: int = 0  # ... of the last write that was executed
    first_time: float = 0.0
    last_time: float = 0.0
    writes: int = 0
    voided: int = 0  # of these, skipped by all replicas then and now
    compared: int = 0
    unsettled: int = 0  # no result in the journal: nothing to compare with
    differing: int = 0
    differences: list[Difference] = []
    digests: list[DigestCheck] = []
    reverts: list[int] = []  # checkpoints to which the node was reverted
    role_changes: list[RoleChange] = []  # which guests voted from when on, for example patched ones
    matching: int = 0
    matches: list[Match] = []
    callers: dict[str, int] = {}  # matches by caller
    seconds: float = 0.0  # from the replica's having the checkpoint to the last reply or digest
    live_seconds: float = 0.0  # of agreed time between the first and the last write
    live_peak: int = 0  # most writes in one second of agreed time

    @property
    def rate(self) -> float:
        """Writes a second of the replay."""
        return self.writes / self.seconds if self.seconds else 0.0

    @property
    def agrees(self) -> bool:
        """Whether every reply and digest that could be compared is the same."""
        return not self.differing and all(each.same for each in self.digests)


class Replay:
    """One replay of the writes after ``start``, up to ``until`` (None: to the end).

    ``state_every``: writes after which the predicate ``state`` is asked, besides at checkpoints.
    """

    def __init__(
        self,
        reader: JournalReader,
        start: KeptCheckpoint,
        until: int | None = None,
        *,
        predicates: Predicates | None = None,
        state_every: int | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.report = ReplayReport(start=start.seq)
        self._reader = reader
        self._until = until
        self._predicates = predicates
        self._state_every = state_every
        self._progress = progress
        self._checkpoints = [
            each
            for each in reader.checkpoints()
            if start.seq < each.seq and (until is None or each.seq <= until)
        ]
        self._passed = start  # the last checkpoint that was reached
        self._history = start.history  # hash of the history up to the last write
        self._judged = 0  # sequence number of the last write that was judged
        self._careful = 0  # writes up to this one are executed one at a time
        self._deadly: set[int] = set()
        self._ends = 0
        self._began = 0.0  # when the replica had its first state
        self._second = 0, 0  # the last second of agreed time, and the writes in it
        self._shown = time.monotonic()

    async def run(self, replica: Replica) -> ReplayReport:
        """Replay; return the report.  Raises JournalError, DeployError."""
        while True:
            try:
                await self._run_from(self._passed, replica)
                break
            except ReplicaEnded as ended:
                self._note_end(ended, replica)
        report = self.report
        report.seconds = time.monotonic() - self._began
        report.live_seconds = report.last_time - report.first_time
        return report

    async def _run_from(self, start: KeptCheckpoint, replica: Replica) -> None:
        base, state = self._reader.load(start)
        await replica.restore(ev.Restore(0, start.seq, base.history, base.digest or b"", state))
        del state
        self._began = self._began or time.monotonic()
        writes = _Writes(self._marked(start), start.seq)
        every = self._state_every if self._wants("state") else None
        later = [each for each in self._checkpoints if each.seq > start.seq]
        executed = 0
        while True:
            upto = later[0].seq if later else None
            again = writes.position < self._judged
            single = not again and self._judged < self._careful
            stop = self._judged if again else self._careful if single else None
            stops = [each for each in (upto, stop) if each is not None]
            most = every - executed % every if every else None
            part = writes.part(min(stops, default=None), most)
            async for batch in replica.execute(part, single=single):
                executed += len(batch)
                self._judge(batch)
            if upto is not None and (writes.following is None or writes.following > upto):
                await self._pass(later.pop(0), replica)
            elif every and executed and executed % every == 0 and writes.position >= self._judged:
                await self._ask_state(writes.position, replica)
            if writes.following is None and not later:
                return

    def _marked(self, start: KeptCheckpoint) -> Iterator[LoggedWrite]:
        """Yield the writes; those that end the service are void."""
        for write in logged_writes(self._noted(start), self._until):
            if write.record.seq in self._deadly:
                write.void = True
            yield write

    def _noted(self, start: KeptCheckpoint) -> Iterator[Entry]:
        """Yield the entries; note the changes of roles in the range."""
        changes = self.report.role_changes
        for entry in self._reader.entries(start):
            if isinstance(entry, RoleChange) and len(changes) < MOST_LISTED:
                known = changes[-1].version if changes else 0
                if entry.version > known and entry.seq <= (self._until or entry.seq):
                    changes.append(entry)
            yield entry

    def _wants(self, predicate: str) -> bool:
        return self._predicates is not None and self._predicates.defines(predicate)

    # ----------------------------------------------------------------- judging

    def _judge(self, batch: list[Executed]) -> None:
        """Compare replies with the released ones, and ask the predicates."""
        report = self.report
        for write, reply in batch:
            record = write.record
            if record.seq <= self._judged:
                continue  # executed again after the service had ended
            self._judged = report.last = record.seq
            self._history = record.history
            report.writes += 1
            report.last_time = record.time_ns / 1e9
            report.first_time = report.first_time or report.last_time
            second, count = self._second
            this = record.time_ns // 1_000_000_000
            self._second = this, count + 1 if this == second else 1
            report.live_peak = max(report.live_peak, self._second[1])
            same = None if write.tag is None else tag(reply) == write.tag
            if record.seq in self._deadly:
                continue  # it was reported when it ended the service
            report.voided += write.void
            report.compared += same is not None
            report.unsettled += same is None
            if same is False:
                self._differ(write, "reply", _describe(reply))
            self._ask(write, reply, same=same)
        now = time.monotonic()
        if now - self._shown > PROGRESS_SECONDS:
            self._shown = now
            self._progress(f"{report.writes} writes, at sequence number {report.last}")

    def _differ(self, write: LoggedWrite, kind: Literal["reply", "ended"], replayed: str) -> None:
        self.report.differing += 1
        if len(self.report.differences) < MOST_LISTED:
            record = write.record
            self.report.differences.append(
                Difference(
                    seq=record.seq,
                    time=record.time_ns / 1e9,
                    caller=_caller(record),
                    request=_request(record),
                    kind=kind,
                    released=_released(write),
                    replayed=replayed,
                )
            )

    def _ask(self, write: LoggedWrite, reply: bytes, *, same: bool | None) -> None:
        predicates, record = self._predicates, write.record
        if predicates is None:
            return
        if predicates.defines("request"):
            self._match("request", predicates, RequestContext(record, void=write.void), record)
        if predicates.defines("reply"):
            context = ReplyContext(
                record, void=write.void, reply=reply, same=same, released=write.reply
            )
            self._match("reply", predicates, context, record)

    def _match(
        self,
        name: Literal["request", "reply", "state"],
        predicates: Predicates,
        context: RequestContext | StateContext,
        record: Record | None = None,
    ) -> None:
        text = predicates.ask(name, context)
        if not text:
            return
        self.report.matching += 1
        caller, callers = _caller(record) if record is not None else "", self.report.callers
        if record is not None and (caller in callers or len(callers) < MOST_CALLERS):
            callers[caller] = callers.get(caller, 0) + 1
        if len(self.report.matches) < MOST_LISTED:
            self.report.matches.append(
                Match(
                    seq=context.seq,
                    time=context.time,
                    predicate=name,
                    text=text,
                    caller=caller,
                    request=_request(record) if record is not None else "",
                )
            )

    async def _pass(self, checkpoint: KeptCheckpoint, replica: Replica) -> None:
        """Compare the digest at a voted checkpoint, and ask about the state there."""
        if checkpoint.history != self._history and self._judged < checkpoint.seq:
            base, state = self._reader.load(checkpoint)
            point = ev.Restore(0, checkpoint.seq, base.history, base.digest or b"", state)
            await replica.restore(point)
            self.report.reverts.append(checkpoint.seq)
            self._history, self._passed = checkpoint.history, checkpoint
            return
        wanted = self._wants("state")
        digest = await replica.digest(checkpoint.seq, keep=wanted)
        same = digest == checkpoint.digest
        if wanted and self._predicates is not None:
            state = await replica.state(checkpoint.seq)
            context = StateContext(checkpoint.seq, checkpoint.time_ns, state, voted=same)
            self._match("state", self._predicates, context)
        if all(each.seq != checkpoint.seq for each in self.report.digests[-1:]):
            self.report.digests.append(DigestCheck(seq=checkpoint.seq, same=same))
        if same:
            self._passed = checkpoint  # a wrong state is not the checkpoint's

    async def _ask_state(self, seq: int, replica: Replica) -> None:
        assert self._predicates is not None
        await replica.digest(seq, keep=True)
        state = await replica.state(seq)
        time_ns = round(self.report.last_time * 1e9)
        self._match("state", self._predicates, StateContext(seq, time_ns, state, voted=None))

    def _note_end(self, ended: ReplicaEnded, replica: Replica) -> None:
        """Note that the service ended, and with which write, if only one was under way."""
        self._ends += 1
        seq = replica.under_way
        if self._ends > MOST_ENDS or seq is None:
            raise DeployError(
                f"the replay's guest failed: its service ended {self._ends} times, the last time"
                f" at sequence number {self._judged}: {ended}",
                remedy="start at a later checkpoint",
                error_code="TV0854",
            ) from ended
        self._progress(f"the service ended after sequence number {self._judged}: {ended}")
        if self._judged < self._careful:
            self._deadly.add(seq)
            for write in logged_writes(self._reader.entries(self._passed), seq):
                if write.record.seq == seq:
                    self._differ(write, "ended", "none: it ended the service")
        self._careful = self._find_careful()

    def _find_careful(self) -> int:
        """Return the last write that may have been under way when the service ended."""
        count = 0
        for write in logged_writes(self._reader.entries(self._passed), self._until):
            if write.record.seq > self._judged:
                count += 1
                if count > WINDOW + MOST_ORDERS:
                    return write.record.seq
        return 1 << 63


class _Writes:
    """An iterator of the writes after a sequence number, taken in parts."""

    def __init__(self, writes: Iterator[LoggedWrite], start: int) -> None:
        self._writes = writes
        self._next = next(writes, None)
        self.position = start
        """Sequence number of the last write that was taken."""

    @property
    def following(self) -> int | None:
        """Sequence number of the next write; None at the end."""
        return self._next.record.seq if self._next is not None else None

    def part(self, upto: int | None, most: int | None) -> Iterator[LoggedWrite]:
        """Yield the next writes up to a sequence number, at most so many."""
        while (write := self._next) is not None and most != 0:
            if upto is not None and write.record.seq > upto:
                return
            self.position = write.record.seq
            self._next = next(self._writes, None)
            most = None if most is None else most - 1
            yield write


def _caller(record: Record) -> str:
    return record.caller.decode("utf-8", "replace")


def _request(record: Record) -> str:
    """Return method and target of a write, shortened."""
    try:
        request = decode_request(record.request)
    except MessageError:
        return f"{len(record.request)} bytes that are no request"
    text = f"{request.method} {request.target}"
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def _describe(reply: bytes) -> str:
    """Return status, size and beginning of a reply, as far as it can be printed."""
    try:
        found = Reply.decode(reply)
    except MessageError:
        return f"{len(reply)} bytes that are no reply"
    body = bytes(found.body)
    text = body[:_TEXT].decode("utf-8", "replace")
    text = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return f"{found.status}, {len(body)} bytes: {text}" if body else f"{found.status}, empty"


def _released(write: LoggedWrite) -> str:
    if write.tag is None:
        return "unknown: the journal has no result"
    if write.reply is not None:
        return _describe(write.reply)
    if len(write.tag) < TAG_SIZE:
        return _describe(write.tag)
    return f"a reply with hash {write.tag.hex()[:16]}, which the journal does not keep"
