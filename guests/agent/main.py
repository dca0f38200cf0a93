"""The agent: the process in a guest that connects the link to the service.

There are two processes.  The parent opens the link once and forks a child.  The child is the
service's incarnation: it reads frames, applies ordered requests and writes replies.  If it dies,
for whatever reason, the parent forks a new one on the same open descriptor, with an empty state and
the next incarnation number.  The voter notices at the next handshake, and restores the state from
its checkpoint and log.

The link is a virtio-serial port in a guest (``--port NAME``), or standard input and output for a
replica that is a plain process (``--stdio``, the voter's ``exec:`` links).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from pathlib import Path

from guests import compiled
from guests.agent.capture import Capturer
from guests.agent.incarnation import Incarnation
from guests.service import Service, ServiceError, load

__all__ = ["READ_SIZE", "Incarnation", "find_port", "main", "write_all"]

READ_SIZE = 1 << 16
"""Bytes of one read of the link: a batch of usual requests.  A virtio port gives 4 KiB at most."""
LONG_LIFE = 1.0
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0
"""Seconds.  After an incarnation shorter than LONG_LIFE the parent pauses, then twice as long."""
SERVICE_FILE = "/etc/trivisor/service"
FUNCTION_FILE, KEY_FILE = "/etc/trivisor/function", "/etc/trivisor/function.key"
"""The files in which an image names the function that requests pass first, and its key."""


def _serve(incarnation: Incarnation, read_fd: int, write_fd: int, *, port: bool) -> None:
    """Serve the link until it ends (a process's input) or for ever (a guest's port).

    A port whose host end is closed reads as ended, repeatedly; a write to it blocks until the host
    end is open.  So the agent writes HERE at the start and after each end: the blocked write
    replaces polling.  Raises OSError if a port cannot be read or written.
    """
    try:
        _serve_link(incarnation, read_fd, write_fd, port=port)
    except (BrokenPipeError, ConnectionResetError):
        if port:
            raise
        # A process's link that was reset has ended, as by its end of file.
    finally:
        incarnation.end_capture()


def _serve_link(incarnation: Incarnation, read_fd: int, write_fd: int, *, port: bool) -> None:
    write_all(write_fd, incarnation.announce())
    while True:
        capture = incarnation.capture_fd
        if capture >= 0:
            # A port whose host end is closed is readable too, and reads as ended.
            ready = _wait_any(read_fd, capture)
            if capture in ready:
                write_all(write_fd, incarnation.poll())
            if read_fd not in ready:
                continue
        data = os.read(read_fd, READ_SIZE)
        if data:
            for answers in incarnation.receive(data):
                write_all(write_fd, answers)
        elif port:
            incarnation.disconnect()
            write_all(write_fd, incarnation.announce())
        else:
            return


def _wait_any(*fds: int) -> set[int]:
    """Wait until one of these descriptors is readable or has ended; return those that are."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return {fd for fd, _ in waiting.poll()}


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes to a descriptor that may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def find_port(name: str, deadline: float) -> str:
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
        time.sleep(0.01)  # the driver may still be probing the bus; sysfs gives no event


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
                code = compiled.MARK if compiled.COMPILED else ""
                capturer = Capturer(*set(fds))
                incarnation = Incarnation(service_class, number, build + code, capturer)
                if number == 1:
                    _log(f"ready service={service_class.name} build={build or '-'}")
                _serve(incarnation, *fds, port=port)
                status = 0
            finally:
                if sys.exception() is not None:  # os._exit would not print it
                    sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0 and not port:
            return 0
        _log(f"service ended with status {status}; starting incarnation {number + 1}")
        if time.monotonic() - started > LONG_LIFE:
            pause = FIRST_PAUSE
        else:  # an incarnation that dies at once must not use up the processor
            time.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)


def _log(text: str) -> None:
    """Write one line to the console."""
    print(f"trivisor: {text}", file=sys.stderr, flush=True)


def _configured_service() -> tuple[str, str]:
    """Return name (or file) and build of the service, from the image's SERVICE_FILE."""
    try:
        with open(SERVICE_FILE) as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        lines = []
    return (lines[0] if lines else "kv"), (lines[1] if len(lines) > 1 else "")


def _configured_function() -> str:
    """Return the function that requests pass first, or "" if the image names none."""
    try:
        with open(FUNCTION_FILE) as file:
            return file.readline().strip()
    except FileNotFoundError:
        return ""


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="guests.agent.main", description="Trivisor's in-guest agent"
    )
    link = parser.add_mutually_exclusive_group(required=True)
    link.add_argument("--port", help="name of the virtio-serial port")
    link.add_argument(
        "--stdio", action="store_true", help="use standard input and output as the link"
    )
    parser.add_argument("--service", help="kv, static, or a Python file")
    parser.add_argument("--build", help="name of the service's build")
    parser.add_argument(
        "--function", help="function that requests pass first: hmac-sha256, or a Python file"
    )
    parser.add_argument("--key", default=KEY_FILE, help="file with the function's key")
    options = parser.parse_args(arguments)
    name, build = _configured_service() if options.port else ("kv", "")
    name, build = options.service or name, options.build or build
    function = options.function or (_configured_function() if options.port else "")
    try:
        service_class = load(name)
        if function:
            # Imported here because most guests have no function.
            from guests.function import guarded, load_function, read_key  # noqa: PLC0415

            loaded = load_function(function, read_key(Path(options.key)))
            service_class = guarded(service_class, loaded)
    except ServiceError as error:
        print(f"trivisor: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if options.port:
        fd = os.open(find_port(options.port, time.monotonic() + 10), os.O_RDWR)
        return _keep_alive(service_class, build, (fd, fd), port=True)
    read_fd, write_fd = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the service prints must not get into the link
    return _keep_alive(service_class, build, (read_fd, write_fd), port=False)
