"""Start this project's modules as processes, and say which process ends or reaps which.

Standard library only: the watchdog imports this module and must start fast and never fail.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "PROCESS_NAME",
    "become_subreaper",
    "end_with_parent",
    "python_command",
    "python_environment",
]

PROCESS_NAME = "TRIVISOR_PROCESS"
"""The environment variable that says what a process of a node is.  Its working directory is the
node's, so that it is found without a record and after the directory was moved."""

_ROOT = Path(__file__).resolve().parents[2]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def python_command(module: str, *arguments: str | os.PathLike[str]) -> list[str]:
    """Return the command line that runs a module of this project with this interpreter."""
    return [sys.executable, "-m", module, *(os.fspath(each) for each in arguments)]


def python_environment(name: str = "") -> dict[str, str]:
    """Return the environment in which `python_command` finds the module from any directory.

    ``name`` says what the process is (PROCESS_NAME).
    """
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(_ROOT), *(os.path.abspath(each) for each in inherited if each)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), PROCESS_NAME: name}
    # Without it a Python file in the working directory would replace a module of that name.
    return environment | {"PYTHONSAFEPATH": "1"}


def become_subreaper() -> None:
    """Make this process the parent of its descendants' orphans.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when `parent`, which started it, ends."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)
