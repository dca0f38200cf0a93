"""A simulated disk with a page cache, for the file protocols of ``voter.journal.files``.

``cached`` is what processes read; it survives the death of a process.  ``stored`` is what is on
the platter.  A power loss draws for each block that was not synced whether it was stored, and for
each change of a name as well.  A rename is one change, as file systems with a journal make it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Iterator
from random import Random

from faultinject.simulation.loop import Process, SimLoop

__all__ = ["SimDisk", "SimFile", "SimFiles"]

SYNC_TIMES = (0.0001, 0.004)
"""Least and most seconds that a sync takes."""
PIECE_TIME = 0.00005
"""Seconds that writing a piece of a file takes."""
HEAD = 100
"""Most bytes that the head of a segment takes."""
ASIDE = ".new"
"""Suffix of the name of a file that is not complete yet."""


class _Inode:
    """One file: its cached and stored bytes, and the ranges written since the last sync."""

    __slots__ = ("cached", "dirty", "stored")

    def __init__(self, data: bytes) -> None:
        self.cached = bytearray(data)
        self.stored = bytearray(data)
        self.dirty: list[tuple[int, int]] = []  # (start, end) of each write

    def sync(self) -> None:
        """Store the dirty ranges."""
        for start, end in self.dirty:
            if len(self.stored) < end:
                self.stored += bytes(end - len(self.stored))
            self.stored[start:end] = self.cached[start:end]
        self.dirty.clear()

    def lose_power(self, random: Random, block: int) -> None:
        """Store each dirty block with probability one half; forget the others."""
        for start, end in self.dirty:
            at = start
            while at < end:
                stop = min(end, (at // block + 1) * block)
                if random.random() < 0.5:
                    if len(self.stored) < stop:
                        self.stored += bytes(stop - len(self.stored))
                    self.stored[at:stop] = self.cached[at:stop]
                at = stop
        self.dirty.clear()
        self.cached = bytearray(self.stored)


class SimDisk:
    """The node's disk.

    ``full``: no space can be allocated.  ``failing``: number of syncs that will fail.  ``slow``:
    seconds added to each sync.
    """

    def __init__(self, loop: SimLoop, random: Random, block: int) -> None:
        self.loop = loop
        self.full = False
        self.failing = 0
        self.slow = 0.0
        self._random = random
        self._block = block
        self.cached: dict[str, _Inode] = {}
        self.stored: dict[str, _Inode] = {}
        self.renamed: dict[str, str] = {}  # old names by new ones, not stored yet

    def holds(self, data: bytes, *, durable: bool) -> bool:
        """Return whether any file contains these bytes, as stored or as cached."""
        if durable:
            return any(data in inode.stored for inode in self.stored.values())
        return any(data in inode.cached for inode in self.cached.values())

    def lose_power(self) -> None:
        """Lose what was not synced, except for blocks and names that are drawn to be stored."""
        for name in sorted(set(self.cached) | set(self.stored)):
            new = self.cached.get(name)
            if name in self.renamed.values():
                continue  # it goes with the new name
            if new is self.stored.get(name) or self._random.random() < 0.5:
                continue
            self.stored.pop(self.renamed.get(name, ""), None)
            if new is not None:  # the change of this name was stored already
                self.stored[name] = new
            else:
                del self.stored[name]
        for name in sorted(self.stored):
            self.stored[name].lose_power(self._random, self._block)
        self.cached = dict(self.stored)
        self.renamed.clear()

    def change_bit(self, random: Random) -> bool:
        """Change one bit of a synced file; return whether there was one."""
        names = [n for n, i in sorted(self.stored.items()) if any(i.stored) and not i.dirty]
        if not names:
            return False
        inode = self.stored[random.choice(names)]
        at = random.randrange(len(bytes(inode.stored).rstrip(b"\0")))
        bit = 1 << random.randrange(8)
        inode.stored[at] ^= bit
        inode.cached[at] ^= bit
        return True

    def last_segment(self) -> str:
        """Return the name of the last segment of the journal that holds more than its head."""
        names = sorted(name for name in self.cached if name.startswith("segment-"))
        return next((n for n in reversed(names) if any(self.cached[n].cached[HEAD:])), "")

    def sync_time(self) -> float:
        """Draw the seconds that the next sync takes."""
        least, most = SYNC_TIMES
        return least + self._random.random() ** 4 * (most - least) + self.slow

    def sync_names(self) -> None:
        """Store all names."""
        self.stored = dict(self.cached)
        self.renamed.clear()


class SimFile:
    """A file that a process has open for appending."""

    def __init__(self, disk: SimDisk, process: Process, inode: _Inode, at: int) -> None:
        self._disk = disk
        self._process = process
        self._inode = inode
        self._at = at

    def append(self, data: bytes) -> None:
        """Write after the last write; on a full disk what fits.  Raises OSError."""
        dies = self._process.enter_call()
        data = bytes(data)
        if dies:
            data = data[: len(data) * 2 // 3]
        inode, at = self._inode, self._at
        cut = self._disk.full and at + len(data) > len(inode.cached)
        if cut:
            data = data[: len(inode.cached) - at]
        end = at + len(data)
        if len(inode.cached) < end:
            inode.cached += bytes(end - len(inode.cached))
        inode.cached[at:end] = data
        inode.dirty.append((at, end))
        self._at = end
        if dies:
            self._process.die_in_call()
        if cut:
            raise OSError(errno.ENOSPC, "No space left on device")

    def grow(self, size: int) -> None:
        """Add zeros at the end.  Raises OSError."""
        if self._process.enter_call():
            self._process.die_in_call()
        if self._disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        end = len(self._inode.cached)
        self._inode.cached += bytes(size)
        self._inode.dirty.append((end, end + size))

    async def sync(self) -> None:
        """Store what was written so far.  Raises OSError."""
        dies = self._process.enter_call()
        upto = len(self._inode.dirty)
        if dies:
            self._process.die_in_call()
        await asyncio.sleep(self._disk.sync_time())
        dies = self._process.enter_call()
        disk, inode = self._disk, self._inode
        if disk.failing:
            disk.failing -= 1
            del inode.dirty[:upto]  # marked clean, as Linux does, and so never stored
            raise OSError(errno.EIO, "Input/output error")
        later = inode.dirty[upto:]
        del inode.dirty[upto:]
        inode.sync()
        inode.dirty = later
        if dies:
            self._process.die_in_call()

    def close(self) -> None:
        """Do nothing: what was not synced stays in the cache."""


class SimFiles:
    """The journal's directory, as a process sees it.  Raises OSError where ``Files`` does."""

    where = "journal"

    def __init__(self, disk: SimDisk, process: Process) -> None:
        self._disk = disk
        self._process = process

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        self._process.enter_call()
        return sorted(self._disk.cached)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file, or its first bytes."""
        self._process.enter_call()
        return bytes(self._find(name).cached)[:most]

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        self._process.enter_call()
        return len(self._find(name).cached)

    def _find(self, name: str) -> _Inode:
        inode = self._disk.cached.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        return inode

    async def create(self, name: str, size: int) -> SimFile:
        """Create a file of zeros and store its name."""
        await self._make(name, iter((bytes(size),)))
        return SimFile(self._disk, self._process, self._disk.cached[name], 0)

    def reopen(self, name: str, at: int, rewrite_from: int) -> SimFile:
        """Open a file for appending at an offset.

        The bytes behind it become zeros, not synced yet, and those from ``rewrite_from`` to it are
        dirty.
        """
        self._process.enter_call()
        inode = self._find(name)
        end = len(inode.cached)
        if rewrite_from < at:
            inode.dirty.append((rewrite_from, at))
        if any(inode.cached[at:]):
            inode.cached[at:] = bytes(end - at)
            inode.dirty.append((at, end))
        return SimFile(self._disk, self._process, inode, at)

    async def write_whole(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Replace a file by these pieces, atomically also at a power loss."""
        await self._make(name, iter(pieces))

    async def _make(self, name: str, pieces: Iterator[bytes | memoryview]) -> None:
        """Write another file, sync, rename, sync the directory.  A process may die at each step."""
        disk, process = self._disk, self._process
        aside = name + ASIDE
        dies = process.enter_call()
        inode = disk.cached[aside] = _Inode(b"")
        try:
            for piece in pieces:
                if disk.full:
                    raise OSError(errno.ENOSPC, "No space left on device", name)
                start = len(inode.cached)
                inode.cached += piece
                inode.dirty.append((start, len(inode.cached)))
                if dies:
                    process.die_in_call()
                await asyncio.sleep(PIECE_TIME)
                dies = process.enter_call()
            if dies:
                process.die_in_call()
            await asyncio.sleep(disk.sync_time())
            process.enter_call()
            if disk.failing:
                disk.failing -= 1
                raise OSError(errno.EIO, "Input/output error", name)
        except Exception:
            if process.alive:
                disk.cached.pop(aside, None)
            raise
        inode.sync()
        del disk.cached[aside]
        disk.cached[name] = inode
        await asyncio.sleep(disk.sync_time())
        if process.enter_call():
            process.die_in_call()
        disk.sync_names()

    async def sync_names(self) -> None:
        """Store all names."""
        self._process.enter_call()
        await asyncio.sleep(self._disk.sync_time())
        if self._process.enter_call():
            self._process.die_in_call()
        self._disk.sync_names()

    async def rename(self, old: str, new: str) -> None:
        """Rename a file; the new name is stored when this returns."""
        await self._change_names(old, new)

    async def remove(self, name: str) -> None:
        """Remove a file; its removal is stored when this returns."""
        await self._change_names(name, None)

    async def _change_names(self, old: str, new: str | None) -> None:
        dies = self._process.enter_call()
        inode = self._find(old)
        if new is not None:
            self._disk.cached[new] = inode
            self._disk.renamed[new] = old
        del self._disk.cached[old]
        if dies:
            self._process.die_in_call()
        await asyncio.sleep(self._disk.sync_time())
        if self._process.enter_call():
            self._process.die_in_call()
        self._disk.sync_names()

    def close(self) -> None:
        """Do nothing."""
