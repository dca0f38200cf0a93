"""The supervisor's metrics: guests, repairs, restarts and the disk.

The voter exports what concerns requests (``voter.metrics``).  ``FAMILIES`` is the catalogue.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from deploy.machine.spec import GuestState
from voter.exposition import Family, Samples, expose, wants_openmetrics
from voter.metrics import PROCESS_FAMILIES, ProcessSamples

__all__ = ["FAMILIES", "SupervisorMetrics"]

_GUEST = ("guest",)

FAMILIES = {
    "trivisor_node_info": Family(
        "info", "How this node was started", ("vote", "accelerator", "repair")
    ),
    "trivisor_voter_up": Family("gauge", "1 while the voter answers the supervisor"),
    "trivisor_voter_restarts_total": Family(
        "counter", "Times that the voter was replaced while this supervisor ran"
    ),
    "trivisor_supervisor_restarts_total": Family(
        "counter", "Times that the watchdog restarted the supervisor"
    ),
    "trivisor_guest_state": Family(
        "gauge", "1 for the state a guest's virtual machine is in, 0 for others", ("guest", "state")
    ),
    "trivisor_guest_memory_bytes": Family(
        "gauge", "Resident memory of a guest's QEMU; 0 without one", _GUEST
    ),
    "trivisor_guest_repairs_total": Family("counter", "Repairs of a guest that began", _GUEST),
    "trivisor_guest_repair_abandoned": Family(
        "gauge", "1 if a guest is not repaired any more, because that failed too often", _GUEST
    ),
    "trivisor_guest_fault": Family("gauge", "1 while an injected fault is active", _GUEST),
    "trivisor_rejuvenations_total": Family(
        "counter", "Guests that were replaced by fresh ones, or could not be", ("result",)
    ),
    "trivisor_guest_votes": Family("gauge", "1 for a guest whose role is to vote", _GUEST),
    "trivisor_disk_free_bytes": Family(
        "gauge", "Bytes that the node can still write on its directory's file system"
    ),
    "trivisor_disk_size_bytes": Family("gauge", "Size of that file system"),
    "trivisor_storage_failed": Family(
        "gauge", "1 while nothing can be written into the node's directory"
    ),
} | PROCESS_FAMILIES  # fmt: skip
"""Everything that the supervisor exports."""


class SupervisorMetrics:
    """Turns a node's status into samples."""

    def __init__(self) -> None:
        self._process = ProcessSamples()

    def render(self, status: dict[str, Any], accept: bytes) -> tuple[bytes, str]:
        """Return the metrics in the format that an Accept header asks for, and its media type.

        ``status``: what ``Supervisor.status`` returned just now.
        """
        guests = status["guests"]
        single = {
            "trivisor_voter_up": status["status"] != "unreachable",
            "trivisor_voter_restarts_total": status["voter"]["restarts"],
            "trivisor_supervisor_restarts_total": status["supervisor"]["restarts"],
            "trivisor_storage_failed": status["storage"] is not None,
        }
        single |= _room(status["dir"]) | self._process.read()
        about = status["vote"], status["accel"], status["repair"]
        samples: dict[str, Samples] = {name: [((), value)] for name, value in single.items()}
        samples |= {
            "trivisor_node_info": [(about, 1)],
            "trivisor_guest_state": [
                ((guest["name"], str(state)), guest["vm"] == state)
                for guest in guests
                for state in GuestState
            ],
            "trivisor_guest_memory_bytes": [
                ((guest["name"],), _resident(guest["pid"])) for guest in guests
            ],
            "trivisor_guest_repairs_total": [
                ((guest["name"],), guest["repairs"]["count"]) for guest in guests
            ],
            "trivisor_guest_repair_abandoned": [
                ((guest["name"],), guest["repairs"]["abandoned"]) for guest in guests
            ],
            "trivisor_rejuvenations_total": [
                ((result,), status["rejuvenation"][result]) for result in ("done", "failed")
            ],
            "trivisor_guest_votes": [
                ((guest["name"],), guest["role"] == "voter") for guest in guests
            ],
            "trivisor_guest_fault": [
                ((guest["name"],), guest["fault"] is not None) for guest in guests
            ],
        }
        created = self._process.started
        return expose(FAMILIES, samples, created, openmetrics=wants_openmetrics(accept))


def _room(directory: str) -> dict[str, float]:
    """Return room and size of a directory's file system; nothing if they cannot be read."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return {}  # trivisor_storage_failed reports it
    free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return {
        "trivisor_disk_free_bytes": free * found.f_frsize,
        "trivisor_disk_size_bytes": found.f_blocks * found.f_frsize,
    }


def _resident(pid: int | None) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        words = Path(f"/proc/{pid}/statm").read_text().split() if pid is not None else ["0", "0"]
    except OSError:
        return 0
    return int(words[1]) * resource.getpagesize()
