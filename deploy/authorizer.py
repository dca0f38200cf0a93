"""F as a process: the check that each guest would do, done once on the host.

The voter asks F about each request before it orders it (``voter.authorizer``).  This process
listens on a unix socket (mode 0600) and answers yes or no, in the order of the questions.  It has
no state, so it can be ended and started at any time.  With ``--keep`` a parent process restarts it
after a signal has ended it.  An exit is final: the next start would exit too.

If the function raises an exception, F closes the connection, and the voter rejects the request.

Run with ``python -m deploy.authorizer --key FILE --listen PATH`` (``trivisor function``).
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

from deploy.host.spawn import end_with_parent
from guests.function import AUTHENTICATION, Function, load_function, read_key
from guests.protocol.function import NO, YES
from guests.protocol.message import MessageError, Request
from guests.protocol.wire import Decoder, FrameKind, encode
from guests.service import ServiceError
from voter import log
from voter.address import check_unix_path
from voter.errors import VoterError
from voter.sockets import listen_unix

__all__ = ["VoterConnection", "keep", "main", "serve"]

LONG_LIFE = 1.0
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0
"""Seconds.  A life shorter than LONG_LIFE is followed by a pause, doubled each time."""
UNREAD_LIMIT = 1 << 20
"""Bytes of answers that a voter has not read; more closes its connection."""


class VoterConnection(asyncio.Protocol):
    """A voter's connection to F: each request is answered, in order.

    ``answer`` returns F's answer to a request.  If it raises an exception, ``failed`` is called, to
    log it, and the connection is closed: then the voter rejects the request.
    """

    def __init__(self, answer: Callable[[bytes], bytes], failed: Callable[[], object]) -> None:
        self._answer = answer
        self._failed = failed
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio)."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the transport (asyncio)."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer the requests (asyncio)."""
        try:
            answers = [
                encode(FrameKind.REPLY, 0, frame.seq, self._answer(frame.payload))
                for frame in self._decoder.feed(data)
                if frame.kind == FrameKind.REQUEST
            ]
        except Exception:  # noqa: BLE001 - no exception may admit a request
            self._failed()
            self._abort()
            return
        if self._transport is not None:
            self._transport.write(b"".join(answers))
            if self._decoder.skipped or self._transport.get_write_buffer_size() > UNREAD_LIMIT:
                self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def serve(function: Function, path: str) -> None:
    """Answer on the unix socket ``path`` until SIGTERM or SIGINT.  Raises AddressError."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def answer(request: bytes) -> bytes:
        try:
            return YES if function.admits(Request.decode(request)) else NO
        except MessageError:
            return NO  # not a request

    def failed() -> None:
        log.exception("the function failed", error_code="TV0227")

    server = await loop.create_unix_server(
        lambda: VoterConnection(answer, failed), sock=listen_unix(path)
    )
    log.info("function listens", path=path)
    try:
        await stop.wait()
    finally:
        server.close()
        Path(path).unlink(missing_ok=True)


def keep(run: Callable[[], int]) -> int:
    """Run F in a child process, and again whenever a signal has ended it; return its exit status.

    After SIGTERM, SIGINT or SIGHUP the child gets SIGTERM, and no further child is started.  The
    child ends with this process.
    """
    child, pause, me = 0, FIRST_PAUSE, os.getpid()
    received: list[int] = []

    def forward(number: int, _: object) -> None:
        received.append(number)
        if child:
            os.kill(child, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    while not received:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                end_with_parent(me)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                # A signal from before these handlers is not delivered again.
                status = run() if not received else 0
            except KeyboardInterrupt:  # the terminal's, in addition to the forwarded one
                status = 0
            finally:
                if sys.exception() is not None:  # os._exit would not print it
                    sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(status)
        if received:  # before the child's pid was known
            os.kill(child, signal.SIGTERM)
        # WNOWAIT: until `child` is 0, the pid must not be reused, as `forward` may signal it.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        ended, child = child, 0
        status = os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1])
        if status >= 0:
            return status
        log.info("function ended", status=status)
        if time.monotonic() - started > LONG_LIFE:
            pause = FIRST_PAUSE
        else:  # one that dies at once must not use up the CPU
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run F until a signal; return the exit status (2: it cannot start)."""
    parser = argparse.ArgumentParser(prog="function", description="Run Trivisor's function F")
    parser.add_argument(
        "--function", default=AUTHENTICATION, help="a function's name, or a Python file"
    )
    parser.add_argument("--key", type=Path, required=True, help="a file of hexadecimal digits")
    parser.add_argument("--listen", required=True, help="path of the unix socket")
    parser.add_argument(
        "--keep", action="store_true", help="restart it after a signal has ended it"
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
