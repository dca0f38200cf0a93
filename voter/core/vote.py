"""The vote: m of n, Pending, Won or Lost.

Section 4 of the paper: a result is forwarded "once the VMM has obtained replies from two replicas
with identical result values".  Here it is m of n: 1/1, 1/n (first reply), 2/2 (detect), 2/3, 3/5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

__all__ = ["LOST", "PENDING", "WON", "Policy", "PolicyError", "count"]

PENDING, WON, LOST = "pending", "won", "lost"


class PolicyError(ValueError):
    """A vote policy that cannot be."""


class Policy(msgspec.Struct, frozen=True):
    """``need`` identical replies of ``of`` replicas: m of n.

    Either ``need`` is 1 (the first reply counts, nothing is compared) or it is more than half of
    ``of``: else two different replies could both win.
    """

    need: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.need <= self.of:
            raise PolicyError(
                f"vote {self}: cannot be; need 1 <= m <= n (for example 2/3 for three guests)"
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
        """Whether a reply that differs from the released one convicts its sender.

        Not if one reply is enough: the released one may be the wrong one.
        """
        return self.need > 1

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read ``"2/3"``.  Raises PolicyError."""
        need, slash, of = text.partition("/")
        if not (slash and need.isdecimal() and of.isdecimal()):
            raise PolicyError(f"vote {text!r}: write it as m/n, for example 2/3")
        return cls(int(need), int(of))

    def __str__(self) -> str:
        return f"{self.need}/{self.of}"


def count(
    ballots: Mapping[int, bytes], electors: Iterable[int], need: int
) -> tuple[str, bytes | None]:
    """Return how a vote stands, and the winning value once there is one.

    ``ballots``: value by replica.  ``electors``: the active replicas; ballots of others do not
    count, and an elector without a ballot may still cast one.  Lost means that no value can reach
    ``need`` any more.
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
