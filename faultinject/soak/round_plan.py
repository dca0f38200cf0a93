"""The plan of ``soak --together``: rounds in which a corrupted state and a killed voter coincide.

Each round corrupts one stored value in one guest and kills the voter at almost the same time.  The
plan is a pure function of the seed.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random

import msgspec

from faultinject.soak.plan import GUESTS, BalancedDraw

__all__ = [
    "EARLIEST_KILL", "LATEST_KILL", "MAGIC", "MARKERS", "TOGETHER", "VALUE_SIZE", "RoundTrigger",
    "RoundPlan", "make_rounds", "marked_value",
]  # fmt: skip

TOGETHER = "corrupt-state+voter-kill"
"""The one combination that ``trivisor soak --together`` offers."""
EARLIEST_KILL, LATEST_KILL = -0.05, 0.2
"""Seconds from the corruption to the voter's SIGKILL; negative: the kill comes first."""
KEYS = 12
"""Number of keys whose values are corrupted in turn."""
VALUE_SIZE = 64
"""Bytes of such a value."""
MAGIC = bytes.fromhex("f15a0cc7e3b9d284")
"""First bytes of every such value, so that one search of a guest's memory finds all of them."""
MARKERS = 2
"""Markers that must pass at the end of a round.  The voter orders the second one only when every
guest has reported its digest at the first, so the guests' digests are then known to be equal.
"""
_BINS = 10
"""The range of offsets is divided into this many bins, from which the plan draws equally often."""


class RoundTrigger(StrEnum):
    """The situation in which a value is corrupted."""

    READ = "clients read the value"
    MARKER = "a marker asks for the digests"
    FETCH = "a checkpoint is fetched"


_LEADS = {
    RoundTrigger.READ: (0.0, 0.0),
    RoundTrigger.MARKER: (-0.2, 0.05),
    RoundTrigger.FETCH: (0.0, 1.0),
}
"""Seconds from the moment to the corruption.  For FETCH: the share of the time between a marker and
the end of its fetch, measured on the last few, that passes before the corruption.  An early
corruption changes the state before its digest is reported, a late one while the state is sent.
"""


class RoundPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    ``byte`` and ``bit`` identify the bit of the value that is flipped.  ``lead`` is the time from
    the moment to the corruption (see ``_LEADS``).  ``offset`` is the time from the corruption to
    the voter's SIGKILL.  ``calm`` is how long all guests vote before the round.  In seconds.
    """

    number: int  # from 1
    guest: str
    key: str
    byte: int
    bit: int
    trigger: RoundTrigger = msgspec.field(name="moment")
    lead: float
    offset: float
    calm: float


def marked_value(seed: int, number: int, attempt: int) -> bytes:
    """Return the value that a round stores: unique, and the same for the same seed."""
    random = Random(f"trivisor soak {seed} round {number} attempt {attempt}")
    return MAGIC + random.randbytes(VALUE_SIZE - len(MAGIC))


def make_rounds(seed: int, rounds: int) -> tuple[RoundPlan, ...]:
    """Return the plan of this many rounds.  Raises ValueError if it is below 1."""
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: at least 1")
    random = Random(f"trivisor soak {TOGETHER} {seed}")
    triggers = BalancedDraw(
        random, *[RoundTrigger.READ] * 4, *[RoundTrigger.MARKER] * 3, *[RoundTrigger.FETCH] * 3
    )
    guests = BalancedDraw(random, *GUESTS)
    keys = BalancedDraw(random, *(f"held-{number}" for number in range(KEYS)))
    bins = BalancedDraw(random, *range(_BINS))
    width = (LATEST_KILL - EARLIEST_KILL) / _BINS
    plans: list[RoundPlan] = []
    for number in range(1, rounds + 1):
        trigger, guest, key = triggers.draw(), guests.draw(), keys.draw()
        while plans and guest == plans[-1].guest:
            guest = guests.draw()
        while plans and key == plans[-1].key:
            key = keys.draw()
        position = bins.draw() + random.random()
        plans.append(
            RoundPlan(
                number=number,
                guest=guest,
                key=key,
                byte=random.randrange(len(MAGIC), VALUE_SIZE),
                bit=random.randrange(8),
                trigger=trigger,
                lead=round(random.uniform(*_LEADS[trigger]), 3),
                offset=round(EARLIEST_KILL + width * position, 3),
                calm=round(random.uniform(0.1, 0.5), 2),
            )
        )
    return tuple(plans)
