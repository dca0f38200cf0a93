"""Simulated byte streams: delayed, coalesced, split, cut, and what a process has in its hand of
them.

A ``Pipe`` is one direction of a stream.  Every pipe draws from a random source of its own, named
after what it connects, so that what happens on one does not change what happens on another.
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
"""Bytes that a process has got rid of although they have not arrived."""


class Conditions:
    """How a stream behaves: ``delay`` (least, most) in seconds; ``split``: chance that a delivery
    is cut in two; ``stall``: seconds added to each delivery; ``traced``: what is delivered counts
    for the trace of the run.
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
        """The next bytes."""

    def ended(self, error: Exception | None) -> None:
        """There are no more: an orderly end (None), or a broken connection."""


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
        """Bytes under way."""
        self.leftover = b""
        """What was under way when the receiver closed."""
        self.on_room: Callable[[], None] | None = None
        self.change: Callable[[bytes], bytes] | None = None
        """What a fault makes of the bytes that pass."""
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
        """Put bytes on their way."""
        if data and self._end is None and not self._closed:
            self._chunks.append(data)
            self.size += len(data)
            self._schedule()

    def finish(self, error: Exception | None = None) -> None:
        """No more will be sent; what is under way still arrives."""
        if self._end is None and not self._closed:
            self._end = (error,)
            self._schedule()

    def close(self) -> None:
        """The receiver is gone."""
        self.leftover = b"".join(self._chunks)
        self._chunks.clear()
        self.size = 0
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def cut(self) -> None:
        """Lose the tail of what is under way, from a random byte on."""
        data = b"".join(self._chunks)
        keep = data[: self._random.randint(0, len(data))]
        self._chunks.clear()
        self.size = len(keep)
        if keep:
            self._chunks.append(keep)

    def lead(self, sink: Sink, context: Context) -> None:
        """Lead to this receiver from now on."""
        self._sink, self._context = sink, context

    def pause(self, paused: bool) -> None:
        """The receiver takes nothing for now, or goes on."""
        self._paused = paused
        if not paused:
            self._schedule()

    def wake(self) -> None:
        """The conditions have changed: what is under way arrives as they are now."""
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
                told = crc32(data) if self._conditions.traced else 0
                self._loop.trace.update(b"%r %d" % (self._loop.time(), told))
                self._sink.take(data)
        elif self._end is not None:
            self._closed = True
            self._sink.ended(self._end[0])
        self._schedule()


class Socket:
    """As much of a socket as servers ask for: where it is, and who is at the other end."""

    def __init__(self, name: str, uid: int = 0) -> None:
        self.family = socket.AF_UNIX
        self.name = name
        self._uid = uid

    def getsockname(self) -> str:
        """Its path."""
        return self.name

    def listen(self, backlog: int) -> None:
        """It listens already."""

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """The credentials of the peer (the only option that is asked for)."""
        return struct.pack("3i", 1, self._uid, self._uid)

    def setsockopt(self, *arguments: object) -> None:
        """Options make no difference here."""


class Transport(asyncio.Transport):
    """One end of a stream, in a process.  ``out`` and ``into`` are its pipes, set by who makes it.

    ``watch`` sees all that is written, before it goes out; ``see`` what comes in, before the
    protocol does, and ``saw`` is called after it.  ``on_close`` is called when the connection ends,
    ``on_end`` when its process knows of that (or is dead).
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
        """asyncio: send bytes; a process may die in the middle of it."""
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
        """asyncio: send several."""
        self.write(b"".join(list_of_data))

    def _room(self) -> None:
        if self._full and not self._lost:
            self._full = False
            self._loop.call_soon(self._resume, context=self.context)

    def _resume(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    def write_eof(self) -> None:
        """asyncio: nothing more is sent."""
        self._process.enter_call()
        self.out.finish()

    def can_write_eof(self) -> bool:
        """asyncio: yes."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """asyncio: when to pause the protocol's writing."""
        self._high = HIGH_WATER if high is None else high

    def get_write_buffer_size(self) -> int:
        """asyncio: bytes that are not taken yet."""
        return max(0, self.out.size - KERNEL_BUFFER)

    # ------------------------------------------------------------- reading

    def take(self, data: bytes) -> None:
        """Bytes have come (called as the process)."""
        if self._closing:
            return
        if self.see is not None:
            self.see(data)
        try:
            self._protocol.data_received(data)
        except Exception as error:  # noqa: BLE001 - as asyncio does
            self._fail("protocol.data_received() call failed.", error)

    def ended(self, error: Exception | None) -> None:
        """The other end has closed (called as the process)."""
        if self._closing:
            return
        if error is not None:
            self._close(error)
        elif not self._protocol.eof_received():
            self._process.enter_call()
            self._close(None)  # the protocol learns of it in the next turn

    def pause_reading(self) -> None:
        """asyncio: take nothing for now."""
        self.into.pause(True)

    def resume_reading(self) -> None:
        """asyncio: go on."""
        if not self._closing:
            self.into.pause(False)

    def is_reading(self) -> bool:
        """asyncio: whether bytes are taken."""
        return not self._closing

    # ------------------------------------------------------------- closing

    def is_closing(self) -> bool:
        """asyncio: whether it is closed, or about to."""
        return self._closing

    def close(self) -> None:
        """asyncio: close once everything is sent."""
        if self._closing:
            return
        self._process.enter_call()
        self._close(None)
        self._know()

    def abort(self) -> None:
        """asyncio: close now."""
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
        self._loop.call_soon(self._tell_lost, error, context=self.context)

    def _leave(self) -> None:
        self.into.close()
        if self.on_close is not None:
            self.on_close()

    def _tell_lost(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._know()
            self._protocol.connection_lost(error)

    def _know(self) -> None:
        if self.on_end is not None:
            self.on_end()
            self.on_end = None

    def break_off(self, error: Exception) -> None:
        """The connection is gone (called from outside of the process)."""
        if not self._closing:
            self._close(error)

    def _died(self) -> None:
        """The process is dead: what the kernel has taken may still arrive, then the end."""
        if not self._closing:
            self._closing = self._lost = True
            if self.out.size > HIGH_WATER:
                self.out.cut()
            self.out.finish()
            self._leave()
            self._know()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """asyncio: whom it talks to."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """asyncio: talk to another one."""
        self._protocol = cast(asyncio.Protocol, protocol)
