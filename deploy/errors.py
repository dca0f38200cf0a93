"""What can go wrong with the machines of a node; every error names the thing and says the remedy.

DeployError
├── CannotRunHere        this host lacks something
│   └── PathTooLong      the directory is too deep for a unix socket
├── AlreadyUp            another process holds this directory's node
├── ForeignState         what lies in the directory is not a node's, or cannot be read
├── HypervisorFailed     libvirt or QEMU refused; its own text is in the message
│   └── HypervisorSilent it did not answer in time
├── GuestNeverReady      a guest did not come up before its deadline, or died on the way
└── WrongState           the guest is not in a state in which this can be asked of it
"""

from __future__ import annotations

__all__ = [
    "AlreadyUp",
    "CannotRunHere",
    "DeployError",
    "ForeignState",
    "GuestNeverReady",
    "HypervisorFailed",
    "HypervisorSilent",
    "PathTooLong",
    "WrongState",
]


class DeployError(Exception):
    """Base of all errors of `deploy`. `remedy` is one sentence for the user, or empty."""

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class CannotRunHere(DeployError):
    """This host lacks something that a node needs; `remedy` says how to get it."""


class PathTooLong(CannotRunHere):
    """A unix socket of the node would have a path longer than the system takes."""

    def __init__(self, path: str, *, excess: int) -> None:
        super().__init__(
            f"the socket path {path} is {excess} byte{'' if excess == 1 else 's'} too long",
            remedy=f"choose a directory (--dir) that is at least {excess} shorter",
        )
        self.path = path
        self.excess = excess


class AlreadyUp(DeployError):
    """Another living process holds the node of this directory."""


class ForeignState(DeployError):
    """The directory holds something else than a node's state, or state that cannot be read."""


class HypervisorFailed(DeployError):
    """Libvirt or QEMU refused a request; the message carries their own text.

    `code` is libvirt's error number, 0 where the refusal came from QEMU's monitor.
    """

    def __init__(self, problem: str, *, remedy: str = "", code: int = 0) -> None:
        super().__init__(problem, remedy=remedy)
        self.code = code


class HypervisorSilent(HypervisorFailed):
    """Libvirt or QEMU did not answer in time (a stopped QEMU process, for example)."""


class GuestNeverReady(DeployError):
    """A guest did not say that it is ready; `console` holds the last lines it printed."""

    def __init__(self, guest: str, *, why: str, console: list[str]) -> None:
        shown = "\n".join(f"    {line}" for line in console) or "    (nothing)"
        super().__init__(
            f"guest {guest} never became ready: {why}; its console said last:\n{shown}"
        )
        self.guest = guest
        self.why = why
        self.console = console


class WrongState(DeployError):
    """The guest is not in a state in which this can be asked of it."""
