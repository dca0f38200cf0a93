"""Journals as a voter writes them, made in this process: the service's own replies are released."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from guests.answer import answer
from guests.context import Context
from guests.protocol.message import Reply, encode_reply, encode_request
from guests.service import Service
from guests.services.kv import KeyValue
from tests.voter.journal.disk import Open, opened
from voter.core.entries import Base, Entry, Record, Settled, Void
from voter.core.journal_state import RESERVED
from voter.core.order import history_after, tag
from voter.journal import Directory

__all__ = ["JournalMaker", "make_journal", "put"]

START_NS = 1_700_000_000_000_000_000
VOIDED = encode_reply(Reply(500, "this request ended the service, and was voided\n"))


def put(key: str, value: str) -> bytes:
    """Return a request that stores a value."""
    return encode_request("PUT", f"/kv/{key}", (), value.encode())


class JournalMaker:
    """Writes to a journal that runs what a voter would write; ``service`` answers."""

    def __init__(self, run: Open, service: Service) -> None:
        self.run = run
        self.service = service
        self.seq = 0
        self.time_ns = START_NS
        self._key = run.recovery.identity.key
        self._history = run.history.history

    def write(
        self,
        request: bytes,
        caller: str = "ann",
        *,
        void: bool = False,
        settled: bool = True,
        lie: bytes | None = None,
    ) -> bytes:
        """Order a request and settle it; return its reply.  ``lie``: release this one instead."""
        self.seq += 1
        self.time_ns += 1_000_000
        seq, time_ns, prev = self.seq, self.time_ns // 10_000_000 * 10_000_000, self._history
        parts = (caller.encode(), request)
        after = history_after(self._key, prev, seq, time_ns, False, *parts)
        record = Record(seq, request, caller.encode(), time_ns, prev, after, False)
        self._history = after
        entries: list[Entry] = [record]
        if void:
            reply = VOIDED
            entries.append(Void(seq))
        else:
            reply = answer(self.service, request, Context(seq, time_ns, after, caller))
        if settled:
            entries.append(Settled(seq, tag(reply if lie is None else lie)))
        self.run.write(*entries)
        return reply

    async def checkpoint(self) -> None:
        """Write a checkpoint of the state now; it takes a number, as a marker does."""
        await self.run.durable()
        self.seq += 1
        seq, state = self.seq, b"".join(self.service.snapshot())
        reserved = (seq // RESERVED + 1) * RESERVED
        base = Base(seq, self._history, self.service.digest(), self.time_ns, reserved)
        self.run.journal.checkpoint(base, state)
        await self.run.until(lambda: self.run.journal.status()["checkpoint_seq"] == seq)


async def make_journal(
    directory: Path,
    fill: Callable[[JournalMaker], Iterable[None]],
    *,
    service: Service | None = None,
    history: int = 1 << 30,
) -> None:
    """Write a journal; ``fill`` writes requests, and yields where a checkpoint is due."""
    run: Open
    used = service or KeyValue()
    async with opened(Directory(directory), history=history, segment_size=1 << 16) as run:
        run.journal.learn(used.name, used.state_format)
        maker = JournalMaker(run, used)
        for _ in fill(maker):
            await maker.checkpoint()
        await run.durable()
