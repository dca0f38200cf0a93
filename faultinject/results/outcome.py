"""What a mission came to and what it ran on: terms that campaigns and their readers share."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

__all__ = ["Design", "Outcome", "Question", "StationFacts"]

Design = Literal["voted", "nv"]
"""``voted``: clients send to the voter.  ``nv``: one guest, and clients send directly to its agent
(the paper's non-virtualized node)."""

Question = Literal["inequality4", "designs", "softerrors", "commoncause"]
"""What a campaign asks.  ``inequality4``: does the voter behave as the paper assumes?  ``designs``:
the same for other vote policies (1 of n, m of n).  ``softerrors`` and ``commoncause``: does the
model hold for faults that nobody forced to cause a failure?  One campaign asks one question."""


class Outcome(StrEnum):
    """The outcome of a mission: the most severe event in it, in the order given here."""

    SILENT = "silent"  # a wrong reply was released: silent data corruption
    VOTER_LOST = "voter-lost"  # the voter process ended, or no longer answers
    DETECTED = "detected"  # no majority: rejected, or outcome-unknown
    TIMEOUT = "timeout"  # a request had no verdict within its deadline
    CORRECT = "correct"

    @property
    def failed(self) -> bool:
        """Whether the paper counts it as a failure: every outcome but correct."""
        return self is not Outcome.CORRECT


class StationFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
