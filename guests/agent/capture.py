"""Captures: digest and bytes of the state at one sequence number, while the service continues.

``ForkedCapture`` forks.  The child shares the service's memory as it was at that moment (copy on
write), hashes the state in pieces, and writes the digest to a pipe.  If the state is wanted, the
bytes follow through the same pipe, which bounds what is buffered.  The child runs at the lowest
priority at first, so that a service with idle time is not slowed down.

``InlineCapture`` hashes at once, while the service waits.  ``Capturer`` chooses it if the last
capture of this service took less processor time than a fork, or if the fork fails.
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
    "LOW_PRIORITY_TIME",
    "NICE",
    "Capture",
    "CaptureError",
    "Capturer",
    "ForkedCapture",
    "InlineCapture",
    "MakeCapture",
]

NICE, LOW_PRIORITY_TIME = 5, 10.0
"""A capture's process has nice value 19 for the first ``LOW_PRIORITY_TIME`` seconds, then ``NICE``.

At 19 a busy service leaves it 1.5 % of the processor, and it might never end; at 5, a quarter.
Where only root may raise a priority and the agent is not root, it has ``NICE`` from the start.
"""
CHECK_INTERVAL = 1.0
"""Seconds between checks that the service still runs and that ``LOW_PRIORITY_TIME`` has passed."""
INLINE_FORKS, INLINE_SECONDS = 5.0, 0.04
"""A digest is computed inline if it takes at most the time of so many forks, and at most so many
seconds of processor time.

A fork delays requests for longer than the call takes: each page that the service writes to is then
copied, and the new process competes with the service.  Measured in three emulated guests with 1,000
keys: a fork takes 4 to 14 ms, the digest 22 to 39 ms in the new process and 8 to 24 ms inline; the
slowest requests took 50 to 240 ms around a fork, and 20 ms around a digest inline.
"""
NO_DIGEST = b"no digest: "
_HEAD = struct.Struct(">BQd")  # size of the digest, size of the state, seconds; then both


class CaptureError(Exception):
    """A capture ended before it delivered everything."""


class Capture(Protocol):
    """The state at one sequence number.  No method waits."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when there may be more; -1: there is none."""

    def digest(self) -> bytes | None:
        """Return the digest, or None if it is not known yet.  Raises CaptureError."""

    def next_piece(self) -> tuple[bytes, bool] | None:
        """Return the next STATE_PIECE bytes (or the rest) and whether they are the last.

        Returns None if they are not there yet.  Raises CaptureError if they never will be.
        """

    def close(self) -> None:
        """End the capture.  Further calls do nothing."""


MakeCapture = Callable[[Service, bool], Capture]
"""Captures a service at this moment: its digest and, if the second argument is true, its state."""


class Capturer:
    """Makes captures, inline or in a forked process, which closes the descriptors ``link``."""

    def __init__(self, *link: int) -> None:
        self._link = link
        self._last: InlineCapture | ForkedCapture | None = None
        self._service: weakref.ref[Service] | None = None
        self._inline_limit = 0.0

    def __call__(self, service: Service, keep: bool) -> Capture:
        """Capture a service at this moment."""
        last = self._last
        same = self._service is not None and self._service() is service
        self._service = weakref.ref(service)
        if same and last is not None and last.seconds <= self._inline_limit:
            with contextlib.suppress(_TooLongError):
                self._last = InlineCapture(service, keep, self._inline_limit)
                return self._last
        began = time.process_time()
        try:
            self._last = ForkedCapture(service, keep, self._link)
        except OSError:
            self._last = InlineCapture(service, keep)
        else:
            self._inline_limit = min(INLINE_FORKS * (time.process_time() - began), INLINE_SECONDS)
        return self._last


class _TooLongError(Exception):
    """An inline digest took longer than its limit."""


