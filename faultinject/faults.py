"""The catalogue of faults, as data: what each does, how it is proved applied, how it is undone."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["CATALOGUE", "Fault", "Layer", "find"]


class Layer(StrEnum):
    """Where a fault acts."""

    GUEST = "guest"  # the virtual machine as a whole: its QEMU, its virtual processor
    MEMORY = "memory"  # bits of the guest's RAM
    LINK = "link"  # bytes between the guest and the voter; the guest itself is sound


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault.

    ``masked_by`` says what of the voter meets it.  ``latent``: nothing is seen until the damaged
    state is read, or until the next checkpoint marker compares digests.
    """

    kind: str
    layer: Layer
    does: str
    proof: str
    undo: str
    masked_by: str
    latent: bool = False


_BACK = "a guest that fell out of the vote is put back to its clean snapshot"
_RELAYS = f"the proxy hands over untouched bytes again; {_BACK}"
_PROXY = "the proxy in the link says that it holds this fault, and counts"

CATALOGUE: dict[str, Fault] = {
    fault.kind: fault
    for fault in (
        Fault(
            kind="crash",
            layer=Layer.GUEST,
            does="the guest's QEMU process is ended at once, as by a power cut",
            proof="the process that ran the guest has ended",
            undo="a new QEMU is started from the guest's clean snapshot",
            masked_by="the others' majority; the end of its link takes the replica out of the vote",
        ),
        Fault(
            kind="hang",
            layer=Layer.GUEST,
            does="the guest's virtual processor is stopped; its QEMU and its link stay",
            proof="the hypervisor reports the guest as paused",
            undo="the guest is put back to its clean snapshot",
            masked_by="the others' majority; after `limits.hang` seconds of silence the replica is "
            "out of the vote",
        ),
        Fault(
            kind="slow",
            layer=Layer.GUEST,
            does="the guest's virtual processor is stopped for most of each quarter of a second",
            proof="the hypervisor has reported the guest as paused, and as running again",
            undo=f"the duty cycle ends; {_BACK}",
            masked_by="the others' majority: nobody waits for the slowest replica",
        ),
        Fault(
            kind="corrupt-reply",
            layer=Layer.LINK,
            does="one byte of each reply is changed on the link, with a right checksum",
            proof=f"{_PROXY} the replies it changed",
            undo=_RELAYS,
            masked_by="the vote: the replica is named as dissenter and expelled",
        ),
        Fault(
            kind="corrupt-state",
            layer=Layer.MEMORY,
            does="one bit of each copy of a canary's value in the guest's RAM is flipped "
            "(service kv only)",
            proof="the flipped bytes are read back from the RAM",
            undo="the guest is put back to its clean snapshot, and gets its state from checkpoint "
            "and log",
            masked_by="the vote once the canary is read, else the digests at the next marker",
            latent=True,
        ),
        Fault(
            kind="garbage",
            layer=Layer.LINK,
            does="random bytes are spliced into what the guest sends",
            proof=f"{_PROXY} the bytes it put in",
            undo=_RELAYS,
            masked_by="the frames' checksums: the replica is expelled for sending garbage",
        ),
        Fault(
            kind="drop-reply",
            layer=Layer.LINK,
            does="the guest's replies never arrive; its other frames do",
            proof=f"{_PROXY} the replies it dropped",
            undo=_RELAYS,
            masked_by="the others' majority; then the replica is taken for hanging",
        ),
        Fault(
            kind="stale-reply",
            layer=Layer.LINK,
            does="each reply says what the first one said, under the right number",
            proof=f"{_PROXY} the replies this made wrong",
            undo=_RELAYS,
            masked_by="the vote: the replica is named as dissenter and expelled",
        ),
        Fault(
            kind="wrong-seq",
            layer=Layer.LINK,
            does="each reply is numbered one too high",
            proof=f"{_PROXY} the replies it renumbered",
            undo=_RELAYS,
            masked_by="the voter: a replica that answers what it was not asked is expelled",
        ),
    )
}
"""By kind."""


def find(kind: str) -> Fault:
    """Return the fault of this kind.  Raises ValueError that lists the kinds."""
    try:
        return CATALOGUE[kind]
    except KeyError:
        raise ValueError(f"no fault {kind!r}: give one of {', '.join(CATALOGUE)}") from None
