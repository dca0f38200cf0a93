"""The journal's history: segments and checkpoints that recovery no longer needs.

They are moved below ``history/`` instead of being removed, for `trivisor replay`.  The voter never
reads them again.  What is kept is bounded: the oldest checkpoint is removed first, with the
segments that only it needs.  So every checkpoint that is kept can be replayed from.

A checkpoint holds a whole state.  One is kept only if the log has grown by at least the
checkpoint's size since the last one that was kept: checkpoints take at most half of the history.

A voter that is killed in between moves the rest after its next checkpoint.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

from voter import log
from voter.journal.files import Files
from voter.journal.format import DamagedError, peek_checkpoint
from voter.journal.recovery import checkpoint_name, numbers_of, segment_name

__all__ = ["HISTORY", "NO_ROOM", "History"]

HISTORY = "history/"
"""Prefix of the names of the files that are kept."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PEEK = 1 << 10
"""Bytes of a checkpoint that surely hold its head."""


class History:
    """The kept files of one journal; ``bound`` is the most bytes of them (0: nothing is kept).

    All methods raise OSError.
    """

    def __init__(self, files: Files, bound: int) -> None:
        self._files = files
        self._bound = bound
        self._logged = bound  # bytes of log since the last checkpoint that was kept

    async def take(self, first_seq: int, first_segment: int, logged: int) -> None:
        """Keep, or remove, all checkpoints and segments before these.

        ``logged``: bytes of log since the last call.
        """
        self._logged += logged
        names = self._files.names()
        for seq in numbers_of(names, "checkpoint"):
            if seq < first_seq:
                name = checkpoint_name(seq)
                if self._bound and self._files.size(name) <= self._logged:
                    self._logged = 0
                    await self._keep(name)
                else:
                    await self._files.remove(name)
        for number in numbers_of(names, "segment"):
            if number < first_segment:
                await self._keep(segment_name(number))
        await self.trim()

    async def trim(self) -> None:
        """Remove the oldest files until the others are within the bound."""
        while self._bound and self._size() > self._bound and await self._drop():
            pass

    async def _keep(self, name: str) -> None:
        """Move a file to the history; without room for its new name, remove it."""
        if self._bound:
            try:
                return await self._files.rename(name, HISTORY + name)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
        await self._files.remove(name)

    def _kept(self) -> list[str]:
        return [name for name in self._files.names() if name.startswith(HISTORY)]

    def _size(self) -> int:
        return sum(map(self._files.size, self._kept()))

    async def make_room(self, write: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Call ``write``; while the disk has no room, remove the oldest files and try again."""
        while True:
            try:
                return await write(*arguments)
            except OSError as error:
                if error.errno not in NO_ROOM or not await self._drop():
                    raise
                log.warning("the journal's history was cut", error_code="TV0255", reason=str(error))

    async def _drop(self) -> bool:
        """Remove the oldest checkpoint and the segments that no other one needs.

        Return whether anything was removed.
        """
        if not self._bound:
            return False
        kept = self._kept()
        checkpoints = [name for name in kept if "/checkpoint-" in name]
        # One that is not in the history is newer: recovery may start from it.
        others = map(checkpoint_name, numbers_of(self._files.names(), "checkpoint"))
        needed = self._first_segment([*checkpoints[1:], *others])
        # The checkpoint first: none is left without its segments if the voter is killed.
        gone = checkpoints[:1]
        gone += [name for name in kept if "/segment-" in name and name < needed]
        for name in gone:
            await self._files.remove(name)
        return bool(gone)

    def _first_segment(self, checkpoints: list[str]) -> str:
        """Return the kept name of the first segment that the first whole one of these needs."""
        for name in checkpoints:
            try:
                head, _ = peek_checkpoint(self._files.read(name, _PEEK))
            except DamagedError:
                continue
            return HISTORY + segment_name(head.segment)
        return HISTORY + "segment-~"  # sorts behind all of them
