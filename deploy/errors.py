"""Errors of a node's machines and its directory.  Each names the object and how to fix it.

DeployError
├── CannotRunHere        the host does not meet a requirement
│   └── PathUnusable     a path has characters that libvirt or a file cannot carry
│       └── PathTooLong  the directory's path is too long for a unix socket
├── AlreadyUp            another process owns this directory's node
├── ForeignState         the directory's content is not a node's, or cannot be read
├── HypervisorFailed     libvirt or QEMU reported an error; the message contains its text
│   ├── GuestEnded       the guest's QEMU has ended
│   ├── HypervisorLost   the connection to libvirt's daemon is lost, until the daemon returns
│   └── HypervisorSilent it did not answer in time
├── GuestNeverReady      a guest failed as it booted, or made no progress
├── UnknownGuest         the node has no guest of this name
└── WrongState           the operation is not possible in the guest's state
"""

from __future__ import annotations

from guests.errors import CodedError

__all__ = [
    "AlreadyUp",
    "CannotRunHere",
    "DeployError",
    "ForeignState",
    "GuestEnded",
    "GuestNeverReady",
    "HypervisorFailed",
    "HypervisorLost",
    "HypervisorSilent",
    "PathTooLong",
    "UnknownGuest",
    "PathUnusable",
    "WrongState",
    "first_error",
]


class DeployError(CodedError):
    """Base of all errors of `deploy`.  `remedy` is one sentence for the user, or empty."""

    def __init__(self, problem: str, *, remedy: str = "", error_code: str = "") -> None:
        super().__init__(
            f"{problem}; {remedy}" if remedy else problem, remedy=remedy, error_code=error_code
        )
        self.problem = problem


class CannotRunHere(DeployError):
    """This host does not meet a requirement; `remedy` says how to fix that."""


class PathUnusable(CannotRunHere):
    """A path that a node cannot use; the command that names it is wrong."""

    error_code = "TV0702"


class PathTooLong(PathUnusable):
    """A unix socket of the node would have a path that the kernel does not accept."""

    error_code = "TV0703"

    def __init__(self, path: str, *, excess: int) -> None:
        super().__init__(
            f"the socket path {path} is {excess} byte{'' if excess == 1 else 's'} too long",
            remedy=f"choose a directory (--dir) whose path is at least {excess} bytes shorter",
        )


class AlreadyUp(DeployError):
    """Another running process owns the node of this directory."""


class ForeignState(DeployError):
    """The directory's content is not a node's state, or cannot be read."""


class HypervisorFailed(DeployError):
    """Libvirt or QEMU rejected a request; the message contains their own text.

    `code` is libvirt's error number, 0 for an error of QEMU's monitor.
    """

    error_code = "TV0111"

    def __init__(
        self, problem: str, *, remedy: str = "", error_code: str = "", code: int = 0
    ) -> None:
        super().__init__(problem, remedy=remedy, error_code=error_code)
        self.code = code


class GuestEnded(HypervisorFailed):
    """A guest's QEMU has ended, or ended while it was started."""

    error_code = "TV0119"


class HypervisorLost(HypervisorFailed):
    """Libvirt's daemon ended or hangs.  The guests continue to run, and it is connected again."""

    error_code = "TV0109"


class HypervisorSilent(HypervisorFailed):
    """Libvirt or QEMU did not answer in time, for example because QEMU is stopped."""

    error_code = "TV0110"


class GuestNeverReady(DeployError):
    """A guest did not become ready; the message ends with the last lines of its console."""

    error_code = "TV0101"

    def __init__(self, guest: str, *, why: str, console: list[str]) -> None:
        shown = "\n".join(f"    {line}" for line in console) or "    (nothing)"
        super().__init__(
            f"guest {guest} never became ready: {why}; the last lines of its console:\n{shown}"
        )


class WrongState(DeployError):
    """The operation is not possible in the guest's state."""

    error_code = "TV0113"


class UnknownGuest(DeployError):
    """The node has no guest of this name."""

    error_code = "TV0114"


def first_error(group: BaseExceptionGroup[DeployError]) -> DeployError:
    """Return the first error of tasks that failed together: a user can act on one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DeployError)
    return error
