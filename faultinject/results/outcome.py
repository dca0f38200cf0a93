"""A mission's outcome and the host it ran on.  Campaigns and their readers share these terms."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

__all__ = ["Design", "Outcome", "Question", "NodeFacts"]

Design = Literal["voted", "nv"]
"""``voted``: clients send to the voter.  ``nv``: one guest, and clients send directly to its agent
(the paper's non-virtualized node)."""

Question = Literal["inequality4", "designs", "softerrors", "commoncause"]
"""What a campaign asks.  ``inequality4``: does the voter behave as the paper assumes?  ``designs``:
the same for other vote policies (1 of n, m of n).  ``softerrors`` and ``commoncause``: does the
model hold for faults that nobody forced to cause a failure?  One campaign asks one question."""


class Outcome(StrEnum):
    """The outcome of a mission: the most severe event in it, in the order given here.

    A *wrong reply* is one whose bytes differ from the correct service's.  What it does depends on
    whether a client would believe it (``history.model.is_believed``).
    """

    SILENT = "silent-corruption"  # a wrong reply that a client would believe
    UNCLEAR = "unclear"  # old rows only: the first wrong reply declares an error, others are lost
    VOTER_LOST = "voter-lost"  # the voter process ended, or no longer answers
    DECLARED = "declared-error"  # a wrong reply that declares itself: 5xx, 400, no status line
    DETECTED = "detected"  # no reply but an error: rejected, not executed, or outcome unknown
    TIMEOUT = "timeout"  # a request had no result within its deadline
    CORRECT = "correct"

    @property
    def failed(self) -> bool:
        """Whether the paper counts it as a failure: every outcome but correct."""
        return self is not Outcome.CORRECT

    @property
    def is_wrong_reply(self) -> bool:
        """Whether a wrong reply was released, believed or not."""
        return self in (Outcome.SILENT, Outcome.UNCLEAR, Outcome.DECLARED)


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host that missions ran on: hashes and versions, for the record."""

    host: str
    cpus: int
    cpu: str
    kernel: str
    python: str
    qemu: str
    libvirt: str
    accel: str
    image: str
    build: str
    trivisor: str
