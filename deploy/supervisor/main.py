"""The supervisor as a process: lock, signals, control socket, and the report to who started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import structlog

from deploy.errors import AlreadyUp, DeployError, ForeignState
from deploy.node.interfaces import FaultFactory
from deploy.node.records import Layout, Lock
from deploy.supervisor.control import SupervisorControlServer
from deploy.supervisor.supervisor import NodeFactory, Supervisor
from deploy.watchdog.client import WatchdogClient
from voter.commands.terminal import ExitCode
from voter.errors import VoterError

__all__ = ["StartReport", "run_supervisor"]

_log = structlog.get_logger(__name__)


class StartReport:
    """Tells whoever started us how it goes, in lines of JSON on a descriptor, until the end."""

    def __init__(self, fd: int | None) -> None:
        self._file = os.fdopen(fd, "wb", buffering=0) if fd is not None else None

    def __call__(self, message: dict[str, Any]) -> None:
        """Tell one thing; a ``ready`` or an ``error`` is the last one."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:  # nobody follows any more: the node comes up all the same
            self.close()
            return
        if "ready" in message or "error" in message:
            self.close()

    def close(self) -> None:
        """Tell nothing more."""
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def run_supervisor(
    layout: Layout,
    *,
    make_node: NodeFactory,
    make_faults: FaultFactory | None,
    report: StartReport,
) -> ExitCode:
    """Run the node of this directory until `down` or SIGTERM; return the exit code.

    An error on the way up is told to ``report`` (as an error's text, remedy and exit code).
    """
    _configure_logs()
    nursery = WatchdogClient.of_this_process()
    lock = Lock(layout)
    try:
        lock.take()
        asyncio.run(_serve(layout, make_node, make_faults, report, nursery))
    except (DeployError, VoterError) as error:
        if isinstance(error, AlreadyUp | ForeignState):
            nursery.down()  # nor would it be better the next time
        text = str(getattr(error, "problem", error))
        remedy = str(getattr(error, "remedy", ""))
        _log.error("the node did not come up", error=text, remedy=remedy)
        code = exit_code(error)
        report({"error": text, "remedy": remedy, "code": int(code)})
        return code
    finally:
        report.close()
        nursery.close()
        lock.release()
    return ExitCode.OK


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code that an error on the way up stands for."""
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, code in (
        ("CannotRunHere", ExitCode.CANNOT_RUN_HERE),
        ("AlreadyUp", ExitCode.ALREADY_UP),
        ("ForeignState", ExitCode.FOREIGN),
    ):
        if name in names:
            return code
    return ExitCode.FAILED


async def _serve(
    layout: Layout,
    make_node: NodeFactory,
    make_faults: FaultFactory | None,
    report: StartReport,
    nursery: WatchdogClient,
) -> None:
    supervisor = Supervisor(
        layout, make_node=make_node, make_faults=make_faults, report=report, nursery=nursery
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    control = SupervisorControlServer(supervisor)
    await control.start()
    try:
        await supervisor.serve()
    finally:
        await control.stop()
