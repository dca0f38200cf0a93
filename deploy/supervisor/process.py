"""The supervisor as a process: lock, signals, control socket, start report, exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any, TextIO, cast

import structlog

from deploy.errors import (
    AlreadyUp,
    CannotRunHere,
    DeployError,
    ForeignState,
    HypervisorFailed,
)
from deploy.host.files import lack_of_room
from deploy.host.spawn import PROCESS_NAME
from deploy.node.halt import NodeHalted, check_not_halted, end_releases
from deploy.node.interfaces import FaultFactory
from deploy.node.records import Layout, Lock
from deploy.supervisor.control_server import SupervisorControlServer
from deploy.supervisor.reverting import complete_revert
from deploy.supervisor.shown_node import open_dashboard
from deploy.supervisor.supervisor import NodeFactory, Supervisor
from deploy.watchdog.client import WatchdogClient
from voter.commands.terminal import ExitCode, LogStream, code_of
from voter.errors import VoterError
from voter.notify import Notifier

__all__ = ["StartReport", "run_supervisor"]

START_ROOM = 512 << 20
"""Bytes.  With less, the message of a failed start says that the disk may be too small."""

EXTEND_INTERVAL = 10.0
"""Seconds between messages to the service manager that the start continues."""

_log = structlog.get_logger(__name__)


class StartReport:
    """Reports the start to the process that requested it: lines of JSON on a descriptor.

    Under systemd the service manager gets the reports too.
    """

    def __init__(self, fd: int | None) -> None:
        self._file = os.fdopen(fd, "wb", buffering=0) if fd is not None else None
        self.notifier = Notifier.of_this_process()

    def __call__(self, message: dict[str, Any]) -> None:
        """Write one message; a ``ready`` or an ``error`` is the last."""
        text = message.get("step") or message.get("error") or "The node is ready"
        status = f"STATUS={'; '.join(str(text).splitlines())}"
        self.notifier.send(*(["READY=1"] if "ready" in message else []), status)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(message, allow_nan=False).encode() + b"\n")
        except BrokenPipeError:  # the reader has ended: start the node all the same
            self.close()
            return
        if "ready" in message or "error" in message:
            self.close()

    def close(self) -> None:
        """Close the descriptor."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _configure_logs() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        # Not sys.stderr: a full disk must not end the supervisor.
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, LogStream())),
    )


def run_supervisor(
    layout: Layout,
    *,
    make_node: NodeFactory,
    make_faults: FaultFactory | None,
    report: StartReport,
) -> ExitCode:
    """Run the node of this directory until `down` or SIGTERM; return the exit code.

    An error during the start goes to ``report`` (text, remedy and exit code).
    """
    _configure_logs()
    watchdog = WatchdogClient.of_this_process()
    lock = Lock(layout)
    try:
        lock.take()
        _check_place(layout)
        if layout.halted.exists():
            end_releases(layout)  # the former supervisor may have been killed before
        check_not_halted(layout)
        asyncio.run(_serve(layout, make_node, make_faults, report, watchdog))
    except (DeployError, VoterError, OSError) as error:
        if isinstance(error, AlreadyUp | ForeignState | NodeHalted):
            watchdog.down()  # a restart would fail too
        text = str(getattr(error, "problem", error))
        remedy = str(getattr(error, "remedy", ""))
        failed_here = isinstance(error, HypervisorFailed | CannotRunHere | OSError)
        if failed_here and (problem := lack_of_room(layout.directory, START_ROOM)):
            remedy = f"perhaps the disk is too small: {problem}" + (f"; {remedy}" * bool(remedy))
        _log.error("the start failed", error=text, remedy=remedy, error_code=code_of(error))
        code = exit_code(error)
        report({"error": text, "remedy": remedy, "error_code": code_of(error), "code": int(code)})
        return code
    finally:
        report.close()
        watchdog.close()
        lock.release()
    return ExitCode.OK


def _check_place(layout: Layout) -> None:
    """Raise ForeignState if another directory has taken the path since the watchdog's start."""
    started = os.environ.get(PROCESS_NAME) == "supervisor"  # else by hand, from anywhere
    if started and not os.path.samestat(os.stat("/proc/self/cwd"), layout.directory.stat()):
        raise ForeignState(
            f"the node was started in {os.readlink('/proc/self/cwd')}, and {layout.directory} is "
            "another directory now",
            remedy="end the node with `trivisor down` in the directory that it was moved to",
            error_code="TV0723",
        )


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code of an error during the start."""
    for kind, code in (
        (CannotRunHere, ExitCode.CANNOT_RUN_HERE),
        (AlreadyUp, ExitCode.ALREADY_UP),
        (ForeignState, ExitCode.FOREIGN),
    ):
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED


async def _serve(
    layout: Layout,
    make_node: NodeFactory,
    make_faults: FaultFactory | None,
    report: StartReport,
    watchdog: WatchdogClient,
) -> None:
    def stop() -> None:
        report.notifier.send("STOPPING=1", "STATUS=Taking the node down")
        supervisor.stop()

    supervisor = Supervisor(
        layout, make_node=make_node, make_faults=make_faults, report=report, watchdog=watchdog
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await complete_revert(layout, supervisor.history)
    shown = open_dashboard(supervisor)
    control = SupervisorControlServer(supervisor, shown)
    await control.start()
    if shown is not None:
        await shown.start()
    report.notifier.begin_watchdog()
    extending = asyncio.create_task(_extend_start(supervisor, report.notifier), name="extend start")
    try:
        await supervisor.serve()
    finally:
        extending.cancel()
        if shown is not None:
            await shown.stop()
        await control.stop()


async def _extend_start(supervisor: Supervisor, notifier: Notifier) -> None:
    """Have the service manager wait while guests boot: a boot without progress is ended."""
    while supervisor.phase == "starting":
        notifier.send(f"EXTEND_TIMEOUT_USEC={int(3 * EXTEND_INTERVAL * 1e6)}")
        await asyncio.sleep(EXTEND_INTERVAL)  # it is a period, not a condition
