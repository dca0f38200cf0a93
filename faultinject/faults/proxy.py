"""The proxy in the links of a node that allows faults: it relays bytes, or lies.

It is a separate process, because the voter has no fault hooks:

    python -m faultinject.faults.proxy --control PATH --link NAME VOTER_SIDE GUEST_SIDE ...

It listens on VOTER_SIDE, and for each connection there opens one to GUEST_SIDE; both are unix
socket paths.  Without a lie it relays bytes as they come, with the flow control of both sides; the
transports' limits bound what it holds.  If one side closes, it aborts the other at once and drops
undelivered bytes, because QEMU serves one connection at a time and would make the next one wait.

Its control socket takes lines of JSON, and answers each with one line:

    {"do": "lie", "link": "g3", "kind": "corrupt-reply", "seed": "00ff"}   seed: hex
    {"do": "relay", "link": "g3"}
    {"do": "status"}

The answer is {"ok": true, "links": {NAME: {"kind", "count", "connected"}}} or {"ok": false,
"error": TEXT}.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Any, cast

from deploy.host.files import share_socket
from faultinject.faults.lies import Delay, Lie, make

__all__ = ["ProxiedLink", "Proxy", "main"]

WRITE_LIMIT = 256 << 10
"""Bytes that wait for one end before the proxy stops reading from the other."""
CONTROL_LINE = 4096
"""Longest line on the control socket, in bytes; a longer one ends the connection."""


class _End(asyncio.Protocol):
    """One side of a relayed connection.

    Without a lie ``data_received`` is the other side's ``write`` itself: a piece passes through no
    code of this module.
    """

    def __init__(self, wire: _Wire, *, from_guest: bool) -> None:
        self._wire = wire
        self._from_guest = from_guest
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_LIMIT)
        self._wire.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other connection too (asyncio)."""
        self.transport = None
        self._wire.cut()

    def pause_writing(self) -> None:
        """Stop reading from the other end (asyncio)."""
        self._wire.hold(self, paused=True)

    def resume_writing(self) -> None:
        """Read from the other end again (asyncio)."""
        self._wire.hold(self, paused=False)


class _Wire:
    """A connection from the voter and the one to the guest that was opened for it."""

    def __init__(self, link: ProxiedLink) -> None:
        self._link = link
        self.voter = _End(self, from_guest=False)
        self.guest = _End(self, from_guest=True)
        self._connecting: asyncio.Task[None] | None = None
        self._over = False
        self._delay_line: _DelayLine | None = None

    def joined(self, end: _End) -> None:
        """Continue the setup after an end is connected: first the voter's, then the guest's."""
        if self._over and end.transport is not None:
            end.transport.abort()
        elif end is self.voter and end.transport is not None:
            # Not at once: Python 3.11.2 starts to read after connection_made, paused or not.
            asyncio.get_running_loop().call_soon(end.transport.pause_reading)
            self._connecting = asyncio.ensure_future(self._connect())
        elif self.voter.transport is not None:
            self.route(self._link.lie)
            self.voter.transport.resume_reading()
            self._link.wires.add(self)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: self.guest, self._link.guest_side)
        except OSError:
            self.cut()  # nobody listens: the voter sees the end at once, as without a proxy

    def route(self, lie: Lie | None) -> None:
        """Relay between the ends; the guest's bytes pass through ``lie``."""
        voter, guest = self.voter.transport, self.guest.transport
        if voter is None or guest is None:
            return
        if self._delay_line is not None:
            self._delay_line.flush()
            self._delay_line = None
        to_voter = voter.write
        self.voter.data_received = guest.write  # type: ignore[method-assign]
        if lie is None:
            self.guest.data_received = to_voter  # type: ignore[method-assign]
        elif isinstance(lie, Delay):
            self._delay_line = _DelayLine(lie, guest, voter)
            self.guest.data_received = self._delay_line.take  # type: ignore[method-assign]
        else:
            feed = lie.feed
            self.guest.data_received = (  # type: ignore[method-assign]
                lambda data: to_voter(feed(data))
            )

    def send_to_voter(self, data: bytes) -> None:
        """Send bytes to the voter that a lie had held back."""
        if self.voter.transport is not None:
            self.voter.transport.write(data)

    def hold(self, full: _End, *, paused: bool) -> None:
        """Stop reading from the other end while ``full`` takes no more, or start again."""
        other = (self.guest if full is self.voter else self.voter).transport
        if other is not None and not other.is_closing():
            if paused:
                other.pause_reading()
            else:
                other.resume_reading()

    def cut(self) -> None:
        """End both connections at once."""
        self._over = True
        self._link.wires.discard(self)
        if self._delay_line is not None:
            self._delay_line.drop()
        if self._connecting is not None:
            self._connecting.cancel()
        for end in (self.voter, self.guest):
            if end.transport is not None:
                end.transport.abort()


