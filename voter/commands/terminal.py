"""What all commands share: exit codes, errors with a remedy, output for people and for scripts.

Results go to standard output, everything else to standard error.  Libraries that are slow to
import (rich) are imported where they are used, so that ``--json`` in a script does not load them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from guests.errors import CodedError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DEFECT",
    "NATIVE_SOCKET",
    "SYSTEM_DIRECTORY",
    "SYSTEM_SOCKETS",
    "CommandError",
    "ExitCode",
    "LogStream",
    "code_of",
    "console",
    "default_directory",
    "native_socket",
    "operator_hint",
    "print_json",
    "quiet_logs",
    "user_directory",
    "warn",
]

NATIVE_SOCKET = "native.sock"
"""Name of a node's native unix socket inside its directory."""
SYSTEM_DIRECTORY = Path("/var/lib/trivisor")
"""The directory of the node that systemd runs (deploy/package/systemd)."""
SYSTEM_SOCKETS = Path("/run/trivisor")
"""Where that node has its sockets."""
_SYSTEM_GROUP = "trivisor"


class ExitCode(IntEnum):
    """Exit codes of every ``trivisor`` command, defined here only."""

    OK = 0
    FAILED = 1  # the command ran and did not succeed
    USAGE = 2  # unknown option, wrong value, a configuration that cannot be used
    NO_MAJORITY = 3  # no majority of replicas, or the outcome is unknown
    CANNOT_RUN_HERE = 4  # a requirement of this host is missing; see `trivisor doctor`
    NOT_UP = 5  # no node runs in this directory (or the voter cannot be reached)
    ALREADY_UP = 6  # a node runs in this directory already, or something uses its name
    NOT_ALLOWED = 7  # the node was not started for this (faults without --allow-faults)
    FOREIGN = 8  # a directory that is not Trivisor's, or cannot be read: nothing was touched
    INTERRUPTED = 130  # Ctrl-C, SIGTERM, SIGHUP or SIGQUIT


class CommandError(CodedError):
    """A command cannot do its work: one message, its remedy, the error's code and the exit code."""

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        error_code: str = "",
        code: ExitCode = ExitCode.FAILED,
    ) -> None:
        super().__init__(message, remedy=remedy, error_code=error_code)
        self.code = code


DEFECT = "TV0001"
"""The code of an error that no code expects: a defect of Trivisor."""
_OS_CODES = {
    errno.EACCES: "TV0008", errno.EPERM: "TV0008", errno.EROFS: "TV0008",
    errno.ENOSPC: "TV0009", errno.EDQUOT: "TV0009",
    errno.ENOENT: "TV0010", errno.ENOTDIR: "TV0010", errno.EISDIR: "TV0010",
}  # fmt: skip
_OTHER_OS = "TV0011"


def code_of(error: BaseException) -> str:
    """Return the code that explains an error: its own, or that of its errno, or DEFECT."""
    code = str(getattr(error, "error_code", ""))
    if not code and isinstance(error, OSError):
        code = _OS_CODES.get(error.errno or 0, _OTHER_OS)
    return code or DEFECT


def default_directory() -> Path:
    """Return the node directory that is used if none is given.

    ``$TRIVISOR_DIR``; else the directory of the node that systemd runs, if there is one and this
    user may operate it; else ``trivisor/default`` below ``$XDG_STATE_HOME`` (``~/.local/state``).
    """
    given = os.environ.get("TRIVISOR_DIR")
    if given:
        return Path(given)
    if SYSTEM_SOCKETS.is_dir() and _operates_system():
        return SYSTEM_DIRECTORY
    return user_directory("XDG_STATE_HOME", ".local/state") / "trivisor" / "default"


def _operates_system() -> bool:
    """Return whether this user is root or in the group that may operate the system's node."""
    if os.geteuid() == 0:
        return True
    import grp  # noqa: PLC0415 - only on such a host

    try:
        return grp.getgrnam(_SYSTEM_GROUP).gr_gid in {os.getegid(), *os.getgroups()}
    except KeyError:
        return False


def operator_hint() -> str:
    """Return, as the end of a remedy, how to reach the node that systemd runs.

    It is empty if there is none, this user may operate it, or ``$TRIVISOR_DIR`` names another.
    """
    if os.environ.get("TRIVISOR_DIR") or not SYSTEM_SOCKETS.is_dir() or _operates_system():
        return ""
    return (
        f"; systemd runs a node on this host: use sudo to reach it, or join its group (`sudo "
        f"usermod -aG {_SYSTEM_GROUP} USER`) and log in again"
    )


def native_socket(directory: Path) -> Path:
    """Return the native unix socket of the node in a directory."""
    return (SYSTEM_SOCKETS if directory == SYSTEM_DIRECTORY else directory) / NATIVE_SOCKET


def user_directory(variable: str, default: str) -> Path:
    """Return the directory that an environment variable names, else ``default`` in the home.

    Raises CommandError if the user has no home directory.
    """
    given = os.environ.get(variable)
    if given:
        return Path(given).absolute()
    try:
        return Path.home() / default
    except RuntimeError as error:
        raise CommandError(
            f"user {os.geteuid()} has no home directory",
            remedy="set HOME to a directory that this user may write",
            error_code="TV0012",
            code=ExitCode.CANNOT_RUN_HERE,
        ) from error


class LogStream:
    """Standard error without a buffer, for structlog.  A full disk ends no process that uses it.

    A line that cannot be written is lost, and the next one that can be reports how many were.
    """

    def __init__(self) -> None:
        self._lost = 0
        self._reason = ""

    def write(self, text: str) -> None:
        """Write whole lines, or count them as lost."""
        try:
            if self._lost:
                note = {"event": "log lines lost", "lines": self._lost, "reason": self._reason}
                self._write(
                    b"\n" + json.dumps(note, allow_nan=False).encode() + b"\n"
                )  # it ends a partial line
                self._lost = 0
            self._write(text.encode(errors="replace"))
        except OSError as error:
            self._lost += text.count("\n")
            self._reason = error.strerror or str(error)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(2, data) :]


def console(*, stderr: bool = False) -> Console:
    """Return a rich console on standard output, or standard error."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def quiet_logs() -> None:
    """Log only warnings of the command's own process, to standard error."""
    import logging  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", LogStream())),
    )


def warn(text: str) -> None:
    """Print a line to standard error; lose it if that is a file on a full disk."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
