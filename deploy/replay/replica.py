"""The guest that executes a journal again: one replica, driven without a voter.

It speaks the link's protocol as the voter does (``voter.link``), and sends ahead as a busy voter
would: several batches are under way, so that a replay waits for the guest and not for round trips.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Self

from msgspec.structs import replace

from deploy.errors import DeployError
from deploy.replay.log import LoggedWrite
from guests.protocol import wire
from voter.address import connect, parse_address
from voter.core import events as ev
from voter.core.entries import Record
from voter.core.limits import Limits
from voter.link import ReplicaLink, encode_orders

__all__ = ["Executed", "Replica", "ReplicaEnded"]

WINDOW, WINDOW_BYTES = 1024, 1 << 20
"""Most writes that are under way, and most bytes of them: enough that a guest never waits."""
BATCH_BYTES = 1 << 16
"""Bytes of requests in one frame."""
SILENCE = 60.0
"""Seconds without an answer after which the replay fails."""
_LIMITS = Limits(transfer_rate=1 << 32, restore_rate=1 << 20)

Executed = tuple[LoggedWrite, bytes]
"""A write and the reply to it."""


class ReplicaEnded(Exception):
    """The service ended, or its link did; the text is the link's reason."""


class Replica:
    """A replica at a link's address (``unix:PATH``, ``exec:COMMAND``).

    ``expected``: service and state format that it must have, where they are known.  ``silence``:
    seconds without an answer after which it has failed.
    """

    def __init__(
        self, address: str, expected: tuple[str, int] | None, *, silence: float = SILENCE
    ) -> None:
        self.build = ""
        """The build that the replica's image names."""
        self._expected = expected
        self._silence = silence
        self._link = ReplicaLink(
            0,
            parse_address(address),
            connector=connect,
            deliver=self._take,
            check=self._check,
            random64=lambda: secrets.randbits(63) + 1,
            flush_soon=_flush_soon,
            limits=_LIMITS,
        )
        self._running: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._problem: Exception | None = None
        self._sent: deque[LoggedWrite] = deque()
        self._sent_bytes = 0
        self._executed: list[Executed] = []
        self._answer: bytes | bytearray | None = None  # to a marker, a restore or a fetch

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._link.run(), name="replay link")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    # ---------------------------------------------------------------- events

    def _check(self, _index: int, welcome: wire.Welcome) -> str | None:
        found = (welcome.service, welcome.state_format)
        self.build = welcome.build
        if self._expected is not None and found != self._expected:
            text = (
                f"the guest runs {found[0]} with state format {found[1]}, the journal was written"
                f" by {self._expected[0]} with {self._expected[1]}"
            )
            self._fail(
                DeployError(
                    text,
                    remedy="replay with the service that wrote the journal (--service)",
                    error_code="TV0853",
                )
            )
            return text
        return None

    def _fail(self, problem: Exception) -> None:
        self._problem = self._problem or problem
        self._changed.set()

    def _take(self, event: ev.Event) -> None:
        """Take what the link reports."""
        if isinstance(event, ev.Lost):
            self._fail(ReplicaEnded(event.reason))
        elif isinstance(event, ev.ProtocolViolation | ev.RefusedOrder | ev.FetchFailed):
            self._fail(_broken(event.reason))
        elif isinstance(event, ev.Answered):
            self._take_replies(event.seq, [event.reply])
        elif isinstance(event, ev.AnsweredAll):
            try:
                self._take_replies(event.seq, wire.decode_replies(event.replies))
            except wire.WireError as error:
                self._fail(_broken(str(error)))
        elif isinstance(event, ev.Digested | ev.Restored):
            self._answer = event.digest
        elif isinstance(event, ev.Fetched):
            self._answer = event.state
        self._changed.set()

    def _take_replies(self, first: int, replies: list[bytes]) -> None:
        if not self._sent or self._sent[0].record.seq != first or len(replies) > len(self._sent):
            self._fail(_broken(f"it answered request {first} out of turn"))
            return
        for reply in replies:
            write = self._sent.popleft()
            self._sent_bytes -= len(write.record.request)
            self._executed.append((write, reply))

    async def _wait(self, more: float = 0.0) -> None:
        """Wait for the next event, ``more`` seconds longer.  Raises DeployError, ReplicaEnded."""
        limit = self._silence + more
        try:
            async with asyncio.timeout(limit):
                await self._changed.wait()
        except TimeoutError:
            raise _broken(f"it has not answered for {limit:g} s") from None
        self._changed.clear()
        if self._problem is not None:
            raise self._problem

    # ---------------------------------------------------------------- actions

    @property
    def under_way(self) -> int | None:
        """The sequence number of the first write without a reply; None if there is none."""
        return self._sent[0].record.seq if self._sent else None

    async def restore(self, point: ev.Restore) -> None:
        """Give the replica a checkpoint, or the empty state, on a link that is greeted.

        Raises DeployError, ReplicaEnded.
        """
        if not isinstance(self._problem, DeployError):
            self._problem = None
        self._sent.clear()
        self._executed.clear()
        self._sent_bytes = 0
        self._link.reconnect_now()
        while not self._link.up:
            await self._wait()
        self._answer = None
        self._link.restore(point)
        digest = await self._answered(len(point.state) / _LIMITS.restore_rate)
        if point.digest and digest != point.digest:
            raise _broken("its state is not the checkpoint that it was sent")

    async def _answered(self, more: float = 0.0) -> bytes | bytearray:
        while self._answer is None:
            await self._wait(more)
        return self._answer

    async def execute(
        self, writes: Iterator[LoggedWrite], *, single: bool = False
    ) -> AsyncIterator[list[Executed]]:
        """Execute writes; yield them with their replies, in order, as these come.

        ``single``: one at a time.  Raises DeployError, ReplicaEnded.
        """
        batches = ([write] for write in writes) if single else _batches(writes)
        window = 1 if single else WINDOW
        more = True
        while True:
            while more and len(self._sent) < window and self._sent_bytes < WINDOW_BYTES:
                batch = next(batches, None)
                if batch is None:
                    more = False
                else:
                    self._send(batch)
            if self._executed:
                executed, self._executed = self._executed, []
                yield executed
            elif self._sent:
                await self._wait()
            else:
                return

    def _send(self, batch: list[LoggedWrite]) -> None:
        self._sent += batch
        self._sent_bytes += sum(len(each.record.request) for each in batch)
        self._link.send_orders(encode_orders([_record(each) for each in batch]))

    async def digest(self, seq: int, *, keep: bool = False) -> bytes:
        """Return the digest of the state; ``seq``: a number for the marker.

        ``keep``: its bytes can be fetched.  Raises DeployError, ReplicaEnded.
        """
        self._answer = None
        self._link.mark(seq, 0 if keep else None)
        return bytes(await self._answered())

    async def state(self, seq: int) -> bytes:
        """Return the state that was kept at a marker.  Raises DeployError, ReplicaEnded."""
        self._answer = None
        self._link.fetch(seq)
        return bytes(await self._answered())


def _flush_soon(link: ReplicaLink) -> None:
    asyncio.get_running_loop().call_soon(link.flush)


def _record(write: LoggedWrite) -> Record:
    record = write.record
    return replace(record, void=True) if write.void and not record.void else record


def _batches(writes: Iterator[LoggedWrite]) -> Iterator[list[LoggedWrite]]:
    """Yield writes that may share a frame: of one agreed time, and not too many."""
    batch: list[LoggedWrite] = []
    size = 0
    for write in writes:
        record = write.record
        full = len(batch) >= wire.MOST_ORDERS or size + len(record.request) > BATCH_BYTES
        if batch and (full or record.time_ns != batch[0].record.time_ns):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += len(record.request)
    if batch:
        yield batch


def _broken(reason: str) -> DeployError:
    return DeployError(
        f"the replay's guest failed: {reason}",
        remedy="run it again; if it fails at the same place, report it",
        error_code="TV0854",
    )