class _DelayLine:
    """Delayed pieces on their way to the voter, in order; at most about WRITE_LIMIT bytes."""

    def __init__(self, lie: Delay, guest: asyncio.Transport, voter: asyncio.Transport) -> None:
        self._lie = lie
        self._guest = guest
        self._voter = voter
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, data: bytes) -> None:
        """Delay a piece; it does not overtake the one before it."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._lie.late()
        if self._pieces:
            due = max(due, self._pieces[-1][0])
        self._pieces.append((due, self._lie.feed(data)))
        self._size += len(data)
        if self._size > WRITE_LIMIT:
            self._guest.pause_reading()
        if self._timer is None:
            self._timer = loop.call_at(due, self._arrive)

    def _arrive(self) -> None:
        loop, full = asyncio.get_running_loop(), self._size > WRITE_LIMIT
        self._timer = None
        while self._pieces and self._pieces[0][0] <= loop.time():
            self._deliver()
        if full and self._size <= WRITE_LIMIT and not self._guest.is_closing():
            self._guest.resume_reading()
        if self._pieces:
            self._timer = loop.call_at(self._pieces[0][0], self._arrive)

    def _deliver(self) -> None:
        _, data = self._pieces.popleft()
        self._size -= len(data)
        self._voter.write(data)

    def flush(self) -> None:
        """Deliver all pieces at once."""
        while self._pieces:
            self._deliver()
        self.drop()
        if not self._guest.is_closing():
            self._guest.resume_reading()

    def drop(self) -> None:
        """Drop all pieces: the connection has ended."""
        self._pieces.clear()
        self._size = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ProxiedLink:
    """A named link: the addresses of its two sides, and its present lie (or None)."""

    def __init__(self, name: str, voter_side: str, guest_side: str) -> None:
        self.name = name
        self.voter_side = voter_side
        self.guest_side = guest_side
        self.kind: str | None = None
        self.lie: Lie | None = None
        self.wires: set[_Wire] = set()

    def set_lie(self, kind: str | None, seed: bytes = b"") -> None:
        """Start lying in this way, or relay unchanged bytes (None).  Raises ValueError."""
        lie = None if kind is None else make(kind, seed)
        held = self.lie.end() if self.lie is not None else b""
        self.kind, self.lie = kind, lie
        for wire in self.wires:
            if held:
                wire.send_to_voter(held)
            wire.route(lie)

    async def listen(self) -> asyncio.Server:
        """Listen on the voter's side.  Raises OSError."""
        sock = _bind(self.voter_side)
        share_socket(Path(self.voter_side))
        return await asyncio.get_running_loop().create_unix_server(
            lambda: _Wire(self).voter, sock=sock
        )


def _bind(path: str) -> socket.socket:
    """Return a unix socket bound to ``path``; replace one that an ended process left there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
    except OSError:
        listener.close()
        raise
    return listener


class Proxy:
    """All links of a node, and the control socket."""

    def __init__(self, links: list[ProxiedLink], control: str) -> None:
        self.links = {link.name: link for link in links}
        self._control = control

    async def run(self, started: asyncio.Event, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set; set ``started`` once all sockets listen.

        Raises OSError.
        """
        async with contextlib.AsyncExitStack() as servers:
            for link in self.links.values():
                await servers.enter_async_context(await link.listen())
            control = await asyncio.start_unix_server(
                self._converse, sock=_bind(self._control), limit=CONTROL_LINE
            )
            await servers.enter_async_context(control)
            started.set()
            await stop.wait()
            for link in self.links.values():
                for wire in list(link.wires):
                    wire.cut()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self.answer(line), allow_nan=False).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            sys.stderr.write(f"control connection ended: {error}\n")
        finally:
            writer.close()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Execute one line of the control socket; return the answer."""
        try:
            command = json.loads(line)
            do = command["do"]
            if do == "lie":
                seed = bytes.fromhex(command["seed"])
                self.links[command["link"]].set_lie(command["kind"], seed)
            elif do == "relay":
                self.links[command["link"]].set_lie(None)
            elif do != "status":
                raise ValueError(f"cannot do {do!r}")
        except (ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}
        links = {
            link.name: {
                "kind": link.kind,
                "count": link.lie.count if link.lie is not None else 0,
                "connected": bool(link.wires),
            }
            for link in self.links.values()
        }
        return {"ok": True, "links": links}


async def _main(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    started, stop = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    task = asyncio.ensure_future(proxy.run(started, stop))
    waiting = asyncio.ensure_future(started.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    if started.is_set():
        sys.stdout.write("ready\n")
        sys.stdout.flush()
    waiting.cancel()
    await task


def main(arguments: list[str] | None = None) -> int:
    """Run the proxy; print ``ready`` once all sockets listen."""
    parser = argparse.ArgumentParser(
        prog="python -m faultinject.faults.proxy", description="Link proxy"
    )
    parser.add_argument("--control", type=Path, required=True, help="unix socket for commands")
    parser.add_argument(
        "--link",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "VOTER_SIDE", "GUEST_SIDE"),
        help="a link: its name, the socket to listen on, the guest's socket",
    )
    options = parser.parse_args(arguments)
    proxy = Proxy([ProxiedLink(*parts) for parts in options.link], str(options.control))
    try:
        asyncio.run(_main(proxy))
    except OSError as error:
        sys.stderr.write(f"proxy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
