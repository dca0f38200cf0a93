"""The context of a request: see ``Context``.  Compiled (``guests.compiled``)."""

from __future__ import annotations

import random

from guests.compiled import mypyc_attr

__all__ = ["Context"]


@mypyc_attr(allow_interpreted_subclasses=True)
class Context:
    """What all replicas agree on for one request, apart from its bytes.

    ``seq``: its number in the order.  ``time_ns``: agreed time in nanoseconds since the epoch; it
    never decreases.  ``caller``: the client's name, as the voter knows it.  ``read_only``: the
    request must not change the state, and the voter does not keep it for recovery.
    """

    __slots__ = ("_random", "_seed", "caller", "read_only", "seq", "time_ns")

    def __init__(
        self, seq: int, time_ns: int, seed: bytes, caller: str, read_only: bool = False
    ) -> None:
        self.seq = seq
        self.time_ns = time_ns
        self.caller = caller
        self.read_only = read_only
        self._seed = seed
        self._random: random.Random | None = None

    @property
    def time(self) -> float:
        """Agreed time in seconds since the epoch."""
        return self.time_ns / 1e9

    @property
    def random(self) -> random.Random:
        """The random source of this request, the same in every replica."""
        if self._random is None:
            self._random = random.Random(self._seed)
        return self._random
