"""A simulated guest: the real agent's ``Incarnation`` and a real service behind a virtio port.

The port behaves as a virtio-serial port whose host end is a socket.  It has one connection at a
time, and the guest's writes wait while there is none.  When the host end closes, the guest reads
the end of file some time later, or never if the host reconnects first.  Bytes that the guest wrote
to the old connection may still be delivered to the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Protocol

from faultinject.faults import lies
from faultinject.simulation.loop import Process
from faultinject.simulation.network import NetworkLoop
from faultinject.simulation.streams import Conditions, Pipe, Socket, Transport
from guests.agent.incarnation import Incarnation
from guests.protocol.message import Reply, Request
from guests.protocol.wire import EMPTY_HISTORY, REPLIES_TIME
from guests.service import Context, Service
from guests.services.kv import KeyValue

__all__ = ["SimGuest", "Witness", "WitnessedService"]

BUILD = "simulated"
SLOW_REQUEST = 0.01
"""Probability that a guest finds, when it reads its clock, that more than REPLIES_TIME passed."""
SLOW_EVERYWHERE = 29
"""Requests whose number is divisible by it take so long on all guests."""


class _Frozen(BaseException):
    """The service hangs in the middle of a request, for good."""


class WitnessedService(KeyValue):
    """The key-value service, which reports to its witness what it applies and restores."""

    name = "kv"
    witness: Witness
    guest: SimGuest

    def __init__(self) -> None:
        super().__init__()
        self.tip: bytes | None = EMPTY_HISTORY
        """History of the last applied write; None after a restore, until the next write."""
        self.taken = b""
        """Digest of the restored state."""
        self.applied: set[bytes] = set()
        """Histories of the writes that it applied itself."""

    def apply(self, request: Request, context: Context) -> Reply:
        """Report a request, then apply it.  An ``x-deadly`` header ends or hangs the service."""
        self.witness.applies(self, request, context)
        if context.seq % SLOW_EVERYWHERE == 0:
            self.guest.work_slowly()
        deadly = request.headers.get("x-deadly")
        if deadly == "kill":
            raise SystemExit(1)
        if deadly == "freeze":
            raise _Frozen
        return super().apply(request, context)

    def restore(self, state: bytes) -> None:
        """Restore a state, then report it."""
        super().restore(state)
        self.witness.restored(self, state)


class Witness(Protocol):
    """The observer of what guests do."""

    def applies(self, service: WitnessedService, request: Request, context: Context) -> None:
        """Observe that a service is about to apply a request."""

    def restored(self, service: WitnessedService, state: bytes) -> None:
        """Observe that a service has restored a state."""

    def connected(self, guest: SimGuest, transport: Transport) -> None:
        """Observe that a voter connects to the guest's port."""


