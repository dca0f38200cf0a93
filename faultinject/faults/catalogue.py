"""The catalogue of faults, as data: what each kind does, its proof, its undoing, what masks it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

__all__ = [
    "CATALOGUE",
    "FaultKind",
    "FaultLayer",
    "Injection",
    "Requirement",
    "TargetKind",
    "find",
    "offered_on_nodes",
]

Requirement = Literal["client", "gdb", "planted", "poisoned", "proxy", "ram", "ssh"]
"""What a node must have for a fault: a client that sends additional requests, QEMU's debug stub,
the function with the planted switch, the service with the planted bug, a proxy in the link, the
guest's memory as a file, a shell in the guest."""

TargetKind = Literal["guest", "voter", "host", "client", "function"]
"""What a fault is injected into: one guest; the voter; the host, and so all guests; the service, by
a client's request; F, the function that requests pass on the host."""


class FaultLayer(StrEnum):
    """The part of a node in which a fault acts."""

    GUEST = "guest"  # the virtual machine as a whole: its QEMU, its virtual processor
    MEMORY = "memory"  # bits of the guest's RAM
    INSIDE = "inside"  # programs, files and clock inside the guest, over its shell
    FUNCTION = "function"  # the function f in the guest, before its service
    LINK = "link"  # bytes between the guest and the voter; the guest itself is correct
    VOTER = "voter"  # the voter's process
    RELOCATED = "relocated"  # F: the same function, run once in a process on the host
    HOST = "host"  # everything at once
    REQUEST = "request"  # a request that meets the same bug in every replica


class FaultKind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault.

    ``masked_by``: the mechanism of the node that masks it.  ``latent``: it has no effect until the
    damaged state is read, or the next checkpoint compares digests.  ``fails``: by construction its
    target serves no correct reply from the next one to the mission's end.  ``leaves_qemu``: the
    guests' QEMUs survive, so the guests can be reverted in place.
    """

    kind: str
    layer: FaultLayer
    does: str
    proof: str
    undo: str
    masked_by: str
    latent: bool = False
    fails: bool = False
    leaves_qemu: bool = True
    needs: tuple[Requirement, ...] = ()
    targets: tuple[TargetKind, ...] = ("guest",)


class Injection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One planned injection of a fault.

    ``target``: a guest (``g1``, ...), ``voter``, ``function`` (F on the host), ``host`` (all guests
    and the voter at once) or ``client`` (the fault comes with a request: poison).
    ``at``: the trigger, as the index of the mission's request that the fault is injected before.
    ``seed``: 64 bits, from which the fault draws everything it varies (address, bit, register,
    changed bytes).  Two links with one seed change the same reply in the same way.
    ``dose``: how often the fault repeats what it does, for example the number of flipped bits.
    """

    target: str
    kind: str
    at: int
    seed: int
    dose: int = 1


# ---- texts that several kinds share

_REVERT = "the guest is reverted to its clean snapshot"
_REVERT_ALL = "the guests are reverted to their clean snapshots"
_OTHERS = "the others' majority"
_SLOWEST = f"{_OTHERS}: nobody waits for the slowest replica"
_HANGS = f"{_OTHERS}; after `limits.hang` seconds of silence the replica is removed from the vote"
_DISSENT = "the vote: the replica is named as dissenter and expelled"
_UNASKED = "the voter: it expels a replica that answers what it was not asked"
_IF_USED = "the vote, if the damage is used and makes a reply wrong; otherwise nothing detects it"
_NOTHING = "nothing in the node: this is the R_V, or the R_H, of the paper"
_R_F = "nothing in the node: this is the paper's R_F"
_BELIEVED = f"{_R_F}; nobody votes on F's answers"
_NEW_VOTER = "a new voter is started"
_NEW_F = "a new F is started"
_RAM_PROOF = "the flipped bytes are read back from the RAM"
_REGION_PROOF = f"the guest's kernel reports the region's address; {_RAM_PROOF}"
_SWITCH = "the planted function's switch is read back from"
_ENDED = "the process has ended, or is a zombie that waits for its parent"
_STOPPED = "the kernel reports the process as stopped"
_CONTINUED = "the process is continued, as by SIGCONT"

