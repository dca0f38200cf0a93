"""Cuts: the digest and the bytes of the state at one place in the order, while the service goes on.

A forked process holds the state as it was; it hashes it in pieces and, if asked to, gives it piece
by piece through a pipe, whose size is all that waits there. It has the lowest priority, but not for
ever, and memory of its own only for what the service changes meanwhile. A state so small that
making the process takes longer than hashing it is hashed at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from hashlib import blake2b
from math import inf
from typing import Protocol

from guests.protocol.wire import STATE_PIECE
from guests.service import Service

__all__ = [
    "ASIDE",
    "NICE",
    "Capture",
    "CaptureError",
    "Capturer",
    "ForkedCapture",
    "InlineCapture",
    "MakeCut",
]

NICE, ASIDE = 5, 10.0
"""A cut has nice value 19 for ``ASIDE`` seconds: a service that has time to spare does not feel it.
One that has none leaves it 1.5 %, by which it might never end: from then on it has ``NICE``, a
quarter of the processor. It has that from the beginning where only root may raise it, and we are
not root (in a VM we are).
"""
ORPHAN_CHECK = 1.0
"""Seconds between looks whether the service is still there, and whether ``ASIDE`` is over."""
WORTH, PATIENCE = 2.0, 0.005
"""A digest that takes no longer than so many forks, and so many seconds of processor time, is not
worth a fork: it is made at once.
"""
NO_DIGEST = b"no digest: "
_HEAD = struct.Struct(">BQd")  # size of the digest, size of the state, seconds; then both


class CaptureError(Exception):
    """A cut that ended before it had told all."""


class Capture(Protocol):
    """The state at one place in the order.  Nothing here waits."""

    def fileno(self) -> int:
        """A descriptor that is readable when ``tell`` or ``take`` may have more to say."""

    def tell(self) -> bytes | None:
        """Return the digest once it is known.  Raises CutError if it never will be."""

    def take(self) -> tuple[bytes, bool] | None:
        """Return the next piece of the state (STATE_PIECE bytes, or the rest) once it is there, and
        whether it is the last.  Raises CutError if there will be none.
        """

    def close(self) -> None:
        """End it, at any time, as often as one likes."""


MakeCut = Callable[[Service, bool], Capture]
"""Makes the cut of a service at this very moment, with its state if that is asked for."""


class Capturer:
    """Makes cuts in processes that do not keep the descriptors of the ``link``.

    The service waits for one that is made in no time, and where no process can be made: slow then,
    but right.
    """

    def __init__(self, *link: int) -> None:
        self._link = link
        self._last: InlineCapture | ForkedCapture | None = None
        self._service: weakref.ref[Service] | None = None
        self._patience = 0.0

    def __call__(self, service: Service, keep: bool) -> Capture:
        """Make the cut of a service at this moment."""
        last = self._last
        same = self._service is not None and self._service() is service
        self._service = weakref.ref(service)
        if same and last is not None and last.seconds <= self._patience:
            with contextlib.suppress(_TooLongError):
                self._last = InlineCapture(service, keep, self._patience)
                return self._last
        began = time.process_time()
        try:
            self._last = ForkedCapture(service, keep, self._link)
        except OSError:
            self._last = InlineCapture(service, keep)
        else:
            self._patience = min(WORTH * (time.process_time() - began), PATIENCE)
        return self._last


class _TooLongError(Exception):
    """A digest takes longer than the service has patience for."""


def _sum_up(
    service: Service, *, pieces: list[bytes] | None = None, patience: float = inf
) -> tuple[bytes, int]:
    """Return digest and size of a service's state; put its bytes into ``pieces``.

    An exception is told as a digest too, as one of ``apply`` is told as a reply: if all replicas
    have it, it is agreed, and the service goes on (without checkpoints); one alone dissents.
    Raises _TooLongError after ``patience`` seconds of processor time.
    """
    hashed, size = blake2b(digest_size=32), 0
    end = time.process_time() + patience
    try:
        for piece in service.snapshot():
            hashed.update(piece)
            size += len(piece)
            if pieces is not None:
                pieces.append(piece)
            if time.process_time() > end:
                raise _TooLongError
    except _TooLongError:
        raise
    except Exception as error:  # noqa: BLE001 - must not end the replica
        return _no_digest(error), 0
    return hashed.digest(), size


def _no_digest(error: BaseException) -> bytes:
    return NO_DIGEST + type(error).__name__.encode()[:200]


class InlineCapture:
    """A cut that is made at once, while the service waits."""

    def __init__(self, service: Service, keep: bool, patience: float = inf) -> None:
        began = time.process_time()
        pieces: list[bytes] = []
        self._digest, _ = _sum_up(service, pieces=pieces if keep else None, patience=patience)
        self._state = b"".join(pieces)
        self._keep = keep and not self._digest.startswith(NO_DIGEST)
        self._at = 0
        self.seconds = time.process_time() - began

    def fileno(self) -> int:
        """None: it is always ready."""
        return -1

    def tell(self) -> bytes | None:
        """Return the digest."""
        return self._digest

    def take(self) -> tuple[bytes, bool] | None:
        """Return the next piece."""
        if not self._keep:
            raise CaptureError("no state is kept of this marker")
        piece = self._state[self._at : self._at + STATE_PIECE]
        self._at += len(piece)
        return piece, self._at >= len(self._state)

    def close(self) -> None:
        """Drop the state."""
        self._state, self._keep = b"", False


class ForkedCapture:
    """A cut that a process of its own tells.  Raises OSError if none can be made."""

    def __init__(self, service: Service, keep: bool, link: tuple[int, ...] = ()) -> None:
        self.seconds = inf  # of processor time that the digest took, once it is told
        self._keep = keep
        self._digest: bytes | None = None
        self._left = 0  # bytes of the state that were not taken yet
        self._buffer = bytearray()
        self._pipe, write = os.pipe()
        parent = os.getpid()
        try:
            self._child = os.fork()
        except OSError:
            os.close(self._pipe)
            os.close(write)
            raise
        if self._child == 0:
            try:
                _tell_all(service, keep, write, (self._pipe, *link), parent)
            finally:
                os._exit(0)
        os.close(write)
        os.set_blocking(self._pipe, False)

    def fileno(self) -> int:
        """The pipe."""
        return self._pipe

    def tell(self) -> bytes | None:
        """Return the digest once the process has told it."""
        if self._digest is None and self._fill(_HEAD.size):
            digest_size, size, seconds = _HEAD.unpack_from(self._buffer)
            if self._fill(_HEAD.size + digest_size):
                self._digest = bytes(self._buffer[_HEAD.size :])
                self._buffer.clear()
                self._left, self.seconds = size, seconds
                self._keep = self._keep and not self._digest.startswith(NO_DIGEST)
        return self._digest

    def take(self) -> tuple[bytes, bool] | None:
        """Return the next piece once the process has given it."""
        if not self._keep or self._digest is None:
            raise CaptureError("no state is kept of this marker")
        if not self._fill(min(STATE_PIECE, self._left)):
            return None
        piece = bytes(self._buffer)
        self._buffer.clear()
        self._left -= len(piece)
        return piece, not self._left

    def close(self) -> None:
        """End the process."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
            self._keep = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)

    def _fill(self, size: int) -> bool:
        """Read until the buffer holds ``size`` bytes; tell whether it does."""
        while len(self._buffer) < size:
            try:
                data = os.read(self._pipe, size - len(self._buffer))
            except BlockingIOError:
                return False
            if not data:
                raise CaptureError("the process that holds the state at the marker ended")
            self._buffer += data
        return True


def _tell_all(
    service: Service, keep: bool, pipe: int, others: tuple[int, ...], parent: int
) -> None:
    """In the process of a cut: write digest and state; end when the service does."""
    gc.disable()  # it would write to pages that are still shared with the service
    for fd in others:
        os.close(fd)
    nice, aside = _step_aside(), time.monotonic() + ASIDE

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)
        if time.monotonic() >= aside:
            os.setpriority(os.PRIO_PROCESS, 0, nice)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, ORPHAN_CHECK, ORPHAN_CHECK)
    began = time.process_time()
    try:
        digest, size = _sum_up(service)
    except BaseException as error:  # noqa: BLE001 - a service that exits here ends no replica
        digest, size = _no_digest(error), 0
    _write(pipe, _HEAD.pack(len(digest), size, time.process_time() - began) + digest)
    if keep and size:
        for piece in _gather(service.snapshot()):
            _write(pipe, piece)


def _step_aside() -> int:
    """Go behind all others, or ``NICE`` where there is no way back; return the value to go to."""
    nice = min(os.nice(NICE), 18)
    os.setpriority(os.PRIO_PROCESS, 0, nice + 1)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        return nice + 1
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    return nice


def _gather(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join pieces until they are worth a write."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= STATE_PIECE:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
