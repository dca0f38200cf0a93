"""The catalogue of faults, as data: what each does, how it is proved applied, how it is undone."""

from __future__ import annotations

from faultinject.faults.fault import FaultKind, FaultLayer, Need, Target
from faultinject.faults.function_kinds import FUNCTION, MOVED

__all__ = ["CATALOGUE", "FaultKind", "FaultLayer", "Need", "Target", "find", "offered_on_nodes"]

_BACK = "a guest that fell out of the vote is put back to its clean snapshot"
_SNAPSHOT = "the guest is put back to its clean snapshot"
_RELAYS = f"the proxy hands over untouched bytes again; {_BACK}"
_PROXY = "the proxy in the link says that it holds this fault, and counts"
_OTHERS = "the others' majority"
_DISSENT = "the vote: the replica is named as dissenter and expelled"
_HANGS = f"{_OTHERS}; after `limits.hang` seconds of silence the replica is out of the vote"
_IF_USED = "the vote, if what was hit is used and a reply comes out wrong; else nothing sees it"
_NOBODY = "nothing in the node: this is the R_V, or the R_H, of the paper"
_INSIDE = "a command in the guest reads it back"
_NEW_VOTER = "a new voter is started"

_GUEST = (
    FaultKind(
        kind="crash",
        layer=FaultLayer.GUEST,
        does="the guest's QEMU process is ended at once, as by a power cut",
        proof="the process that ran the guest has ended",
        undo="a new QEMU is started from the guest's clean snapshot",
        masked_by="the others' majority; the end of its link takes the replica out of the vote",
        fails=True,
        leaves_qemu=False,
    ),
    FaultKind(
        kind="hang",
        layer=FaultLayer.GUEST,
        does="the guest's virtual processor is stopped; its QEMU and its link stay",
        proof="the hypervisor reports the guest as paused",
        undo=_SNAPSHOT,
        masked_by=_HANGS,
        fails=True,
    ),
    FaultKind(
        kind="slow",
        layer=FaultLayer.GUEST,
        does="the guest's virtual processor is stopped for most of each quarter of a second",
        proof="the hypervisor has reported the guest as paused, and as running again",
        undo=f"the duty cycle ends; {_BACK}",
        masked_by="the others' majority: nobody waits for the slowest replica",
    ),
)

_LIES = (
    FaultKind(
        kind="corrupt-reply",
        layer=FaultLayer.LINK,
        does="one byte of each reply is changed on the link, with a right checksum",
        proof=f"{_PROXY} the replies it changed",
        undo=_RELAYS,
        masked_by=_DISSENT,
        fails=True,
        needs=("proxy",),
    ),
    FaultKind(
        kind="corrupt-state",
        layer=FaultLayer.MEMORY,
        does="one bit of each copy of a canary's value in the guest's RAM is flipped "
        "(service kv only)",
        proof="the flipped bytes are read back from the RAM",
        undo="the guest is put back to its clean snapshot, and gets its state from checkpoint "
        "and log",
        masked_by="the vote once the canary is read, else the digests at the next marker",
        latent=True,
        needs=("ram", "client"),
    ),
    FaultKind(
        kind="garbage",
        layer=FaultLayer.LINK,
        does="random bytes are spliced into what the guest sends",
        proof=f"{_PROXY} the bytes it put in",
        undo=_RELAYS,
        masked_by="the frames' checksums: the replica is expelled for sending garbage",
        fails=True,
        needs=("proxy",),
    ),
    FaultKind(
        kind="drop-reply",
        layer=FaultLayer.LINK,
        does="the guest's replies never arrive; its other frames do",
        proof=f"{_PROXY} the replies it dropped",
        undo=_RELAYS,
        masked_by="the others' majority; then the replica is taken for hanging",
        fails=True,
        needs=("proxy",),
    ),
    FaultKind(
        kind="stale-reply",
        layer=FaultLayer.LINK,
        does="each reply says what the first one said, under the right number",
        proof=f"{_PROXY} the replies this made wrong",
        undo=_RELAYS,
        masked_by=_DISSENT,
        needs=("proxy",),
    ),
    FaultKind(
        kind="wrong-seq",
        layer=FaultLayer.LINK,
        does="each reply is numbered one too high",
        proof=f"{_PROXY} the replies it renumbered",
        undo=_RELAYS,
        masked_by="the voter: a replica that answers what it was not asked is expelled",
        fails=True,
        needs=("proxy",),
    ),
    FaultKind(
        kind="flood",
        layer=FaultLayer.LINK,
        does="instead of each reply come hundreds that nobody asked for",
        proof=f"{_PROXY} the replies it put in",
        undo=_RELAYS,
        masked_by="the voter: a replica that answers what it was not asked is expelled",
        fails=True,
        needs=("proxy",),
    ),
    FaultKind(
        kind="delay",
        layer=FaultLayer.LINK,
        does="what the guest sends arrives 50 to 250 ms late, in its order",
        proof=f"{_PROXY} the pieces it held back",
        undo=_RELAYS,
        masked_by="the others' majority: nobody waits for the slowest replica",
        needs=("proxy",),
    ),
)

