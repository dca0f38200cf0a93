"""The vote policy m of n, and the count: pending, won or lost.

Section 4 of the paper: a result is forwarded "once the VMM has obtained replies from two replicas
with identical result values".  Here the policy is m of n: 2/3 and 3/5 mask faults, 2/2 only detects
them, 1/1 is a single replica, and 1/n takes the first reply and compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from guests.errors import CodedError

__all__ = ["LOST", "PENDING", "WON", "Policy", "PolicyError", "count"]

PENDING, WON, LOST = "pending", "won", "lost"


class PolicyError(CodedError, ValueError):
    """An impossible or unsafe vote policy."""

    error_code = "TV0206"


class Policy(msgspec.Struct, frozen=True):
    """``need`` identical replies of ``of`` replicas: m of n.

    ``need`` is 1 (the first reply wins) or more than half of ``of``.  Otherwise two different
    replies could both win.
    """

    need: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.need <= self.of:
            raise PolicyError(
                f"vote {self}: m must be from 1 to n (for example 2/3 for three guests)"
            )
        if self.of > 64:
            raise PolicyError(f"vote {self}: at most 64 replicas")
        if 1 < self.need <= self.of // 2:
            raise PolicyError(
                f"vote {self}: two different replies could both win; "
                f"use 1/{self.of} or at least {self.of // 2 + 1}/{self.of}"
            )

    @property
    def compares(self) -> bool:
        """Whether a reply that differs from the winner is a dissent that expels its sender.

        Not if one reply wins: then the winner may be the wrong one.
        """
        return self.need > 1

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Parse a text like ``2/3``.  Raises PolicyError."""
        need, slash, of = text.partition("/")
        if not (slash and text.isascii() and need.isdecimal() and of.isdecimal() and len(text) < 6):
            raise PolicyError(f"vote {text!r}: write it as m/n, for example 2/3")
        return cls(int(need), int(of))

    def __str__(self) -> str:
        return f"{self.need}/{self.of}"


def count(
    ballots: Mapping[int, bytes], electors: Iterable[int], need: int
) -> tuple[str, bytes | None]:
    """Return the state of a vote, and the winning value if it is won.

    ``ballots``: value by replica.  ``electors``: the replicas whose ballots count; one without a
    ballot may still cast it.  A vote is lost if no value can reach ``need`` any more.
    """
    tally: dict[bytes, int] = {}
    best = waiting = 0
    for elector in electors:
        value = ballots.get(elector)
        if value is None:
            waiting += 1
            continue
        votes = tally.get(value, 0) + 1
        if votes >= need:
            return WON, value
        tally[value] = votes
        best = max(best, votes)
    return (PENDING if best + waiting >= need else LOST), None
