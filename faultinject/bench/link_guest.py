"""A guest that sends messages back over every kind of link, for ``trivisor bench link``.

It runs ``link_echo`` in place of the agent.  The ring is the memory of an ivshmem device.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deploy.errors import GuestNeverReady, HypervisorFailed
from deploy.machine.accel_probe import CPU_MODELS, start_qemu
from deploy.machine.spec import AcceleratorName
from faultinject.bench import link_echo, rig
from guests.image import COMMAND_LINE, Access, Image, Overlay, add_overlay

__all__ = ["ANSWER_LIMIT", "EchoGuest", "Link", "Stream", "boot", "echo_image", "missing_vsock"]

ANSWER_LIMIT = 30.0
"""Seconds for the guest's answer; then the run fails."""
BOOT_LIMIT = 120.0
"""Seconds for a guest to boot, which takes 5 on an idle host."""
VSOCK = Path("/dev/vhost-vsock")
_CONSOLE_LINES = 10
_ACCESS = """\
for module in /lib/modules/access/*.ko /lib/modules/vsock/*.ko; do
    $bb insmod "$module"
done
$bb ip link set lo up
$bb ip address add 10.0.2.15/24 dev eth0
$bb ip link set eth0 up
export PYTHONPATH=/opt/trivisor
exec /usr/bin/python3.11 -P -S -s /opt/trivisor/link_echo.py
"""
"""The image's init runs this before it would start the agent."""


def echo_image(base: Image, directory: Path) -> Image:
    """Return an image that runs the echo program, in ``directory``.  Raises ImageError."""
    overlay = Overlay(
        service="static",
        # For the network card's driver; no SSH server is started.
        access=Access(host=b"", client=""),
        files={
            "etc/trivisor/access": _ACCESS.encode(),
            "opt/trivisor/link_echo.py": Path(link_echo.__file__).read_bytes(),
        },
    )
    return add_overlay(base, directory, overlay)


class Stream:
    """A link that is a connected socket.  It never blocks to send while it could receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._unsent = sock, b""
        # Unlike a timeout of Python's, this needs no further system call for each receive.
        limit = struct.pack("ll", int(ANSWER_LIMIT), 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def send(self, data: bytes) -> None:
        """Send what can be sent now; ``receive`` sends the rest."""
        self._unsent += data
        with contextlib.suppress(BlockingIOError):
            count = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
            self._unsent = self._unsent[count:]

    def receive(self) -> bytes:
        """Return what has come, at least one byte.  Raises HypervisorFailed."""
        while self._unsent:
            both = [self._socket]
            readable, writable, _ = select.select(both, both, [], ANSWER_LIMIT)
            if readable or not writable:
                break
            self.send(b"")
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError as error:
            raise HypervisorFailed(
                f"the guest sent nothing for {ANSWER_LIMIT:g} s", error_code="TV0802"
            ) from error
        if not data:
            raise HypervisorFailed("the guest's QEMU closed the link", error_code="TV0802")
        return data


class Link(NamedTuple):
    """A link that is open.  ``receive`` may return nothing; ``waits``: it blocks on this socket."""

    send: Callable[[bytes], object]
    receive: Callable[[], bytes]
    waits: socket.socket | None


class EchoGuest:
    """A guest that runs the echo program, and the host's ends of its links."""

    def __init__(
        self,
        pid: int,
        sockets: Mapping[str, socket.socket],
        memory: mmap.mmap,
        connect: Mapping[str, Callable[[], socket.socket]],
    ) -> None:
        self.pid = pid
        self._sockets, self._memory, self._connect = sockets, memory, connect
        self._control = Stream(sockets["control"])

    @contextlib.contextmanager
    def open(self, link: str) -> Iterator[Link]:
        """Have the guest serve a link."""
        with contextlib.ExitStack() as stack:
            if link in self._connect:
                sock = stack.enter_context(self._connect[link]())
            else:
                sock = self._sockets["bell" if link == "ring" else link]
            self._control.send(link.encode())
            self._control.receive()
            stream, ring = Stream(sock), link_echo.Ring(self._memory, link_echo.TO_GUEST)
            if link == "ring":
                yield Link(ring.write, ring.read, None)
            elif link == "bell":

                def receive() -> bytes:
                    stream.receive()
                    return ring.read()

                yield Link(partial(link_echo.write_and_ring, ring, stream.send), receive, sock)
            else:
                yield Link(stream.send, stream.receive, sock)

    def end(self, link: Link) -> int:
        """Have the guest end the link that it serves; return the size of its largest read."""
        link.send(link_echo.END)
        return int(self._control.receive())