_GUEST = (
    FaultKind(
        kind="crash",
        layer=FaultLayer.GUEST,
        does="the guest's QEMU process is killed, as by a power failure",
        proof="the process that ran the guest has ended",
        undo="a new QEMU is started from the guest's clean snapshot",
        masked_by=f"{_OTHERS}; the end of its link removes the replica from the vote",
        fails=True,
        leaves_qemu=False,
    ),
    FaultKind(
        kind="hang",
        layer=FaultLayer.GUEST,
        does="the guest's virtual processor is stopped; its QEMU and its link stay",
        proof="the hypervisor reports the guest as paused",
        undo=_REVERT,
        masked_by=_HANGS,
        fails=True,
    ),
    FaultKind(
        kind="slow",
        layer=FaultLayer.GUEST,
        does="the guest's virtual processor is stopped for most of each quarter of a second",
        proof="the hypervisor has reported the guest as paused, and as running again",
        undo="the duty cycle ends; a guest that left the vote is reverted to its clean snapshot",
        masked_by=_SLOWEST,
    ),
)


def _lie(
    kind: str, does: str, counted: str, masked_by: str = _DISSENT, *, fails: bool = False
) -> FaultKind:
    return FaultKind(
        kind=kind,
        layer=FaultLayer.LINK,
        does=does,
        proof=f"the proxy in the link reports this fault, and counts the {counted}",
        undo="the proxy relays unchanged bytes again; a guest that left the vote is reverted to "
        "its clean snapshot",
        masked_by=masked_by,
        fails=fails,
        needs=("proxy",),
    )


_LINK = (
    _lie("corrupt-reply", "one byte of each reply is changed on the link, with a valid checksum",
         "replies it changed", fails=True),
    FaultKind(
        kind="corrupt-state",
        layer=FaultLayer.MEMORY,
        does="one bit of each copy of a canary's value in the guest's RAM is flipped "
        "(service kv only)",
        proof=_RAM_PROOF,
        undo=f"{_REVERT}, and gets its state from checkpoint and log",
        masked_by="the vote once the canary is read, or the digests at the next marker",
        latent=True,
        needs=("ram", "client"),
    ),
    _lie("garbage", "random bytes are inserted into what the guest sends", "bytes it inserted",
         "the frames' checksums: the replica is expelled for sending garbage", fails=True),
    _lie("drop-reply", "the guest's replies never arrive; its other frames do",
         "replies it dropped", f"{_OTHERS}; then the replica counts as hanging", fails=True),
    _lie("stale-reply",
         "each reply repeats the content of the first one, under the correct number",
         "replies this made wrong"),
    _lie("wrong-seq", "each reply has a number that is one too high", "replies it renumbered",
         _UNASKED, fails=True),
    _lie("flood", "hundreds of unrequested replies arrive instead of each reply",
         "replies it inserted", _UNASKED, fails=True),
    _lie("delay", "what the guest sends arrives 50 to 250 ms late, in its order",
         "pieces it delayed", _SLOWEST),
)  # fmt: skip


def _flip(kind: str, does: str, proof: str, *needs: Requirement) -> FaultKind:
    return FaultKind(
        kind=kind,
        layer=FaultLayer.MEMORY,
        does=does,
        proof=proof,
        undo=_REVERT,
        masked_by=_IF_USED,
        latent=True,
        needs=("ram", *needs),
    )


