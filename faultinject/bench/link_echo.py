"""The echo program of ``trivisor bench link``, run in a guest in place of the agent.

The control port takes lines ``LINK READ_SIZE SPIN_US``.  Each ends the echo process that runs,
starts one for that link, and is answered ``ok``.  Standard library only; it imports nothing of this
project, because a guest holds little of it.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import time
from collections.abc import Callable

HEAD = 4
"""Bytes before a message: its length, big endian."""
SLOTS, SLOT, DATA = 128, 8192, 4096
RING_SIZE = 4 << 20
"""A ring each way: counters in the first page, then SLOTS slots of SLOT bytes for each direction.
A slot holds the message's length (4 bytes, native) and the message."""
TO_GUEST, TO_HOST = 0, 16
"""Index of each direction's counter of written messages, in 4-byte words: one cache line each."""
TCP_PORT = 7


def slot(direction: int, number: int) -> int:
    """Return the offset of a message's slot."""
    return DATA + (SLOTS if direction == TO_HOST else 0) * SLOT + number % SLOTS * SLOT


def put(ring: mmap.mmap, direction: int, number: int, message: bytes) -> None:
    """Write a message into its slot; it is visible once the counter is raised."""
    at = slot(direction, number)
    ring[at : at + 4] = len(message).to_bytes(4, "little")
    ring[at + 4 : at + 4 + len(message)] = message


def get(ring: mmap.mmap, direction: int, number: int) -> bytes:
    """Return a copy of the message in a slot.  Raises ValueError if its length is impossible."""
    at = slot(direction, number)
    size = int.from_bytes(ring[at : at + 4], "little")
    if size > SLOT - 4:
        raise ValueError(f"a message of {size} bytes in a slot of {SLOT}")
    return ring[at + 4 : at + 4 + size]


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, size: int, spin: float) -> bytes:
    """Read; with ``spin`` (seconds), first try without blocking for so long."""
    if spin:
        os.set_blocking(fd, False)
        ends = time.monotonic() + spin
        while time.monotonic() < ends:
            try:
                return os.read(fd, size)
            except BlockingIOError:
                continue
        os.set_blocking(fd, True)
    return os.read(fd, size)


def _echo(fd: int, size: int, spin: float) -> None:
    """Answer each message with itself; all that one read brought, in one write."""
    os.set_blocking(fd, True)  # a killed child that polled left the shared descriptor otherwise
    held = b""
    while True:
        data = _read(fd, size, spin)
        if not data:
            return
        held += data
        at, answers = 0, []
        while len(held) - at >= HEAD:
            end = at + HEAD + int.from_bytes(held[at : at + HEAD], "big")
            if end > len(held):
                break
            answers.append(held[at:end])
            at = end
        held = held[at:]
        if answers:
            if spin:
                os.set_blocking(fd, True)
            _write(fd, b"".join(answers))


def _echo_tcp(listener: socket.socket, size: int, spin: float) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _echo(connection.fileno(), size, spin)
        connection.close()


def _echo_ring(ring: mmap.mmap, bell: int | None) -> None:
    """Answer through the ring; poll its counter, or wait for a byte at the bell's port."""
    words = memoryview(ring).cast("I")  # one store or load of 4 bytes each
    done = words[TO_HOST]
    while True:
        if bell is not None:
            os.read(bell, 4096)
        written = words[TO_GUEST]
        if written == done:
            continue
        while done != written:
            put(ring, TO_HOST, done, get(ring, TO_GUEST, done))
            done = done + 1 & 0xFFFFFFFF
        words[TO_HOST] = done
        if bell is not None:
            _write(bell, b"!")


def _port(name: str) -> int:
    """Open the virtio-serial port of this name; the drivers may still be probing."""
    root, ends = "/sys/class/virtio-ports", time.monotonic() + 30
    while time.monotonic() < ends:
        for entry in os.listdir(root) if os.path.isdir(root) else ():
            with open(f"{root}/{entry}/name") as file:
                if file.read().strip() == name and os.path.exists(f"/dev/{entry}"):
                    return os.open(f"/dev/{entry}", os.O_RDWR)
        time.sleep(0.01)  # sysfs gives no event
    raise SystemExit(f"no virtio-serial port {name!r}")


def _map_ring() -> mmap.mmap:
    """Map the ivshmem device's memory (PCI 1af4:1110, resource 2)."""
    root = "/sys/bus/pci/devices"
    for entry in sorted(os.listdir(root)):
        with open(f"{root}/{entry}/vendor") as vendor, open(f"{root}/{entry}/device") as device:
            if (vendor.read().strip(), device.read().strip()) != ("0x1af4", "0x1110"):
                continue
        with open(f"{root}/{entry}/enable", "w") as enable:
            enable.write("1")
        with open(f"{root}/{entry}/resource2", "r+b") as memory:
            return mmap.mmap(memory.fileno(), RING_SIZE)
    raise SystemExit("no ivshmem device")


def main() -> None:
    """Serve the control port for ever."""
    control, port, quiet, bell = (_port(name) for name in ("control", "echo", "quiet", "bell"))
    ring, listener = _map_ring(), socket.create_server(("", TCP_PORT))
    _write(control, b"ok\n")
    child, held = 0, b""
    while True:
        held += os.read(control, 4096)
        line, end, rest = held.partition(b"\n")
        if not end:
            continue
        held = rest
        link, size, spin = line.decode().split()
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        seconds, read_size = int(spin) / 1e6, int(size)
        run: dict[str, Callable[[], None]] = {
            "echo": lambda s=read_size, t=seconds: _echo(port, s, t),
            "quiet": lambda s=read_size, t=seconds: _echo(quiet, s, t),
            "tcp": lambda s=read_size, t=seconds: _echo_tcp(listener, s, t),
            "ring": lambda: _echo_ring(ring, None),
            "bell": lambda: _echo_ring(ring, bell),
        }
        if link != "idle":
            child = os.fork()
            if child == 0:
                run[link]()
                os._exit(1)
        _write(control, b"ok\n")


if __name__ == "__main__":
    main()
