"""Faults as data: what a kind of fault is, and one planned injection of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

__all__ = ["FaultKind", "FaultLayer", "Injection", "Need", "Target"]

Need = Literal["client", "gdb", "planted", "poisoned", "proxy", "ram", "ssh"]
"""What must be there for a fault: a client that it may have send requests, QEMU's debug stub, the
function with the planted switch, the service with the planted bug, the proxy in the link, the
memory as a file, a shell in the guest."""

Target = Literal["guest", "voter", "host", "client", "function"]
"""Whom a fault hits: one guest; the voter; all guests (and perhaps the voter) at once; the service,
by a request that a client sends; F, the function that requests pass on the host."""


class FaultLayer(StrEnum):
    """Where a fault acts."""

    GUEST = "guest"  # the virtual machine as a whole: its QEMU, its virtual processor
    MEMORY = "memory"  # bits of the guest's RAM
    INSIDE = "inside"  # programs, files and clock inside the guest, over its shell
    FUNCTION = "function"  # the function f in the guest, before its service
    LINK = "link"  # bytes between the guest and the voter; the guest itself is sound
    VOTER = "voter"  # the voter's process
    MOVED = "moved"  # F, the same function once on the host, a process of its own
    HOST = "host"  # all at once
    REQUEST = "request"  # what is asked for: it meets the same bug in every replica


class FaultKind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault.

    ``masked_by`` says what of the voter meets it.  ``latent``: nothing is seen until the damaged
    state is read, or until the next checkpoint marker compares digests.  ``fails``: by its
    construction what it hits serves no right reply any more for the rest of a mission (which takes
    milliseconds to seconds), from the next reply on.  ``leaves_qemu``: the guests' QEMUs live on,
    so that they can be put back in place.
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
    needs: tuple[Need, ...] = ()
    targets: tuple[Target, ...] = ("guest",)


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
