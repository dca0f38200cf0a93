"""The agent: stands between the link and the service inside a guest.

Two processes.  The parent opens the link once and starts a child; the child *is* the service's
incarnation: it reads frames, applies what is ordered, writes replies.  If the child dies,
however, the parent starts a new one on the same open descriptor, with an empty state and the next
incarnation number; the voter sees the new incarnation at the next handshake and brings it up from
checkpoint and log.

The link is a virtio-serial port in a guest (``--port NAME``), or standard input and output for a
replica that is a plain process (``--stdio``, the voter's ``exec:`` links).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator

from guests import wire
from guests.message import Reply, encode_reply
from guests.service import Context, Service, ServiceError, answer, load, state_digest
from guests.wire import Decoder, Kind, encode

__all__ = ["Incarnation", "main"]

EMPTY_HISTORY = bytes(8)
VOIDED = encode_reply(Reply(500, "this request ended the service, and was voided\n"))
READ_SIZE = 1 << 14
WRITE_SIZE = 1 << 18
"""Bytes of answers collected before they are written: what one read asks for may be far more."""
STATE_PIECE = 1 << 16
NO_EPOCH = -1
"""No frame has this epoch: before the first HELLO nothing is taken."""
LONG_LIFE = 1.0
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0
"""Seconds: after an incarnation that lived less than LONG_LIFE a pause, doubled each time."""
SERVICE_FILE = "/etc/trivisor/service"


class Incarnation:
    """One life of the service behind a link: frames in, frames out.  No I/O of its own."""

    def __init__(self, service_class: type[Service], number: int, build: str) -> None:
        self._service_class = service_class
        self._service = service_class()
        self._number = number
        self._build = build
        self._decoder = Decoder()
        self._epoch = NO_EPOCH
        self._index = wire.NO_KEEPER
        self._fresh = True
        self._last_seq = 0
        self._history = EMPTY_HISTORY
        self._kept: tuple[int, bytes] | None = None
        self._restoring: tuple[int, wire.Checkpoint] | None = None
        self._pieces: list[bytes] = []
        self._received = 0

    def here(self) -> bytes:
        """The frame that tells a listening voter that this incarnation waits for a HELLO."""
        return encode(Kind.HERE, 0, self._number)

    def hang_up(self) -> None:
        """The host end of the link was closed: what was cut is not continued."""
        self._decoder.clear()

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Take bytes from the link, act on the frames they complete, yield the bytes to answer.

        Nothing that comes over the link raises: a payload that is not what its kind demands is
        refused.  (The service's own ``SystemExit`` and the like do pass, and end the incarnation.)
        """
        out: list[bytes] = []
        size = 0
        for frame in self._decoder.feed(data):
            if frame.kind == Kind.HELLO:
                reply = self._greet(frame)
            elif frame.epoch != self._epoch:
                continue  # left in the channel from before a snapshot was restored
            elif frame.kind == Kind.ORDER:
                reply = self._apply(frame)
            else:
                reply = self._attend(frame)
            out.append(reply)
            size += len(reply)
            if size > WRITE_SIZE:
                yield b"".join(out)
                out, size = [], 0
        if out:
            yield b"".join(out)

    def _attend(self, frame: wire.Frame) -> bytes:
        """Act on a frame that is neither HELLO nor ORDER."""
        kind = frame.kind
        if kind == Kind.PING:
            return encode(Kind.PONG, self._epoch, frame.seq)
        if kind == Kind.MARKER:
            return self._mark(frame)
        if kind == Kind.FETCH:
            return self._send_kept(frame)
        if kind == Kind.RESTORE:
            self._end_restore()
            try:
                self._restoring = (frame.seq, wire.decode_checkpoint(frame.payload))
            except wire.WireError as error:
                return self._refuse(frame.seq, str(error))
            return self._finish_restore()
        if kind == Kind.STATE and self._restoring is not None:
            self._pieces.append(frame.payload)
            self._received += len(frame.payload)
            return self._finish_restore()
        return b""

    def _greet(self, frame: wire.Frame) -> bytes:
        self._epoch = frame.epoch
        self._index = frame.payload[2] if len(frame.payload) > 2 else wire.NO_KEEPER
        welcome = wire.Welcome(
            protocol=wire.PROTOCOL,
            incarnation=self._number,
            fresh=self._fresh,
            last_seq=self._last_seq,
            history=self._history,
            state_format=self._service.state_format,
            service=self._service.name,
            build=self._build,
        )
        self._end_restore()
        self._kept = None  # whoever had asked for it asks no more
        return encode(Kind.WELCOME, self._epoch, frame.seq, wire.encode_welcome(welcome))

    def _apply(self, frame: wire.Frame) -> bytes:
        try:
            order = wire.decode_order(frame.payload)
        except wire.WireError as error:
            return self._refuse(frame.seq, str(error))
        if order.prev != self._history or self._restoring is not None:
            return self._refuse(frame.seq, "the history before it is not the one held here")
        read_only = bool(frame.flags & wire.FLAG_READ_ONLY)
        context = Context(
            frame.seq,
            order.time_ns,
            order.history,
            order.caller.decode("utf-8", "replace"),
            read_only,
        )
        self._fresh = False
        if frame.flags & wire.FLAG_VOID:
            reply = VOIDED
        else:
            reply = answer(self._service, order.request, context)
        if not read_only:
            self._last_seq = frame.seq
            self._history = order.history
        if len(reply) > wire.MAX_PAYLOAD:
            return self._refuse(frame.seq, "the reply is over the largest payload")
        return encode(Kind.REPLY, self._epoch, frame.seq, reply)

    def _refuse(self, seq: int, reason: str) -> bytes:
        return encode(Kind.REFUSED, self._epoch, seq, reason.encode())

    def _mark(self, frame: wire.Frame) -> bytes:
        """Tell the digest of the state; keep the state if this replica is the one asked to.

        An exception is told as a digest too, as one of ``apply`` is told as a reply: if all
        replicas have it, it is agreed, and the service goes on (without checkpoints); one alone
        dissents.
        """
        self._kept = None
        try:
            if frame.payload[:1] == bytes([self._index]):
                state = b"".join(self._service.snapshot())
                digest = state_digest(iter((state,)))
                self._kept = (frame.seq, state)
            else:
                digest = self._service.digest()
        except Exception as error:  # noqa: BLE001 - must not end the replica
            digest = f"no digest: {type(error).__name__}".encode()
        return encode(Kind.DIGEST, self._epoch, frame.seq, digest)

    def _send_kept(self, frame: wire.Frame) -> bytes:
        if self._kept is None or self._kept[0] != frame.seq or len(frame.payload) != 8:
            return self._refuse(frame.seq, "no state is kept of this marker")
        offset = int.from_bytes(frame.payload)
        state = self._kept[1]
        piece = state[offset : offset + STATE_PIECE]
        last = offset + len(piece) >= len(state)
        if last:
            self._kept = None
        flags = wire.FLAG_LAST if last else 0
        return encode(Kind.STATE, self._epoch, frame.seq, piece, flags)

    def _end_restore(self) -> None:
        self._restoring, self._pieces, self._received = None, [], 0

    def _finish_restore(self) -> bytes:
        """Once the announced size is here: rebuild the service from it and tell its digest."""
        if self._restoring is None:
            return b""
        seq, checkpoint = self._restoring
        if self._received < checkpoint.size:
            return b""
        state = b"".join(self._pieces)
        self._end_restore()
        try:
            service = self._service_class()
            if state:
                service.restore(state)
            digest = service.digest()
        except Exception as error:  # noqa: BLE001 - told to the voter, who then does not use it
            return self._refuse(seq, f"restore failed: {type(error).__name__}: {error}"[:500])
        self._service = service
        self._fresh = False
        self._last_seq, self._history = seq, checkpoint.history
        return encode(Kind.RESTORED, self._epoch, seq, digest)