class SimGuest:
    """One guest.  ``honest``: since its boot no fault has changed its state or its replies."""

    def __init__(
        self, loop: NetworkLoop, index: int, conditions: Conditions, witness: Witness
    ) -> None:
        self.index = index
        self.up = False
        self.honest = True
        self.boots = 0
        self.number = 0
        self.incarnation: Incarnation | None = None
        self.conditions = conditions
        self.transport: Transport | None = None
        self._loop = loop
        self._witness = witness
        self._random: Random = loop.random("guest", index)
        self._clock_random = loop.random("clock", index)
        self._late = 0.0
        self._to_guest: Pipe | None = None
        self._to_host: Pipe | None = None
        self._connections = 0
        self._hung = False
        self._frozen = False  # by a request, in the middle of it
        self._inbox: list[bytes] = []
        self._outbox: list[bytes] = []
        self._stale = b""

        self._change: Callable[[bytes], bytes] | None = None
        self.service_class: type[Service] = type(
            "WitnessedService", (WitnessedService,), {"witness": witness, "guest": self}
        )

    @property
    def service(self) -> WitnessedService | None:
        """The running service, if there is one."""
        service = getattr(self.incarnation, "_service", None)
        return service if isinstance(service, WitnessedService) else None

    @property
    def serves(self) -> bool:
        """Whether its service runs and does not hang."""
        return self.incarnation is not None and not (self._hung or self._frozen)

    @property
    def connected(self) -> bool:
        """Whether it serves, and a voter is connected to it."""
        return self.serves and self.transport is not None

    @property
    def epoch(self) -> int:
        """Epoch of the last handshake that its incarnation answered; -1 if there is none."""
        return self.incarnation._epoch if self.incarnation is not None else -1

    # ---------------------------------------------------------- life and death

    def boot(self) -> None:
        """Start the guest from its clean snapshot."""
        self.boots += 1
        self.number = 0
        self.up, self.honest, self._hung = True, True, False
        self._inbox.clear()
        self._outbox.clear()
        self._stale = b""
        self.change(None)
        self._start()

    def _start(self) -> None:
        self.number += 1
        self._frozen = False
        self.incarnation = Incarnation(
            self.service_class, self.number, BUILD, clock=self._read_clock
        )
        self._write(self.incarnation.announce())

    def _read_clock(self) -> float:
        """Return the guest's time.  Some requests take so long that their batch is answered late.

        Simulated time does not pass while a guest works, so only its own clock shows this.
        """
        if self._clock_random.random() < SLOW_REQUEST:
            self.work_slowly()
        return self._loop.time() + self._late

    def work_slowly(self) -> None:
        """Let the present request take more than REPLIES_TIME by the guest's clock."""
        self._late += 2 * REPLIES_TIME

    def power_off(self) -> None:
        """End the guest: its QEMU is gone."""
        self.up = False
        self.incarnation = None
        if self.transport is not None:
            to_host = self._to_host
            if to_host is not None:
                to_host.cut()
                to_host.finish()
            self.transport = None

    def kill_service(self, pause: float) -> None:
        """Kill the service process; the agent restarts it after a pause."""
        if self.incarnation is not None:
            self.incarnation = None
            self._loop.call_later(pause, self._restart, self.boots, context=self._loop.outside)

    def _restart(self, boots: int) -> None:
        if self.up and self.boots == boots and self.incarnation is None:
            self._start()
            self._process_inbox()

    def set_hung(self, hung: bool) -> None:
        """Stop reading from the port, or continue."""
        self._hung = hung
        if not hung:
            self._process_inbox()

    def stall(self, seconds: float) -> None:
        """Add this delay to each delivery on the link; with 0 the link recovers at once."""
        self.conditions.stall = seconds
        if not seconds:
            for pipe in (self._to_guest, self._to_host):
                if pipe is not None:
                    pipe.wake()

    def lie(self, kind: str | None) -> None:
        """Change what the guest sends to the voter by a lie of this kind (None: no longer)."""
        if kind is not None:
            self.honest = False
            self.change(lies.make(kind, self._random.randbytes(8)).feed)
        else:
            self.change(None)

    def change(self, change: Callable[[bytes], bytes] | None) -> None:
        """Apply this function to all bytes that the guest sends to the voter."""
        self._change = change
        if self._to_host is not None:
            self._to_host.change = change

    def corrupt_state(self) -> bool:
        """Change a stored value; return whether there was one.

        The new value differs from guest to guest, because faults are independent.  Two replicas
        that are wrong in the same way would outvote the third (``faults.VALUE_FAULTS``).
        """
        service = self.service
        if service is None or not service.table.entries:
            return False
        self.honest = False
        key = self._random.choice(sorted(service.table.entries))
        value, version = service.table.entries[key]
        service.table.entries[key] = (value + bytes([128 + self.index]), version)
        return True

    # ------------------------------------------------------------------ port

    async def connect(
        self, process: Process, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.BaseTransport:
        """Connect a voter to the port.  Raises OSError."""
        process.enter_call()
        await asyncio.sleep(self._random.random() * 0.0005)
        if not self.up:
            raise ConnectionRefusedError(111, "Connection refused")
        if self.transport is not None:
            self.transport.break_off(ConnectionResetError(104, "Connection reset by peer"))
        if self._to_guest is not None:  # one channel: earlier bytes come first
            self._to_guest.close()
            self._forward(self._to_guest.leftover)
        loop = self._loop
        protocol = factory()
        transport = Transport(loop, process, protocol, Socket(f"guest {self.index}"))
        self._connections += 1
        random = loop.random("link", self.index, self._connections)
        to_guest = Pipe(loop, random, self.conditions, _Port(self, transport))
        to_host = Pipe(loop, random, self.conditions, transport, process.context)
        to_host.change = self._change
        transport.join(to_guest, to_host)
        transport.on_close = lambda: self._host_closed(transport, to_host)
        self.transport, self._to_guest, self._to_host = transport, to_guest, to_host
        self._witness.connected(self, transport)
        await loop.made(protocol, transport)
        stale, self._stale = self._stale, b""
        to_host.send(stale)
        self._loop.call_soon(self._unblock, context=loop.outside)
        return transport

    def _forward(self, data: bytes) -> None:
        if data and self.up:
            self._loop.call_soon(self.read, data, context=self._loop.outside)

    def _host_closed(self, transport: Transport, to_host: Pipe) -> None:
        """Keep the bytes under way that the next connection may still get."""
        if self.transport is not transport:
            return
        self.transport = self._to_host = None
        if self._to_guest is not None and self._random.random() < 0.3:
            self._to_guest.cut()
        under_way = to_host.leftover
        if under_way and self._random.random() < 0.5:
            self._stale = under_way[self._random.randint(0, len(under_way)) :]

    def _unblock(self) -> None:
        """Send the writes that waited for a connection."""
        if self.transport is not None and self._to_host is not None:
            waiting, self._outbox = self._outbox, []
            for data in waiting:
                self._to_host.send(data)
            self._process_inbox()

    def _write(self, data: bytes) -> None:
        """Write to the port; the write waits while there is no connection."""
        if self._to_host is None or self._outbox:
            self._outbox.append(data)
        else:
            self._to_host.send(data)

    def read(self, data: bytes) -> None:
        """Receive bytes from the host (empty: its end is closed)."""
        self._inbox.append(data)
        self._process_inbox()

    def _process_inbox(self) -> None:
        """Process received bytes unless the service hangs, is dead, or waits for its write."""
        while self._inbox and self.up and not self._outbox:
            if self._hung or self._frozen:
                return
            incarnation = self.incarnation
            if incarnation is None:
                return
            data = self._inbox.pop(0)
            if data:
                self._feed(incarnation, data)
            else:
                incarnation.disconnect()
                self._write(incarnation.announce())

    def _feed(self, incarnation: Incarnation, data: bytes) -> None:
        try:
            for answers in incarnation.receive(data):
                self._write(answers)
        except SystemExit:
            self.kill_service(self._random.random() * 0.05)
        except _Frozen:
            self._frozen = True


class _Port:
    """The guest's end of a connection."""

    def __init__(self, guest: SimGuest, transport: Transport) -> None:
        self._guest = guest
        self._transport = transport

    def take(self, data: bytes) -> None:
        """Pass bytes to the guest."""
        if self._guest.up:
            self._guest.read(data)

    def ended(self, error: Exception | None) -> None:
        """Pass the end of file to the guest, unless the host has reconnected already."""
        if self._guest.up and self._guest.transport is None:
            self._guest.read(b"")