def _connect_tcp(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), ANSWER_LIMIT)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _connect_vsock(cid: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.settimeout(ANSWER_LIMIT)
    sock.connect((cid, link_echo.PORT))
    sock.settimeout(None)
    return sock


def missing_vsock(device: Path = VSOCK) -> str:
    """Return why a guest cannot have vsock on this host; "" if it can."""
    if not device.exists():
        return f"this host has no {device}: modprobe vhost_vsock"
    return "" if os.access(device, os.R_OK | os.W_OK) else f"this user may not open {device}"


@contextlib.asynccontextmanager
async def boot(
    image: Image, accel: AcceleratorName, console: Path, cid: int | None
) -> AsyncIterator[EchoGuest]:
    """Boot a guest with all links; end it afterwards.  Raises DeployError, OSError.

    ``console``: the file for what the guest prints.  ``cid``: its address in vsock, if it has one.
    """
    port = rig.free_port()
    names = ("control", "virtio", "quiet", "bell")
    with contextlib.ExitStack() as stack:
        pairs = {name: socket.socketpair() for name in names}
        memory_fd = os.memfd_create("ring")
        stack.callback(os.close, memory_fd)
        os.truncate(memory_fd, link_echo.RING_SIZE)
        words = []
        for name, (ours, theirs) in pairs.items():
            stack.enter_context(ours)
            stack.enter_context(theirs)
            bus = "quiet" if name == "quiet" else "usual"
            words += ["-chardev", f"socket,id={name},fd={theirs.fileno()}", "-device",
                      f"virtserialport,bus={bus}.0,chardev={name},name={name}"]  # fmt: skip
        process = await start_qemu(
            "-accel", accel, "-cpu", CPU_MODELS[accel], "-machine", "q35", "-m", "128",
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{console}",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", COMMAND_LINE,
            "-device", "virtio-serial-pci,id=usual",
            "-device", "virtio-serial-pci,id=quiet,ioeventfd=off", *words,
            "-netdev", f"user,id=net,restrict=on,ipv6=off,"
                       f"hostfwd=tcp:127.0.0.1:{port}-:{link_echo.PORT}",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-object", f"memory-backend-file,id=ring,share=on,mem-path=/proc/self/fd/{memory_fd},"
                       f"size={link_echo.RING_SIZE}",
            "-device", "ivshmem-plain,memdev=ring,master=on",
            *(["-device", f"vhost-vsock-pci,guest-cid={cid}"] if cid else []),
            pass_fds=(memory_fd, *(theirs.fileno() for _, theirs in pairs.values())),
        )  # fmt: skip
        try:
            for _, theirs in pairs.values():
                theirs.close()
            sockets = {name: ours for name, (ours, _) in pairs.items()}
            await _wait_ready(sockets["control"], process, console)
            memory = mmap.mmap(memory_fd, link_echo.RING_SIZE)
            connect = {"tcp": partial(_connect_tcp, port)}
            if cid:
                connect["vsock"] = partial(_connect_vsock, cid)
            yield EchoGuest(process.pid, sockets, memory, connect)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def _wait_ready(
    control: socket.socket, process: asyncio.subprocess.Process, console: Path
) -> None:
    """Wait for the echo program's first line.  Raises HypervisorFailed, GuestNeverReady."""
    control.setblocking(False)
    why = f"not within {BOOT_LIMIT:g} s"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BOOT_LIMIT):
            if await asyncio.get_running_loop().sock_recv(control, 64):
                control.setblocking(True)
                return
            _, errors = await process.communicate()
            why = f"QEMU ended: {errors.decode(errors='replace').strip()}"
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    raise GuestNeverReady("link", why=why, console=lines[-_CONSOLE_LINES:])
