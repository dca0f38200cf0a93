"""The plan of the rounds in which a corrupted state and a killed voter coincide.

Each round corrupts one stored value in one guest and kills the voter at almost the same time.  The
plan is a pure function of the seed.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random

import msgspec

from faultinject.soak.plan import GUESTS, Deck

__all__ = [
    "EARLIEST_KILL",
    "HELD_KEYS",
    "LATEST_KILL",
    "MAGIC",
    "MARKERS",
    "TOGETHER",
    "VALUE_SIZE",
    "Aim",
    "RoundPlan",
    "held_value",
    "make_rounds",
]

TOGETHER = "corrupt-state+voter-kill"
"""The one combination that ``trivisor soak --together`` offers."""
EARLIEST_KILL, LATEST_KILL = -0.05, 0.2
"""Seconds between the corruption and the voter's SIGKILL; negative: the kill comes first."""
HELD_KEYS = 12
"""Number of keys whose values are corrupted in turn."""
VALUE_SIZE = 64
"""Bytes of such a value."""
MAGIC = bytes.fromhex("f15a0cc7e3b9d284")
"""First bytes of every such value, so that one search of a guest's memory finds all of them."""
MARKERS = 2
"""Markers that must pass at the end of a round.  The voter orders the second one only when every
guest has given its digest at the first, so the guests' digests are then known to be equal.
"""
_BINS = 10
"""The range of offsets is cut into so many bins; the plan draws equally often from each."""


class Aim(StrEnum):
    """The moment that a corruption is aimed at."""

    READ = "clients read the value"
    MARKER = "a marker asks for the digests"
    FETCH = "a checkpoint is fetched"


_LEADS = {Aim.READ: (0.0, 0.0), Aim.MARKER: (-0.2, 0.05), Aim.FETCH: (0.0, 1.0)}
"""Seconds from the aimed moment to the corruption.  For FETCH: the share of the time between a
marker and the end of its fetch, as the last few took it, that passes before the corruption.
An early one changes the state before its digest is told, a late one while its pieces are given.
"""


class RoundPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    ``byte`` and ``bit`` say which bit of the value is flipped.  ``lead`` is the planned time from
    the aimed moment to the corruption, in seconds; for FETCH it is a share of the time that the
    last few checkpoints took.  ``offset`` is the time from the corruption to the voter's SIGKILL.
    ``calm`` is how long all guests vote before the round.  Both are in seconds.
    """

    number: int  # from 1
    guest: str
    key: str
    byte: int
    bit: int
    aim: Aim
    lead: float
    offset: float
    calm: float


def held_value(seed: int, number: int, attempt: int) -> bytes:
    """Return the value that a round stores: unique, and the same for the same seed."""
    random = Random(f"trivisor soak {seed} round {number} attempt {attempt}")
    return MAGIC + random.randbytes(VALUE_SIZE - len(MAGIC))


def make_rounds(seed: int, rounds: int) -> tuple[RoundPlan, ...]:
    """Return the plan of so many rounds.  Raises ValueError if under 1."""
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: at least 1")
    random = Random(f"trivisor soak {TOGETHER} {seed}")
    aims = Deck(random, *[Aim.READ] * 4, *[Aim.MARKER] * 3, *[Aim.FETCH] * 3)
    guests = Deck(random, *GUESTS)
    keys = Deck(random, *(f"held-{number}" for number in range(HELD_KEYS)))
    bins = Deck(random, *range(_BINS))
    width = (LATEST_KILL - EARLIEST_KILL) / _BINS
    plans: list[RoundPlan] = []
    for number in range(1, rounds + 1):
        aim = Aim(str(aims.draw()))
        guest, key = str(guests.draw()), str(keys.draw())
        while plans and guest == plans[-1].guest:
            guest = str(guests.draw())
        while plans and key == plans[-1].key:
            key = str(keys.draw())
        place = int(str(bins.draw())) + random.random()
        plans.append(
            RoundPlan(
                number=number,
                guest=guest,
                key=key,
                byte=random.randrange(len(MAGIC), VALUE_SIZE),
                bit=random.randrange(8),
                aim=aim,
                lead=round(random.uniform(*_LEADS[aim]), 3),
                offset=round(EARLIEST_KILL + width * place, 3),
                calm=round(random.uniform(0.1, 0.5), 2),
            )
        )
    return tuple(plans)
