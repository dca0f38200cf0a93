"""The catalogue of faults, as data: what each kind does and needs, and what masks it."""

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
    GUEST_FUNCTION = "function"  # the function f in the guest, before its service
    LINK = "link"  # bytes between the guest and the voter; the guest itself is correct
    VOTER = "voter"  # the voter's process
    HOST_FUNCTION = "relocated"  # F: the same function, run once in a process on the host
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


# Texts that several kinds share.
_OTHERS = "the others' majority"
_SLOWEST = f"{_OTHERS}: nobody waits for the slowest replica"
_HANGS = f"{_OTHERS}; after `limits.hang` seconds of silence the replica is removed from the vote"
_DISSENT = "the vote: the replica is named as dissenter and expelled"
_NAMED = "the vote: the replica is named as dissenter; nothing where the first reply counts"
_UNASKED = "the voter: it expels a replica that answers a request that was not sent"
_IF_USED = "the vote, if the damage is used and makes a reply wrong; otherwise nothing detects it"
_NOTHING = "nothing in the node: this is the R_V, or the R_H, of the paper"
_R_F = "nothing in the node: this is the paper's R_F"
_BELIEVED = f"{_R_F}; nobody votes on F's answers"
_REFUSED = f"{_R_F}; the voter refuses what F does not admit"


def _kind(
    kind: str,
    layer: FaultLayer,
    does: str,
    masked_by: str,
    *,
    target: TargetKind = "guest",
    needs: tuple[Requirement, ...] = (),
    **flags: bool,
) -> tuple[str, FaultKind]:
    fault = FaultKind(
        kind=kind,
        layer=layer,
        does=does,
        masked_by=masked_by,
        targets=(target,),
        needs=needs,
        **flags,
    )
    return kind, fault