_MACHINE = (
    FaultKind(
        kind="reset",
        layer=FaultLayer.GUEST,
        does="the guest is reset, as by its reset button: it boots anew, its service's state lost "
        "(a node whose guests do not start again after a reset loses its QEMU instead)",
        proof="its processor is read back in real mode or at the firmware, or its QEMU has ended",
        undo=_SNAPSHOT,
        masked_by=_HANGS,
        fails=True,
    ),
    FaultKind(
        kind="nmi",
        layer=FaultLayer.GUEST,
        does="a non-maskable interrupt strikes the guest's processor (Linux writes a line and goes "
        "on)",
        proof="the guest's kernel tells of it on its console",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
    ),
    FaultKind(
        kind="flip-ram",
        layer=FaultLayer.MEMORY,
        does="bits of the guest's RAM are flipped, uniformly over all of it, as many as the dose "
        "says (under TCG a flip in code that is translated already is not seen before it is "
        "translated again)",
        proof="the flipped bytes are read back from the RAM",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        latent=True,
        needs=("ram",),
    ),
    FaultKind(
        kind="flip-kernel-code",
        layer=FaultLayer.MEMORY,
        does="as flip-ram, but in the code of the guest's kernel alone",
        proof="where that is the kernel tells; the flipped bytes are read back from the RAM",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        latent=True,
        needs=("ram", "ssh"),
    ),
    FaultKind(
        kind="flip-kernel-data",
        layer=FaultLayer.MEMORY,
        does="as flip-ram, but in the data of the guest's kernel alone (what it only reads, what "
        "it writes, and what begins as zeros)",
        proof="where that is the kernel tells; the flipped bytes are read back from the RAM",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        latent=True,
        needs=("ram", "ssh"),
    ),
    FaultKind(
        kind="flip-register",
        layer=FaultLayer.GUEST,
        does="one bit of a general register of the guest's processor, or of its instruction "
        "pointer, is flipped; the dose says how often",
        proof="the registers are read back through QEMU's debug stub",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        needs=("gdb",),
    ),
)

_INSIDE_FAULTS = (
    FaultKind(
        kind="service-kill",
        layer=FaultLayer.INSIDE,
        does="the service's process in the guest is killed; the agent starts it again, empty",
        proof=f"{_INSIDE}: the process is gone",
        undo=_SNAPSHOT,
        masked_by="the others' majority; the voter brings the new incarnation up from its log",
        needs=("ssh",),
    ),
    FaultKind(
        kind="service-stop",
        layer=FaultLayer.INSIDE,
        does="the service's process in the guest is stopped, as by SIGSTOP",
        proof=f"{_INSIDE}: the process is in state T",
        undo=_SNAPSHOT,
        masked_by=_HANGS,
        fails=True,
        needs=("ssh",),
    ),
    FaultKind(
        kind="service-corrupt",
        layer=FaultLayer.INSIDE,
        does="bits of the memory of the service's process in the guest are flipped",
        proof=f"{_INSIDE}: the flipped bytes",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        latent=True,
        needs=("ssh",),
    ),
    FaultKind(
        kind="cpu-hog",
        layer=FaultLayer.INSIDE,
        does="programs in the guest take its processor without end",
        proof=f"{_INSIDE}: they run",
        undo=_SNAPSHOT,
        masked_by="the others' majority: nobody waits for the slowest replica",
        needs=("ssh",),
    ),
    FaultKind(
        kind="memory-hog",
        layer=FaultLayer.INSIDE,
        does="a program in the guest takes its memory until hardly any is left",
        proof=f"{_INSIDE}: what is left of it",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        needs=("ssh",),
    ),
    FaultKind(
        kind="file-corrupt",
        layer=FaultLayer.INSIDE,
        does="bytes of a file of the service in the guest are changed",
        proof=f"{_INSIDE}: the changed bytes",
        undo=_SNAPSHOT,
        masked_by=_IF_USED,
        latent=True,
        needs=("ssh",),
    ),
    FaultKind(
        kind="clock-skew",
        layer=FaultLayer.INSIDE,
        does="the guest's clock is set wrong",
        proof=f"{_INSIDE}: the time that it has now",
        undo=_SNAPSHOT,
        masked_by="nothing: services take no time but the voter's, so it must not show",
        needs=("ssh",),
    ),
)