_MACHINE = (
    FaultKind(
        kind="reset",
        layer=FaultLayer.GUEST,
        does="the guest is reset, as by its reset button: it boots again, its service's state lost "
        "(on a node whose guests do not restart after a reset, its QEMU ends instead)",
        proof="its processor is observed in real mode or in the firmware, or its QEMU has ended",
        undo=_REVERT,
        masked_by=_HANGS,
        fails=True,
    ),
    FaultKind(
        kind="nmi",
        layer=FaultLayer.GUEST,
        does="the guest's processor gets a non-maskable interrupt (Linux logs a line and "
        "continues)",
        proof="the guest's kernel reports it on its console",
        undo=_REVERT,
        masked_by=_IF_USED,
    ),
    _flip(
        "flip-ram",
        "bits of the guest's RAM are flipped, uniformly over all of it; the dose is their number "
        "(under TCG a flip in code that is already translated has no effect before it is "
        "translated again)",
        _RAM_PROOF,
    ),
    _flip(
        "flip-kernel-code",
        "as flip-ram, but only in the code of the guest's kernel",
        _REGION_PROOF,
        "ssh",
    ),
    _flip(
        "flip-kernel-data",
        "as flip-ram, but only in the data of the guest's kernel (read-only, written and "
        "zero-initialized)",
        _REGION_PROOF,
        "ssh",
    ),
    FaultKind(
        kind="flip-register",
        layer=FaultLayer.GUEST,
        does="bits of the guest's general registers or its instruction pointer are flipped; the "
        "dose is their number",
        proof="the registers are read back through QEMU's debug stub",
        undo=_REVERT,
        masked_by=_IF_USED,
        needs=("gdb",),
    ),
)


def _inside(
    kind: str,
    does: str,
    read_back: str,
    masked_by: str = _IF_USED,
    *,
    fails: bool = False,
    latent: bool = False,
) -> FaultKind:
    return FaultKind(
        kind=kind,
        layer=FaultLayer.INSIDE,
        does=does,
        proof=f"a command in the guest reads back {read_back}",
        undo=_REVERT,
        masked_by=masked_by,
        fails=fails,
        latent=latent,
        needs=("ssh",),
    )


_INSIDE = (
    _inside("service-kill",
         "the service's process in the guest is killed; the agent restarts it with an empty state",
         "that the process has ended",
         f"{_OTHERS}; the voter restores the new incarnation from its log"),
    _inside("service-stop", "the service's process in the guest is stopped, as by SIGSTOP",
         "that the process is in state T", _HANGS, fails=True),
    _inside("service-corrupt",
         "bits of the memory of the service's process in the guest are flipped",
         "the flipped bytes", latent=True),
    _inside("cpu-hog", "programs in the guest use its processor without end", "that they run",
         _SLOWEST),
    _inside("memory-hog", "a program in the guest takes its memory until hardly any is left",
         "how much is left"),
    _inside("file-corrupt", "bytes of a file of the service in the guest are changed",
         "the changed bytes", latent=True),
    _inside("clock-skew", "the guest's clock is set wrong", "the guest's time",
         "the voter's time: services use no other clock, so this must have no effect"),
)  # fmt: skip

_VOTER = (
    FaultKind(
        kind="voter-kill",
        layer=FaultLayer.VOTER,
        does="the voter's process is killed",
        proof=_ENDED,
        undo=_NEW_VOTER,
        masked_by=_NOTHING,
        fails=True,
        targets=("voter",),
    ),
    FaultKind(
        kind="voter-hang",
        layer=FaultLayer.VOTER,
        does="the voter's process is stopped, as by SIGSTOP",
        proof=_STOPPED,
        undo=_CONTINUED,
        masked_by=_NOTHING,
        fails=True,
        targets=("voter",),
    ),
    FaultKind(
        kind="voter-flip",
        layer=FaultLayer.VOTER,
        does="bits of the voter's own memory (private, writable, present) are flipped, uniformly; "
        "the dose is their number",
        proof="the flipped bytes are read back from the process's memory",
        undo=_NEW_VOTER,
        masked_by=f"{_NOTHING}; a flip that is not used has no effect",
        latent=True,
        targets=("voter",),
    ),
)

_NAMED = "the vote: the replica is named as dissenter; nothing where the first reply counts"
_FUNCTION = tuple(
    FaultKind(
        kind=f"function-{what}",
        layer=FaultLayer.FUNCTION,
        does=f"the function f in the guest {does} (a node with a planted f only)",
        proof=f"{_SWITCH} the guest's RAM",
        undo=_REVERT,
        masked_by=masked_by,
        fails=True,
        needs=("ram", "planted"),
    )
    for what, does, masked_by in (
        (
            "crash",
            "ends the service's process at each call",
            f"{_OTHERS}; the agent restarts the service, with the same f",
        ),
        ("hang", "never returns, so that the service does not answer either", _HANGS),
        ("admit", "admits every request, signed or not", _NAMED),
        ("refuse", "refuses every request, signed or not", _NAMED),
    )
)


