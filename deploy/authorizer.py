"""F: the function that the guests would each have, run once on the host, as a process of its own.

The voter asks it of each request before it is ordered (``voter.authorizer``); this end listens
on a unix
socket (mode 0600) and answers yes or no, in the order of the questions.  It holds nothing: it can
be ended and started at any moment.  Nobody starts it again when it has died, but for ``--keep``,
with which a parent does if a signal ended it (one that exits by itself would do so again).

An exception in the function is no answer: the connection ends, and the voter refuses.

Started with ``python -m deploy.authorizer --key FILE --listen PATH`` (``trivisor function``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from guests.function import AUTHENTICATION, Function, load_function, read_key
from guests.protocol.function import NO, YES
from guests.protocol.message import MessageError, Request
from guests.protocol.wire import Decoder, FrameKind, encode
from guests.service import ServiceError
from voter import log
from voter.address import check_unix_path
from voter.errors import VoterError
from voter.sockets import listen_unix

__all__ = ["keep", "main", "serve"]

LONG_LIFE = 1.0
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0
"""Seconds: after a life shorter than LONG_LIFE a pause, doubled each time."""
UNREAD = 1 << 20
"""Bytes of answers that an asker leaves unread, at most: more, and it is cut off."""


class _Client(asyncio.Protocol):
    """A voter that asks."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a voter is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: it has gone."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """asyncio: questions."""
        try:
            answers = [
                encode(FrameKind.REPLY, 0, frame.seq, YES if self._admits(frame.payload) else NO)
                for frame in self._decoder.feed(data)
                if frame.kind == FrameKind.REQUEST
            ]
        except Exception:  # noqa: BLE001 - whatever it is, it must not let anything through
            log.exception("the function failed")
            self._end()
            return
        if self._transport is not None:
            self._transport.write(b"".join(answers))
            if self._decoder.skipped or self._transport.get_write_buffer_size() > UNREAD:
                self._end()

    def _admits(self, request: bytes) -> bool:
        try:
            return self._function.admits(Request.decode(request))
        except MessageError:
            return False  # no request at all

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def serve(function: Function, path: str) -> None:
    """Answer on the unix socket ``path`` until SIGTERM or SIGINT.  Raises AddressError."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_unix_server(lambda: _Client(function), sock=listen_unix(path))
    log.info("function", serves=path)
    try:
        await stop.wait()
    finally:
        server.close()
        Path(path).unlink(missing_ok=True)


def keep(run: Callable[[], int]) -> int:
    """Run F in a child, and another whenever a signal has ended it; return its status otherwise."""
    child, pause = 0, FIRST_PAUSE
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        if child:
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    while not told:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                # Told before that, it would wait for a second word that never comes.
                status = run() if not told else 0
            except KeyboardInterrupt:  # the terminal's, after that which the parent passed on
                status = 0
            finally:
                if sys.exception() is not None:  # os._exit would not let it be told
                    sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(status)
        if told:  # before it was known whom to tell
            os.kill(child, told[0])
        # Waited for before it is reaped: as long as it may be told, its number is its own.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        ended, child = child, 0
        status = os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1])
        if status >= 0:
            return status
        log.info("function", ended=status)
        if time.monotonic() - started > LONG_LIFE:
            pause = FIRST_PAUSE
        else:  # one that dies at once must not take the processor
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run F until it is told to end; return the exit status (2: it cannot start)."""
    parser = argparse.ArgumentParser(prog="function", description="Trivisor's F, by itself")
    parser.add_argument("--function", default=AUTHENTICATION, help="its name, or a Python file")
    parser.add_argument("--key", type=Path, required=True, help="a file of hexadecimal digits")
    parser.add_argument("--listen", required=True, help="path of the unix socket")
    parser.add_argument(
        "--keep", action="store_true", help="start it again when a signal has ended it"
    )
    options = parser.parse_args(arguments)
    log.configure(json=not sys.stderr.isatty())
    try:
        function = load_function(options.function, read_key(options.key))
        check_unix_path(options.listen)

    except (ServiceError, VoterError) as error:
        return _cannot(error)

    def run() -> int:
        try:
            asyncio.run(serve(function, options.listen))
        except VoterError as error:
            return _cannot(error)
        return 0

    return keep(run) if options.keep else run()


def _cannot(error: Exception) -> int:
    sys.stderr.write(f"function: {error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