def _serve(incarnation: Incarnation, read_fd: int, write_fd: int, *, port: bool) -> None:
    """Serve the link until it ends (a process's input) or for ever (a guest's port).

    A port whose host end is closed reads as ended, again and again; a write to it waits until the
    host end is open. So HERE is said first and after each end: it costs no looking again and
    again, and no processor time. Raises OSError if a port cannot be read or written.
    """
    try:
        _serve_link(incarnation, read_fd, write_fd, port=port)
    except (BrokenPipeError, ConnectionResetError):
        if port:
            raise
        # A process's link that was cut has ended, as by its end of file: nobody is there to serve.


def _serve_link(incarnation: Incarnation, read_fd: int, write_fd: int, *, port: bool) -> None:
    _write(write_fd, incarnation.here())
    while True:
        data = os.read(read_fd, READ_SIZE)
        if data:
            for answers in incarnation.receive(data):
                _write(write_fd, answers)
        elif port:
            incarnation.hang_up()
            _write(write_fd, incarnation.here())
        else:
            return


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _find_port(name: str, deadline: float) -> str:
    """Return the device of the virtio-serial port called ``name`` (numbers follow PCI order)."""
    root = "/sys/class/virtio-ports"
    while True:
        if os.path.isdir(root):
            for entry in sorted(os.listdir(root)):
                with open(f"{root}/{entry}/name") as file:
                    if file.read().strip() == name and os.path.exists(f"/dev/{entry}"):
                        return f"/dev/{entry}"
        if time.monotonic() > deadline:
            raise SystemExit(f"trivisor: no virtio-serial port {name!r}: is virtio_console loaded?")
        time.sleep(0.01)  # the driver may still be looking at the bus; sysfs gives no event here


