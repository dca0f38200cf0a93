"""Simulated byte streams, which delay, coalesce, split and cut, and their asyncio transports.

A ``Pipe`` is one direction of a stream, a ``Transport`` one end of a stream in a process.  Both
directions of a connection share one random source, which is named after the connection.  So events
on one connection do not change the draws of another one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any, Protocol, cast
from zlib import crc32

from faultinject.simulation.loop import Process, SimLoop

__all__ = ["KERNEL_BUFFER", "Conditions", "Pipe", "Sink", "Socket", "Transport"]

HIGH_WATER = 64 * 1024
KERNEL_BUFFER = 16 * 1024
"""Bytes under way that the kernel has taken over: a process need not wait for them."""


class Conditions:
    """The behaviour of a stream.

    ``least`` and ``most`` bound the delay of a delivery, and ``stall`` is added to it; in seconds.
    ``split`` is the probability that a delivery is cut in two.  Only the bytes of ``traced``
    streams are part of the run's trace.
    """

    def __init__(self, least: float, most: float, split: float = 0.1) -> None:
        self.least = least
        self.most = most
        self.split = split
        self.stall = 0.0
        self.traced = True


class Sink(Protocol):
    """The receiving end of a pipe."""

    def take(self, data: bytes) -> None:
        """Receive the next bytes."""

    def ended(self, error: Exception | None) -> None:
        """Receive the end: an orderly one (None), or a broken connection."""


class Pipe:
    """One direction of a stream of bytes."""

    def __init__(
        self,
        loop: SimLoop,
        random: Random,
        conditions: Conditions,
        sink: Sink,
        context: Context | None = None,
    ) -> None:
        self.size = 0
        """Number of bytes under way."""
        self.leftover = b""
        """The bytes that were under way when the receiver closed."""
        self.on_room: Callable[[], None] | None = None
        self.change: Callable[[bytes], bytes] | None = None
        """A fault's function from sent to delivered bytes."""
        self._loop = loop
        self._random = random
        self._conditions = conditions
        self._sink = sink
        self._context = context or loop.outside
        self._chunks: deque[bytes] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._end: tuple[Exception | None] | None = None
        self._closed = False
        self._paused = False

    def send(self, data: bytes) -> None:
        """Send bytes."""
        if data and self._end is None and not self._closed:
            self._chunks.append(data)
            self.size += len(data)
            self._schedule()

    def finish(self, error: Exception | None = None) -> None:
        """Send the end of the stream, after the bytes under way."""
        if self._end is None and not self._closed:
            self._end = (error,)
            self._schedule()

    def close(self) -> None:
        """Close the receiving end."""
        self.leftover = b"".join(self._chunks)
        self._chunks.clear()
        self.size = 0
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def cut(self) -> None:
        """Drop the bytes under way from a random one on."""
        data = b"".join(self._chunks)
        keep = data[: self._random.randint(0, len(data))]
        self._chunks.clear()
        self.size = len(keep)
        if keep:
            self._chunks.append(keep)

    def redirect(self, sink: Sink, context: Context) -> None:
        """Deliver to this receiver from now on."""
        self._sink, self._context = sink, context

    def pause(self, paused: bool) -> None:
        """Suspend or resume delivery."""
        self._paused = paused
        if not paused:
            self._schedule()

    def wake(self) -> None:
        """Apply changed conditions to the bytes under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and not self._closed and not self._paused:
            if not (self._chunks or self._end):
                return
            c = self._conditions
            delay = c.least + self._random.random() ** 3 * (c.most - c.least) + c.stall
            self._timer = self._loop.call_later(delay, self._deliver, context=self._context)

    def _deliver(self) -> None:
        self._timer = None
        if self._closed or self._paused:
            return
        if self._chunks:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            if self._random.random() < self._conditions.split:
                at = self._random.randrange(len(data)) + 1
                if at < len(data):
                    self._chunks.append(data[at:])
                    data = data[:at]
            self.size -= len(data)
            if self.on_room is not None and self.size < KERNEL_BUFFER:
                self.on_room()
            if self.change is not None:
                data = self.change(data)
            if data:
                checksum = crc32(data) if self._conditions.traced else 0
                self._loop.trace.update(b"%r %d" % (self._loop.time(), checksum))
                self._sink.take(data)
        elif self._end is not None:
            self._closed = True
            self._sink.ended(self._end[0])
        self._schedule()


class Socket:
    """The part of a socket that servers use: its address and the peer's credentials."""

    def __init__(self, name: str, uid: int = 0) -> None:
        self.family = socket.AF_UNIX
        self.name = name
        self._uid = uid

    def getsockname(self) -> str:
        """Return its path."""
        return self.name

    def listen(self, backlog: int) -> None:
        """Do nothing: it listens already."""

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """Return the peer's credentials, the only option that is read."""
        return struct.pack("3i", 1, self._uid, self._uid)

    def setsockopt(self, *arguments: object) -> None:
        """Do nothing: options have no effect here."""