CATALOGUE: dict[str, FaultKind] = dict([
    _kind("crash", FaultLayer.GUEST,
          "the guest's QEMU process is killed, as by a power failure",
          "the others' majority; the end of its link removes the replica from the vote",
          fails=True, leaves_qemu=False),
    _kind("hang", FaultLayer.GUEST,
          "the guest's virtual processor is stopped; its QEMU and its link stay",
          _HANGS, fails=True),
    _kind("slow", FaultLayer.GUEST,
          "the guest's virtual processor is stopped for most of each quarter of a second",
          _SLOWEST),
    _kind("corrupt-reply", FaultLayer.LINK,
          "one byte of each reply (of one reply in each batch) is changed on the link, with a "
          "valid checksum",
          _DISSENT, fails=True, needs=("proxy",)),
    _kind("corrupt-state", FaultLayer.MEMORY,
          "one bit of each copy of a canary's value in the guest's RAM is flipped (service kv "
          "only)",
          "the vote once the canary is read, or the digests at the next marker",
          latent=True, needs=("ram", "client")),
    _kind("garbage", FaultLayer.LINK,
          "random bytes are inserted into what the guest sends",
          "the frames' checksums: the replica is expelled for sending garbage",
          fails=True, needs=("proxy",)),
    _kind("drop-reply", FaultLayer.LINK,
          "the guest's replies (one of each batch) never arrive; its other frames do",
          "the others' majority; then the replica counts as hanging", fails=True, needs=("proxy",)),
    _kind("stale-reply", FaultLayer.LINK,
          "each reply (one of each batch) repeats the first one's content, under the right number",
          _DISSENT, needs=("proxy",)),
    _kind("wrong-seq", FaultLayer.LINK,
          "each reply (one of each batch) has a number that is one too high",
          _UNASKED, fails=True, needs=("proxy",)),
    _kind("flood", FaultLayer.LINK,
          "hundreds of unrequested replies arrive instead of each one (of one of each batch)",
          _UNASKED, fails=True, needs=("proxy",)),
    _kind("delay", FaultLayer.LINK,
          "what the guest sends arrives 50 to 250 ms late, in its order",
          _SLOWEST, needs=("proxy",)),
    _kind("reset", FaultLayer.GUEST,
          "the guest is reset, as by its reset button: it boots again, its service's state lost "
          "(on a node whose guests do not restart after a reset, its QEMU ends instead)",
          _HANGS, fails=True),
    _kind("nmi", FaultLayer.GUEST,
          "the guest's processor gets a non-maskable interrupt (Linux logs a line and continues)",
          _IF_USED),
    _kind("flip-ram", FaultLayer.MEMORY,
          "bits of the guest's RAM are flipped, uniformly over all of it; the dose is their number "
          "(under TCG a flip in code that is already translated has no effect before it is "
          "translated again)",
          _IF_USED, latent=True, needs=("ram",)),
    _kind("flip-kernel-code", FaultLayer.MEMORY,
          "as flip-ram, but only in the code of the guest's kernel",
          _IF_USED, latent=True, needs=("ram", "ssh")),
    _kind("flip-kernel-data", FaultLayer.MEMORY,
          "as flip-ram, but only in the data of the guest's kernel (read-only, written and "
          "zero-initialized)",
          _IF_USED, latent=True, needs=("ram", "ssh")),
    _kind("flip-register", FaultLayer.GUEST,
          "bits of the guest's general registers or its instruction pointer are flipped; the dose "
          "is their number",
          _IF_USED, needs=("gdb",)),
    _kind("service-kill", FaultLayer.INSIDE,
          "the service's process in the guest is killed; the agent restarts it with an empty state",
          "the others' majority; the voter restores the new incarnation from its log",
          needs=("ssh",)),
    _kind("service-stop", FaultLayer.INSIDE,
          "the service's process in the guest is stopped, as by SIGSTOP",
          _HANGS, fails=True, needs=("ssh",)),
    _kind("service-corrupt", FaultLayer.INSIDE,
          "bits of the memory of the service's process in the guest are flipped",
          _IF_USED, latent=True, needs=("ssh",)),
    _kind("cpu-hog", FaultLayer.INSIDE,
          "programs in the guest use its processor without end",
          _SLOWEST, needs=("ssh",)),
    _kind("memory-hog", FaultLayer.INSIDE,
          "a program in the guest takes its memory until hardly any is left",
          _IF_USED, needs=("ssh",)),
    _kind("file-corrupt", FaultLayer.INSIDE,
          "bytes of a file of the service in the guest are changed",
          _IF_USED, latent=True, needs=("ssh",)),
    _kind("clock-skew", FaultLayer.INSIDE,
          "the guest's clock is set wrong",
          "the voter's time: services use no other clock, so this must have no effect",
          needs=("ssh",)),
    _kind("voter-kill", FaultLayer.VOTER,
          "the voter's process is killed",
          _NOTHING, fails=True, target="voter"),
    _kind("voter-hang", FaultLayer.VOTER,
          "the voter's process is stopped, as by SIGSTOP",
          _NOTHING, fails=True, target="voter"),
    _kind("voter-flip", FaultLayer.VOTER,
          "bits of the voter's own memory (private, writable, present) are flipped, uniformly; the "
          "dose is their number",
          "nothing in the node: this is the R_V, or the R_H, of the paper; a flip that is not used "
          "has no effect", latent=True, target="voter"),
    _kind("function-crash", FaultLayer.GUEST_FUNCTION,
          "the function f in the guest ends the service's process at each call (a node with a "
          "planted f only)",
          "the others' majority; the agent restarts the service, with the same f",
          fails=True, needs=("ram", "planted")),
    _kind("function-hang", FaultLayer.GUEST_FUNCTION,
          "the function f in the guest never returns, so that the service does not answer either "
          "(a node with a planted f only)",
          _HANGS, fails=True, needs=("ram", "planted")),
    _kind("function-admit", FaultLayer.GUEST_FUNCTION,
          "the function f in the guest admits every request, signed or not (a node with a planted "
          "f only)",
          _NAMED, fails=True, needs=("ram", "planted")),
    _kind("function-refuse", FaultLayer.GUEST_FUNCTION,
          "the function f in the guest refuses every request, signed or not (a node with a planted "
          "f only)",
          _NAMED, fails=True, needs=("ram", "planted")),
    _kind("host-function-kill", FaultLayer.HOST_FUNCTION,
          "the process of F, the function that requests pass on the host, is killed",
          _REFUSED, fails=True, target="function"),
    _kind("host-function-hang", FaultLayer.HOST_FUNCTION,
          "the process of F is stopped, as by SIGSTOP",
          _REFUSED, fails=True, target="function"),
    _kind("host-function-admit", FaultLayer.HOST_FUNCTION,
          "F admits every request, signed or not (a node with a planted F only)",
          _BELIEVED, fails=True, needs=("planted",), target="function"),
    _kind("host-function-refuse", FaultLayer.HOST_FUNCTION,
          "F refuses every request, signed or not (a node with a planted F only)",
          _BELIEVED, fails=True, needs=("planted",), target="function"),
    _kind("host-crash", FaultLayer.HOST,
          "all guests' QEMUs and the voter are killed, as by a power failure of the host",
          _NOTHING, fails=True, leaves_qemu=False, target="host"),
    _kind("flip-all", FaultLayer.HOST,
          "the same bits are flipped in the RAM of every guest, uniformly over all of it; the dose "
          "is their number",
          "nothing, where every guest fails alike: a common cause",
          latent=True, needs=("ram",), target="host"),
    _kind("poison", FaultLayer.REQUEST,
          "a request triggers a bug that every replica of the build has: from then on all its "
          "replies are wrong in the same way (service poisoned only)",
          "nothing, where every replica has the bug: a common cause",
          fails=True, needs=("client", "poisoned"), target="client"),
    _kind("poison-crash", FaultLayer.REQUEST,
          "a request triggers a bug that every replica of the build has: it ends the service's "
          "process (service poisoned only)",
          "the voter: it skips a request that ended too many replicas",
          needs=("client", "poisoned"), target="client"),
])  # fmt: skip
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