def _keep_alive(service_class: type[Service], build: str, fds: tuple[int, int], port: bool) -> int:
    """Run incarnations one after another; return the exit status once the link has ended."""
    number, pause = 0, FIRST_PAUSE
    while True:
        number += 1
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                incarnation = Incarnation(service_class, number, build)
                if number == 1:
                    _say(f"ready service={service_class.name} build={build or '-'}")
                _serve(incarnation, *fds, port=port)
                status = 0
            finally:
                if sys.exception() is not None:  # os._exit would not let it be told
                    sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0 and not port:
            return 0
        _say(f"service ended with status {status}; starting incarnation {number + 1}")
        if time.monotonic() - started > LONG_LIFE:
            pause = FIRST_PAUSE
        else:  # one that dies at once must not fill the processor and the console
            time.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)


def _say(text: str) -> None:
    """Write one line to the console."""
    print(f"trivisor: {text}", file=sys.stderr, flush=True)


def _configured_service() -> tuple[str, str]:
    """The service named in the image (``/etc/trivisor/service``: its name or file, then its
    build).
    """
    try:
        with open(SERVICE_FILE) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        lines = []
    return (lines[0] if lines else "kv"), (lines[1] if len(lines) > 1 else "")


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; see the module's text."""
    parser = argparse.ArgumentParser(prog="guests.agent", description="Trivisor's in-guest agent")
    link = parser.add_mutually_exclusive_group(required=True)
    link.add_argument("--port", help="name of the virtio-serial port")
    link.add_argument("--stdio", action="store_true", help="the link is standard input and output")
    parser.add_argument("--service", help="kv, static, or a Python file")
    parser.add_argument("--build", help="what the service's build is called")
    options = parser.parse_args(arguments)
    name, build = _configured_service() if options.port else ("kv", "")
    name, build = options.service or name, options.build or build
    try:
        service_class = load(name)
    except ServiceError as error:
        print(f"trivisor: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if options.port:
        fd = os.open(_find_port(options.port, time.monotonic() + 10), os.O_RDWR)
        return _keep_alive(service_class, build, (fd, fd), port=True)
    read_fd, write_fd = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever the service prints must not get into the link
    return _keep_alive(service_class, build, (read_fd, write_fd), port=False)


if __name__ == "__main__":
    sys.exit(main())
