"""The voter as a process: this module connects sockets, clock, random source and files.

It is started with ``python -m voter --config FILE``.  On SIGTERM, SIGINT and SIGHUP it stops
listening, waits for requests under way (STOP_PATIENCE at most), and closes everything.  It notifies
the service manager that started it (``voter.notify``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from voter import config as configuration
from voter import log
from voter.address import Connector, connect
from voter.config import Config, Security
from voter.control import VoterControlServer
from voter.core.resume import Past
from voter.errors import CertificateError, JournalError, VoterError
from voter.frontend.http import HttpServer
from voter.frontend.native import NativeServer
from voter.frontend.serving import FrontEnd
from voter.journal import Directory, Files, Journal, open_journal
from voter.notify import Notifier
from voter.runner import Clock, Runner
from voter.sockets import listening

if TYPE_CHECKING:
    from voter.access import Access

__all__ = ["Outside", "main", "runner_class", "serve"]

GC_THRESHOLDS = (20_000, 20, 50)
"""Thresholds of the garbage collector: reference counts free nearly all that a request leaves."""
STOP_PATIENCE = 2.0
"""Seconds for requests under way when the voter stops; after that they get no reply."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Sockets = Sequence[tuple[str, socket.socket]]


class Outside(NamedTuple):
    """What the voter needs from its environment; a simulation passes its own.

    ``files`` is the journal's directory; None without durability.  ``access``: who may use TCP;
    None: everybody.
    """

    clock: Clock
    connector: Connector
    random64: Callable[[], int]
    files: Files | None
    access: Access | None = None

    @classmethod
    def real(cls, config: Config, base: Path) -> Outside:
        """Return the host's.  ``base`` is above journal.directory.  Raises JournalError."""
        files = None
        if config.journal is not None and config.durable != "none":
            files = Directory(base / config.journal.directory)
        clock = Clock(time.monotonic, time.time_ns)
        access = _access(config, base)
        return cls(clock, connect, lambda: secrets.randbits(64), files, access)


def _access(config: Config, base: Path) -> Access | None:
    """Return who may use TCP; its code is loaded only if needed.  Raises ConfigError."""
    if config.security == Security():
        return None
    from voter.access import Access  # noqa: PLC0415

    return Access(config.security, base)


def _raise_descriptor_limit() -> None:
    """Raise the limit of open descriptors to the system's: each client needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def runner_class(config: Config) -> type[Runner]:
    """Return the runner's class; the code of authorizer and limits is loaded only if needed."""
    kind = Runner
    if config.function is not None:
        from voter.authorizer import AuthorizingRunner  # noqa: PLC0415

        kind = AuthorizingRunner
    if config.clients.in_flight is not None or config.clients.rate is not None:
        from voter.client_limits import limiting  # noqa: PLC0415

        kind = limiting(kind)
    return kind


async def _prepare(config: Config, outside: Outside) -> tuple[Runner, Journal | None]:
    """Return the runner; with a journal it continues from what that holds."""
    durability = config.durable
    if outside.files is None or config.journal is None or durability == "none":
        return runner_class(config)(config, *outside[:3]), None
    runner: Runner

    def synced(position: int) -> None:
        runner.synced(position)

    def filled(full: bool, reason: str) -> None:
        runner.set_full(full, reason)

    journal, found = await open_journal(
        outside.files,
        node=config.journal.node,
        vote=config.vote,
        durability=durability,
        segment_size=config.journal.segment,
        random64=outside.random64,
        on_synced=synced,
        on_full=filled,
        history=config.journal.history,
    )
    identity = found.identity
    runner = runner_class(config)(config, *outside[:3], secret=identity.key)
    service = None
    if identity.service is not None and identity.state_format is not None:
        service = (identity.service, identity.state_format)
    past = Past(base=found.base, state=found.state, entries=found.entries)
    runner.begin(journal, past, service)
    return runner, journal


async def serve(
    config: Config,
    sockets: Sockets,
    stop: asyncio.Event,
    outside: Outside,
    notifier: Notifier | None = None,
) -> None:
    """Run a voter on these listening sockets, each with its name, until ``stop`` is set.

    A request to the control socket sets it too.  ``notifier`` is the service manager's.  Raises
    JournalError if the journal cannot be used, at the start or at any time later.
    """
    notifier = notifier or Notifier()
    notifier.send("STATUS=Reading the journal")
    runner, journal = await _prepare(config, outside)
    access = outside.access
    native = NativeServer(runner, access)
    addresses = [(name, sock.getsockname()) for name, sock in sockets]
    http = HttpServer(runner, access)
    control = VoterControlServer(runner, stop.set, addresses, access)
    roles: dict[str, FrontEnd] = {
        "http": http, "native": native, "native-unix": native, "control": control
    }  # fmt: skip
    running = asyncio.create_task(runner.run(), name="runner")
    running.add_done_callback(lambda _: stop.set())
    running.add_done_callback(lambda _: runner.reserved.set())
    await runner.reserved.wait()  # earlier connections wait in the sockets' queues
    for name, sock in sockets:
        await roles[name].serve(sock)
        address = sock.getsockname()
        log.info("listening", socket=name, address=address)
    if access is not None:
        access.watch(native.recheck)
    gc.collect()
    gc.freeze()  # what exists now stays: collections need not scan it
    gc.set_threshold(*GC_THRESHOLDS)
    notifier.send("READY=1", f"STATUS=Serving {', '.join(name for name, _ in sockets)}")
    notifier.begin_watchdog()
    await stop.wait()
    notifier.send("STOPPING=1", "STATUS=Answering open requests")
    try:
        if not running.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_PATIENCE):
                    await runner.drained()
    finally:
        if access is not None:
            access.stop()
        for server in (http, native, control):
            await server.stop()
        running.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        except BaseExceptionGroup as group:
            # Not ``except*``: Python 3.11.2 (Debian 12) wraps what is raised there in a group.
            _, others = group.split(JournalError)
            if others is not None:
                raise
            raise group.exceptions[0] from None
        finally:
            if journal is not None:
                await journal.close()
    log.info("stopped")


async def _run(config: Config, sockets: Sockets, outside: Outside, notifier: Notifier) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(number, stop.set)
    await serve(config, sockets, stop, outside, notifier)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the voter; return the exit status: 0 stopped, 2 cannot start, 3 journal error."""
    parser = argparse.ArgumentParser(prog="voter", description="Trivisor's voter")
    parser.add_argument("--config", type=Path, required=True, help="the TOML configuration")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    options = parser.parse_args(arguments)
    log.configure(json=not sys.stderr.isatty())
    try:
        config = configuration.load(options.config)
        if options.check:
            access = _access(config, options.config.parent)
            if access is not None and access.problem:
                raise CertificateError(access.problem)
            return 0
        _raise_descriptor_limit()
        notifier = Notifier.of_this_process()
        for number in STOP_SIGNALS:  # until the event loop handles them
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: sys.exit(0))
        found = listening(config.listen, os.environ)
        try:
            if {name for name, _ in found.sockets} <= {"control"}:
                text = "nothing to serve: give http, native or native_unix under [listen]"
                raise VoterError(text, error_code="TV0201")
            outside = Outside.real(config, options.config.parent)
            asyncio.run(_run(config, found.sockets, outside, notifier))
        finally:
            found.remove_files()
    except JournalError as error:
        sys.stderr.write(f"voter: error {error.error_code}: {error}\n")
        return 3
    except VoterError as error:
        sys.stderr.write(f"voter: error {error.error_code}: {error}\n")
        return 2
    return 0
