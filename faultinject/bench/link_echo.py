"""The echo program of ``trivisor bench link``: a guest runs it in place of the agent.

The control port takes names of links, one a line.  To each name this program answers ``ok``.  It
then sends back whatever comes over that link until END comes, and answers with the size of the
largest read.  It imports only what a guest has: the agent and the standard library.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

from guests.agent.main import READ_SIZE, find_port, write_all

__all__ = [
    "CAPACITY", "END", "RING_SIZE", "PORT", "TO_GUEST", "TO_HOST", "Ring", "echo", "main",
    "wait_bell", "write_and_ring",
]  # fmt: skip

END = b"the end of this measurement\n"
"""Sent alone, when nothing else is on its way."""
PORT = 7
"""Of TCP and of vsock."""
RING_SIZE = 4 << 20
"""Bytes of the shared memory, a power of two as a PCI device's has to be."""
TO_GUEST, TO_HOST = 0, 16
"""The counter of each direction, counted in 4-byte words: each has a cache line."""
CAPACITY = 1 << 20
_FIRST = 4096
_MODULUS = 1 << 32
_BELL = b"!"


class Ring:
    """One side of two rings of bytes in shared memory, one for each direction.

    The first page holds the number of bytes ever written in each direction, modulo 2^32.  The
    writer raises it after it has written the bytes, with one store.  The reader copies the bytes.
    There is no flow control: at most CAPACITY bytes may be unread.
    """

    def __init__(self, memory: mmap.mmap, outgoing: int) -> None:
        incoming = TO_GUEST if outgoing == TO_HOST else TO_HOST
        self._memory = memory
        self._counters = memoryview(memory).cast("I")
        self._outgoing, self._incoming = outgoing, incoming
        self._written, self._read = self._counters[outgoing], self._counters[incoming]

    def write(self, data: bytes) -> None:
        """Write bytes; the other side sees all of them at once."""
        start = _place(self._outgoing)
        at = self._written % CAPACITY
        first = data[: CAPACITY - at]
        self._memory[start + at : start + at + len(first)] = first
        if len(first) < len(data):
            self._memory[start : start + len(data) - len(first)] = data[len(first) :]
        self._written = (self._written + len(data)) % _MODULUS
        self._counters[self._outgoing] = self._written

    def read(self) -> bytes:
        """Return a copy of what was written since the last call; nothing if nothing was."""
        count = (self._counters[self._incoming] - self._read) % _MODULUS
        if not count:
            return b""
        start, at = _place(self._incoming), self._read % CAPACITY
        data = self._memory[start + at : start + min(at + count, CAPACITY)]
        if len(data) < count:
            data += self._memory[start : start + count - len(data)]
        self._read = (self._read + count) % _MODULUS
        return data


def _place(direction: int) -> int:
    """Return the offset of a direction's bytes."""
    return _FIRST + (CAPACITY if direction == TO_HOST else 0)


def poll(ring: Ring) -> bytes:
    """Poll a ring until it holds bytes."""
    while not (data := ring.read()):
        pass
    return data


def wait_bell(ring: Ring, wait: Callable[[int], bytes]) -> bytes:
    """Wait for the bell until the ring holds bytes: one read may bring those of several bells."""
    data = b""
    while not data:
        wait(READ_SIZE)
        data = ring.read()
    return data


def write_and_ring(ring: Ring, write: Callable[[bytes], object], data: bytes) -> None:
    """Write to a ring, then ring the bell of the other side."""
    ring.write(data)
    write(_BELL)


def echo(read: Callable[[], bytes], write: Callable[[bytes], object]) -> int:
    """Write what is read until END is read; return the size of the largest read."""
    largest = 0
    while (data := read()) != END:
        if len(data) > largest:
            largest = len(data)
        write(data)
    return largest


def _open_port(name: str) -> int:
    return os.open(find_port(name, time.monotonic() + 60), os.O_RDWR)


def _map_ring() -> mmap.mmap:
    """Map the memory of the ivshmem device (PCI 1af4:1110, resource 2)."""
    root = "/sys/bus/pci/devices"
    for entry in os.listdir(root):
        with open(f"{root}/{entry}/vendor") as vendor, open(f"{root}/{entry}/device") as device:
            if (vendor.read().strip(), device.read().strip()) != ("0x1af4", "0x1110"):
                continue
        with open(f"{root}/{entry}/enable", "w") as enable:
            enable.write("1")
        with open(f"{root}/{entry}/resource2", "r+b") as resource:
            return mmap.mmap(resource.fileno(), RING_SIZE)
    raise SystemExit("no ivshmem device")


@contextlib.contextmanager
def open_link(
    name: str, ports: dict[str, int], listeners: dict[str, socket.socket], memory: mmap.mmap
) -> Iterator[tuple[Callable[[], bytes], Callable[[bytes], object]]]:
    """Yield the functions that read and write a link."""
    if name in ("virtio", "quiet"):
        yield partial(os.read, ports[name], READ_SIZE), partial(write_all, ports[name])
    elif name in listeners:
        with listeners[name].accept()[0] as connection:
            if name == "tcp":
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield partial(connection.recv, READ_SIZE), connection.sendall
    elif name == "ring":
        ring = Ring(memory, TO_HOST)
        yield partial(poll, ring), ring.write
    else:
        ring, bell = Ring(memory, TO_HOST), ports["bell"]
        read = partial(wait_bell, ring, partial(os.read, bell))
        yield read, partial(write_and_ring, ring, partial(write_all, bell))


def main() -> None:
    """Serve the control port for ever."""
    control = _open_port("control")
    ports = {name: _open_port(name) for name in ("virtio", "quiet", "bell")}
    vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    vsock.bind((socket.VMADDR_CID_ANY, PORT))
    vsock.listen()
    listeners, memory = {"tcp": socket.create_server(("", PORT)), "vsock": vsock}, _map_ring()
    write_all(control, b"ready\n")
    while True:
        name = os.read(control, READ_SIZE).decode().strip()
        with open_link(name, ports, listeners, memory) as (read, write):
            write_all(control, b"ok\n")
            write_all(control, b"%d\n" % echo(read, write))


if __name__ == "__main__":
    main()