def _digest_state(
    service: Service, *, pieces: list[bytes] | None = None, limit: float = inf
) -> tuple[bytes, int]:
    """Return digest and size of a service's state; append its bytes to ``pieces``.

    An exception of the service becomes a digest that names it, as one in ``apply`` becomes a reply.
    If all replicas raise it, they agree and continue without checkpoints; a single one dissents.
    Raises _TooLongError after ``limit`` seconds of processor time.
    """
    hashed, size = blake2b(digest_size=32), 0
    end = time.process_time() + limit
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
    """A capture that is complete at once: the service waits for it."""

    def __init__(self, service: Service, keep: bool, limit: float = inf) -> None:
        began = time.process_time()
        pieces: list[bytes] = []
        self._digest, _ = _digest_state(service, pieces=pieces if keep else None, limit=limit)
        self._state = b"".join(pieces)
        self._keep = keep and not self._digest.startswith(NO_DIGEST)
        self._at = 0
        self.seconds = time.process_time() - began

    def fileno(self) -> int:
        """Return -1: everything is there."""
        return -1

    def digest(self) -> bytes | None:
        """Return the digest."""
        return self._digest

    def next_piece(self) -> tuple[bytes, bool] | None:
        """Return the next piece and whether it is the last."""
        if not self._keep:
            raise CaptureError("no state is kept for this marker")
        piece = self._state[self._at : self._at + STATE_PIECE]
        self._at += len(piece)
        return piece, self._at >= len(self._state)

    def close(self) -> None:
        """Release the state."""
        self._state, self._keep = b"", False


class ForkedCapture:
    """A capture by a forked process.  Raises OSError if the fork fails."""

    def __init__(self, service: Service, keep: bool, link: tuple[int, ...] = ()) -> None:
        self.seconds = inf  # of processor time for the digest, once it is known
        self._keep = keep
        self._digest: bytes | None = None
        self._left = 0  # bytes of the state that were not returned yet
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
                _run_child(service, keep, write, (self._pipe, *link), parent)
            finally:
                os._exit(0)
        os.close(write)
        os.set_blocking(self._pipe, False)

    def fileno(self) -> int:
        """Return the pipe's descriptor."""
        return self._pipe

    def digest(self) -> bytes | None:
        """Return the digest once the process has sent it."""
        if self._digest is None and self._fill(_HEAD.size):
            digest_size, size, seconds = _HEAD.unpack_from(self._buffer)
            if self._fill(_HEAD.size + digest_size):
                self._digest = bytes(self._buffer[_HEAD.size :])
                self._buffer.clear()
                self._left, self.seconds = size, seconds
                self._keep = self._keep and not self._digest.startswith(NO_DIGEST)
        return self._digest

    def next_piece(self) -> tuple[bytes, bool] | None:
        """Return the next piece once the process has sent it."""
        if not self._keep or self._digest is None:
            raise CaptureError("no state is kept for this marker")
        if not self._fill(min(STATE_PIECE, self._left)):
            return None
        piece = bytes(self._buffer)
        self._buffer.clear()
        self._left -= len(piece)
        return piece, not self._left

    def close(self) -> None:
        """Kill the process."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
            self._keep = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)

    def _fill(self, size: int) -> bool:
        """Read until the buffer holds ``size`` bytes; return whether it does."""
        while len(self._buffer) < size:
            try:
                data = os.read(self._pipe, size - len(self._buffer))
            except BlockingIOError:
                return False
            if not data:
                raise CaptureError("the process that holds the state at the marker ended")
            self._buffer += data
        return True


def _run_child(
    service: Service, keep: bool, pipe: int, others: tuple[int, ...], parent: int
) -> None:
    """In the child: write digest and state to the pipe; exit when the service has ended."""
    gc.disable()  # a collection would copy pages that are still shared with the service
    for fd in others:
        os.close(fd)
    nice, raise_at = _lower_priority(), time.monotonic() + LOW_PRIORITY_TIME

    def check(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)
        if time.monotonic() >= raise_at:
            os.setpriority(os.PRIO_PROCESS, 0, nice)

    signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, CHECK_INTERVAL, CHECK_INTERVAL)
    began = time.process_time()
    try:
        digest, size = _digest_state(service)
    except BaseException as error:  # noqa: BLE001 - a service that exits here must not end the replica
        digest, size = _no_digest(error), 0
    _write(pipe, _HEAD.pack(len(digest), size, time.process_time() - began) + digest)
    if keep and size:
        for piece in _join(service.snapshot()):
            _write(pipe, piece)


def _lower_priority() -> int:
    """Take the lowest priority that can be raised again; return the nice value to return to."""
    nice = min(os.nice(NICE), 18)
    os.setpriority(os.PRIO_PROCESS, 0, nice + 1)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        return nice + 1
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    return nice


def _join(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join pieces into blocks of at least STATE_PIECE bytes."""
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