class Transport(asyncio.Transport):
    """One end of a stream, in a process.  ``out`` and ``into`` are its pipes, attached by ``join``.

    Observers: ``watch`` gets all bytes written, before they are sent, and ``see`` all bytes
    received, before the protocol gets them.  ``on_close`` is called when the connection ends, and
    ``on_end`` when the process learns of it or is dead.
    """

    def __init__(
        self, loop: SimLoop, process: Process, protocol: asyncio.Protocol, sock: Socket
    ) -> None:
        super().__init__({"socket": sock, "peername": None, "sockname": sock.name})
        self.out: Pipe
        self.into: Pipe
        self.watch: Callable[[bytes], None] | None = None
        self.see: Callable[[bytes], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self._loop = loop
        self._process = process
        self._protocol = protocol
        self._high = HIGH_WATER
        self._full = False
        self._closing = False
        self._lost = False
        self.context = process.context
        process.handlers.append(self._died)

    def join(self, out: Pipe, into: Pipe) -> None:
        """Attach the pipes."""
        self.out, self.into = out, into
        out.on_room = self._room

    # ------------------------------------------------------------- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes.  The process may die in the middle of it."""
        dies = self._process.enter_call()
        if self._closing:
            return
        if dies:
            data = bytes(data)[: len(data) // 2]
        if self.watch is not None:
            self.watch(bytes(data))
        self.out.send(bytes(data))
        if dies:
            self._process.die_in_call()
        if self.get_write_buffer_size() > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """Send the concatenation of several pieces."""
        self.write(b"".join(list_of_data))

    def _room(self) -> None:
        if self._full and not self._lost:
            self._full = False
            self._loop.call_soon(self._resume, context=self.context)

    def _resume(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    def write_eof(self) -> None:
        """Send the end of the stream."""
        self._process.enter_call()
        self.out.finish()

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the size above which the protocol's writing is paused."""
        self._high = HIGH_WATER if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the kernel has not taken over."""
        return max(0, self.out.size - KERNEL_BUFFER)

    # ------------------------------------------------------------- reading

    def take(self, data: bytes) -> None:
        """Receive bytes.  Called in the process."""
        if self._closing:
            return
        if self.see is not None:
            self.see(data)
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - as asyncio does
            self._fail("protocol.data_received() call failed.", error)

    def ended(self, error: Exception | None) -> None:
        """Receive the end of the stream.  Called in the process."""
        if self._closing:
            return
        if error is not None:
            self._close(error)
        elif not self._protocol.eof_received():
            self._process.enter_call()
            self._close(None)  # the protocol learns of it in the next turn

    def pause_reading(self) -> None:
        """Suspend delivery."""
        self.into.pause(True)

    def resume_reading(self) -> None:
        """Resume delivery."""
        if not self._closing:
            self.into.pause(False)

    def is_reading(self) -> bool:
        """Return whether bytes are received."""
        return not self._closing

    # ------------------------------------------------------------- closing

    def is_closing(self) -> bool:
        """Return whether it is closed or closing."""
        return self._closing

    def close(self) -> None:
        """Close; the bytes written so far still arrive."""
        if self._closing:
            return
        self._process.enter_call()
        self._close(None)
        self._learn_end()

    def abort(self) -> None:
        """Close."""
        self.close()

    def _fail(self, message: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})
        self._close(error)

    def _close(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self.out.finish()
        self._leave()
        self._loop.call_soon(self._report_loss, error, context=self.context)

    def _leave(self) -> None:
        self.into.close()
        if self.on_close is not None:
            self.on_close()

    def _report_loss(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._learn_end()
            self._protocol.connection_lost(error)

    def _learn_end(self) -> None:
        if self.on_end is not None:
            self.on_end()
            self.on_end = None

    def break_off(self, error: Exception) -> None:
        """Break the connection from outside of the process."""
        if not self._closing:
            self._close(error)

    def _died(self) -> None:
        """Close after the process died.  Bytes that the kernel has taken over may still arrive."""
        if not self._closing:
            self._closing = self._lost = True
            if self.out.size > HIGH_WATER:
                self.out.cut()
            self.out.finish()
            self._leave()
            self._learn_end()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the protocol."""
        self._protocol = cast(asyncio.Protocol, protocol)
