"""Faults of the paper's f, in a guest, and of F, the same once on the host (Figure 5)."""

from __future__ import annotations

from faultinject.faults.fault import FaultKind, FaultLayer

__all__ = ["FUNCTION", "MOVED"]

_OTHERS = "the others' majority"
_SWITCH = "the planted function's switch is read back from"
_NAMED = "the vote: the replica is named as dissenter; nothing where the first reply counts"
_BROKEN = {
    "crash": (
        "ends the service's process whenever it is asked",
        f"{_OTHERS}; the agent starts the service again, with the same f",
    ),
    "hang": (
        "never answers, so that the service does not either",
        f"{_OTHERS}; after `limits.hang` seconds of silence the replica is out of the vote",
    ),
    "admit": ("admits every request, also what nobody signed", _NAMED),
    "refuse": ("refuses every request, also what is signed rightly", _NAMED),
}
FUNCTION = tuple(
    FaultKind(
        kind=f"function-{what}",
        layer=FaultLayer.FUNCTION,
        does=f"the function f in the guest {does} (a station with a planted f only)",
        proof=f"{_SWITCH} the guest's RAM",
        undo="the guest is put back to its clean snapshot",
        masked_by=masked_by,
        fails=True,
        needs=("ram", "planted"),
    )
    for what, (does, masked_by) in _BROKEN.items()
)

_NEW_F = "a new F is started"
_NOT_LET = "nothing in the node: this is the paper's R_F; the voter refuses what F does not admit"
MOVED = (
    FaultKind(
        kind="host-function-kill",
        layer=FaultLayer.MOVED,
        does="the process of F, the function that requests pass on the host, is killed at once",
        proof="the process has ended, or is a zombie that waits for its parent",
        undo=_NEW_F,
        masked_by=_NOT_LET,
        fails=True,
        targets=("function",),
    ),
    FaultKind(
        kind="host-function-hang",
        layer=FaultLayer.MOVED,
        does="the process of F is stopped, as by SIGSTOP",
        proof="the kernel reports the process as stopped",
        undo="the process goes on, as by SIGCONT",
        masked_by=_NOT_LET,
        fails=True,
        targets=("function",),
    ),
    FaultKind(
        kind="host-function-admit",
        layer=FaultLayer.MOVED,
        does="F admits every request, also what nobody signed (a station with a planted F only)",
        proof=f"{_SWITCH} its process's memory",
        undo=_NEW_F,
        masked_by="nothing in the node: this is the paper's R_F, and what F lies is believed",
        fails=True,
        needs=("planted",),
        targets=("function",),
    ),
    FaultKind(
        kind="host-function-refuse",
        layer=FaultLayer.MOVED,
        does="F refuses every request, also what is signed rightly (a station with a planted F "
        "only)",
        proof=f"{_SWITCH} its process's memory",
        undo=_NEW_F,
        masked_by="nothing in the node: this is the paper's R_F, and what F lies is believed",
        fails=True,
        needs=("planted",),
        targets=("function",),
    ),
)