def _relocated(
    what: str, does: str, proof: str, undo: str, masked_by: str, *needs: Requirement
) -> FaultKind:
    return FaultKind(
        kind=f"host-function-{what}",
        layer=FaultLayer.RELOCATED,
        does=does,
        proof=proof,
        undo=undo,
        masked_by=masked_by,
        fails=True,
        needs=needs,
        targets=("function",),
    )


_REFUSED = f"{_R_F}; the voter refuses what F does not admit"
_F_SWITCH = f"{_SWITCH} its process's memory"
_RELOCATED = (
    _relocated("kill", "the process of F, the function that requests pass on the host, is killed",
         _ENDED, _NEW_F, _REFUSED),
    _relocated(
         "hang", "the process of F is stopped, as by SIGSTOP", _STOPPED, _CONTINUED, _REFUSED),
    _relocated("admit", "F admits every request, signed or not (a node with a planted F only)",
         _F_SWITCH, _NEW_F, _BELIEVED, "planted"),
    _relocated("refuse", "F refuses every request, signed or not (a node with a planted F only)",
         _F_SWITCH, _NEW_F, _BELIEVED, "planted"),
)  # fmt: skip

_COMMON_CAUSES = (
    FaultKind(
        kind="host-crash",
        layer=FaultLayer.HOST,
        does="all guests' QEMUs and the voter are killed, as by a power failure of the host",
        proof="all these processes have ended",
        undo="new QEMUs are started from the clean snapshots, and a new voter",
        masked_by=_NOTHING,
        fails=True,
        leaves_qemu=False,
        targets=("host",),
    ),
    FaultKind(
        kind="flip-all",
        layer=FaultLayer.HOST,
        does="the same bits are flipped in the RAM of every guest, uniformly over all of it; the "
        "dose is their number",
        proof="the flipped bytes are read back from each guest's RAM",
        undo=_REVERT_ALL,
        masked_by="nothing, where every guest fails alike: a common cause",
        latent=True,
        needs=("ram",),
        targets=("host",),
    ),
    FaultKind(
        kind="poison",
        layer=FaultLayer.REQUEST,
        does="a request triggers a bug that every replica of the build has: from then on all its "
        "replies are wrong in the same way (service poisoned only)",
        proof="the reply to it is wrong in the way that the bug makes it",
        undo=_REVERT_ALL,
        masked_by="nothing, where every replica has the bug: a common cause",
        fails=True,
        needs=("client", "poisoned"),
        targets=("client",),
    ),
    FaultKind(
        kind="poison-crash",
        layer=FaultLayer.REQUEST,
        does="a request triggers a bug that every replica of the build has: it ends the service's "
        "process (service poisoned only)",
        proof="the request gets no reply of the service",
        undo=_REVERT_ALL,
        masked_by="the voter: it skips a request that ended too many replicas",
        needs=("client", "poisoned"),
        targets=("client",),
    ),
)

CATALOGUE: dict[str, FaultKind] = {
    fault.kind: fault
    for part in (_GUEST, _LINK, _MACHINE, _INSIDE, _VOTER, _FUNCTION, _RELOCATED, _COMMON_CAUSES)
    for fault in part
}
"""All faults by kind."""


def find(kind: str) -> FaultKind:
    """Return the fault of this kind.  Raises ValueError that lists the kinds."""
    try:
        return CATALOGUE[kind]
    except KeyError:
        raise ValueError(f"no fault {kind!r}: give one of {', '.join(CATALOGUE)}") from None


def offered_on_nodes() -> dict[str, FaultKind]:
    """Return what ``trivisor inject`` offers: faults of one guest without a shell or a planted f.

    A running node's guests have no network card, and so no shell.
    """
    return {
        kind: fault
        for kind, fault in CATALOGUE.items()
        if "guest" in fault.targets and not {"ssh", "planted"} & set(fault.needs)
    }
