"""Random draws that are a function of a name: the same on every machine and every Python.  Pure.

The name of a stream is a seed and its purpose, so any mission can be drawn without drawing those
before it.  The stream's words are BLAKE2b of the name and a counter.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b, shake_256
from itertools import accumulate

__all__ = ["Draws", "Mix", "permutation"]

_WORDS = struct.Struct("<8Q")
_WORD = 1 << 64


class Mix:
    """Names with weights, prepared for drawing.  Weights are 0 or more, and one is above 0."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.names = tuple(name for name, weight in weights.items() if weight > 0)
        self._sums = list(accumulate(weights[name] for name in self.names))
        if not self.names:
            raise ValueError("a mix needs a weight above 0")

    def at(self, part: float) -> str:
        """Return the name at this fraction (0 to below 1) of the total weight."""
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
        """Return an integer from 0 to ``end`` less 1, uniformly."""
        limit = _WORD - _WORD % end
        while (word := self.word()) >= limit:
            pass
        return word % end

    def part(self) -> float:
        """Return a number from 0 to below 1, uniformly."""
        return (self.word() >> 11) * 2.0**-53

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.part() < probability

    def pick(self, mix: Mix) -> str:
        """Return a name of the mix, with probability proportional to its weight."""
        return mix.at(self.part())

    def sample(self, items: Sequence[str], count: int) -> list[str]:
        """Return ``count`` different items in their own order; each set is equally likely."""
        places = list(range(len(items)))
        for done in range(count):
            other = done + self.below(len(places) - done)
            places[done], places[other] = places[other], places[done]
        return [items[place] for place in sorted(places[:count])]

    def spread(self, count: int, slots: int) -> list[tuple[int, int]]:
        """Distribute ``count`` things over ``slots`` (1 to 256) uniformly.

        Return (slot, how many) of the slots that are not empty, in order.  A dose may be thousands
        of bit flips, so this draws one byte a thing, and rejects bytes that would bias a slot.
        """
        if not 1 <= slots <= 256:
            raise ValueError(f"{slots} slots: 1 to 256")
        fair = 256 // slots * slots
        table = bytes(byte % slots for byte in range(256))
        unfair = bytes(range(fair, 256))
        stream = self.seed().to_bytes(8, "little")
        size = count
        while True:  # the longer digest begins with the shorter one
            size = size * 256 // fair + 64
            thrown = shake_256(stream).digest(size).translate(table, unfair)
            if len(thrown) >= count:
                counts = ((slot, thrown.count(slot, 0, count)) for slot in range(slots))
                return [(slot, number) for slot, number in counts if number]


def permutation(seed: int, name: str, count: int) -> list[int]:
    """Return 0 to ``count`` less 1 in a random order, drawn from the seed and the name.

    Each order is equally likely (unless two 64-bit keys are equal).
    """
    words = f"{seed}\0{name}".encode()
    keys = struct.unpack(f"<{count}Q", shake_256(words).digest(8 * count))
    return sorted(range(count), key=keys.__getitem__)
