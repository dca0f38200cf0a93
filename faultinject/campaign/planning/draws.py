"""Chance as a function of its name: the same draws on every machine and every Python.

A stream of draws is named by a seed and what it is for, so that any mission's draws can be made
without making those of the missions before it.  The words are BLAKE2b of the name and a counter.
Pure.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b, shake_256
from itertools import accumulate

__all__ = ["Draws", "Mix", "permutation"]

_WORDS = struct.Struct("<8Q")
_WORD = 1 << 64


class Mix:
    """Names with weights, prepared for drawing.  Weights are at least 0, their sum above 0."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.names = tuple(name for name, weight in weights.items() if weight > 0)
        self._sums = list(accumulate(weights[name] for name in self.names))
        if not self.names:
            raise ValueError("a mix needs a weight above 0")

    def at(self, part: float) -> str:
        """Return the name at this part (0 to below 1) of the whole weight."""
        place = bisect_right(self._sums, part * self._sums[-1])
        return self.names[min(place, len(self.names) - 1)]


class Draws:
    """One stream of independent draws, named by ``seed`` and ``name``."""

    __slots__ = ("_block", "_key", "_left")

    def __init__(self, seed: int, *name: str | int) -> None:
        words = "\0".join(str(part) for part in (seed, *name))
        self._key = blake2b(words.encode(), digest_size=32).digest()
        self._block = 0
        self._left: list[int] = []

    def word(self) -> int:
        """Return 64 random bits."""
        if not self._left:
            block = blake2b(self._block.to_bytes(8, "little"), key=self._key).digest()
            self._left = list(_WORDS.unpack(block))
            self._block += 1
        return self._left.pop()

    def seed(self) -> int:
        """Return 63 random bits: a seed that any database holds as a signed number."""
        return self.word() >> 1

    def below(self, end: int) -> int:
        """Return a whole number from 0 to ``end`` less 1, each as likely."""
        limit = _WORD - _WORD % end
        while (word := self.word()) >= limit:
            pass
        return word % end

    def part(self) -> float:
        """Return a number from 0 to below 1."""
        return (self.word() >> 11) * 2.0**-53

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.part() < probability

    def pick(self, mix: Mix) -> str:
        """Return a name of the mix, as likely as its weight says."""
        return mix.at(self.part())

    def sample(self, items: Sequence[str], count: int) -> list[str]:
        """Return ``count`` different items in their own order, each set of them as likely."""
        places = list(range(len(items)))
        for done in range(count):
            other = done + self.below(len(places) - done)
            places[done], places[other] = places[other], places[done]
        return [items[place] for place in sorted(places[:count])]

    def spread(self, count: int, slots: int) -> list[tuple[int, int]]:
        """Throw ``count`` things into ``slots`` (1 to 256), each slot as likely for each of them;
        return (slot, how many) of those that got any, by rising slot.

        In bulk, because a dose may be many thousands of bit flips: a byte a thing, and bytes that
        would make some slot likelier are thrown away.
        """
        if not 1 <= slots <= 256:
            raise ValueError(f"{slots} slots: 1 to 256")
        fair = 256 // slots * slots
        table = bytes(byte % slots for byte in range(256))
        unfair = bytes(range(fair, 256))
        stream = self.seed().to_bytes(8, "little")
        size = count
        while True:  # the longer digest begins with the shorter one: nothing drawn is lost
            size = size * 256 // fair + 64
            thrown = shake_256(stream).digest(size).translate(table, unfair)
            if len(thrown) >= count:
                return sorted(Counter(thrown[:count]).items())


def permutation(seed: int, name: str, count: int) -> list[int]:
    """Return 0 to ``count`` less 1 in an order that the seed and the name make, each order as
    likely (but for two equal keys of 64 bits).
    """
    words = f"{seed}\0{name}".encode()
    keys = struct.unpack(f"<{count}Q", shake_256(words).digest(8 * count))
    return sorted(range(count), key=keys.__getitem__)