_VOTER = (
    FaultKind(
        kind="voter-kill",
        layer=FaultLayer.VOTER,
        does="the voter's process is killed at once",
        proof="the process has ended, or is a zombie that waits for its parent",
        undo=_NEW_VOTER,
        masked_by=_NOBODY,
        fails=True,
        targets=("voter",),
    ),
    FaultKind(
        kind="voter-hang",
        layer=FaultLayer.VOTER,
        does="the voter's process is stopped, as by SIGSTOP",
        proof="the kernel reports the process as stopped",
        undo="the process goes on, as by SIGCONT",
        masked_by=_NOBODY,
        fails=True,
        targets=("voter",),
    ),
    FaultKind(
        kind="voter-flip",
        layer=FaultLayer.VOTER,
        does="bits of the voter's own memory (private, writable, present) are flipped, uniformly, "
        "as many as the dose says",
        proof="the flipped bytes are read back from the process's memory",
        undo=_NEW_VOTER,
        masked_by=f"{_NOBODY}; where it is not used nothing sees it",
        latent=True,
        targets=("voter",),
    ),
)

_SHARED = (
    FaultKind(
        kind="host-crash",
        layer=FaultLayer.HOST,
        does="all guests' QEMUs and the voter are ended at once, as by a power cut of the host",
        proof="all these processes have ended",
        undo="new QEMUs are started from the clean snapshots, and a new voter",
        masked_by=_NOBODY,
        fails=True,
        leaves_qemu=False,
        targets=("host",),
    ),
    FaultKind(
        kind="flip-all",
        layer=FaultLayer.HOST,
        does="the same bits are flipped in the RAM of every guest, uniformly over all of it, as "
        "many as the dose says",
        proof="the flipped bytes are read back from each guest's RAM",
        undo="the guests are put back to their clean snapshots",
        masked_by="nothing, where every guest errs alike: a shared cause",
        latent=True,
        needs=("ram",),
        targets=("host",),
    ),
    FaultKind(
        kind="poison",
        layer=FaultLayer.REQUEST,
        does="a request meets a bug that every replica of the build has: from then on its replies "
        "are wrong, and alike (service poisoned only)",
        proof="the reply to it is wrong in the way that the bug makes it",
        undo="the guests are put back to their clean snapshots",
        masked_by="nothing, where every replica has the bug: a shared cause",
        fails=True,
        needs=("client", "poisoned"),
        targets=("client",),
    ),
    FaultKind(
        kind="poison-crash",
        layer=FaultLayer.REQUEST,
        does="a request meets a bug that every replica of the build has: it ends the service's "
        "process (service poisoned only)",
        proof="the request gets no reply of the service",
        undo="the guests are put back to their clean snapshots",
        masked_by="the voter: it skips a request that ended too many replicas",
        needs=("client", "poisoned"),
        targets=("client",),
    ),
)

CATALOGUE: dict[str, FaultKind] = {
    fault.kind: fault
    for part in (_GUEST, _LIES, _MACHINE, _INSIDE_FAULTS, _VOTER, FUNCTION, MOVED, _SHARED)
    for fault in part
}
"""By kind."""


def find(kind: str) -> FaultKind:
    """Return the fault of this kind.  Raises ValueError that lists the kinds."""
    try:
        return CATALOGUE[kind]
    except KeyError:
        raise ValueError(f"no fault {kind!r}: give one of {', '.join(CATALOGUE)}") from None


def offered_on_nodes() -> dict[str, FaultKind]:
    """Return what ``trivisor inject`` offers: faults of one guest that need nothing planted there.

    A running node's guests have no network card; its voter is restarted by its supervisor.
    """
    return {
        kind: fault
        for kind, fault in CATALOGUE.items()
        if "guest" in fault.targets and not {"ssh", "planted"} & set(fault.needs)
    }
