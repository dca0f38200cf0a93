"""The conditions a service is run under: what is changed, one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PLAIN", "Condition", "find_hint", "make_conditions"]

_YEAR_2030 = 1_900_000_000 * 10**9
PLAIN = "plain run"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What one run's surroundings are.  The defaults are those of the plain run."""

    name: str = PLAIN
    hash_seed: int = 0
    random: int = 0
    clock_ns: int = _YEAR_2030
    tick_ns: int = 1000
    zone: str = "UTC"
    ballast: int = 0
    restore_after: int = 0
    """Begin with the plain run's state after this many requests (0: at the start)."""
    leave_out: bool = False
    """Leave out some of the requests that only read."""


_HINTS = {
    "restart": "something of the process itself is used: os.getpid(), id(), a default repr() with"
    " its address, hash() or the order of a set of objects, a random.Random() without a seed",
    "hash seed": "the order of a set, or hash(), is used: sort before use",
    "random state": "randomness must come from context.random, not from random, secrets or os",
    "clock": "time must come from context.time or context.time_ns, not from time or datetime",
    "restore": "snapshot() and restore() must carry all that replies depend on: look for a field"
    " that is forgotten, and for state in a module or a class",
    "reads left out": "a GET or HEAD changed something: use another method, or keep nothing of it",
    PLAIN: "",
}


def find_hint(condition: str) -> str:
    """Return what a difference under the condition of this name most likely comes from."""
    return next((hint for kind, hint in _HINTS.items() if condition.startswith(kind)), "")


def make_conditions(cuts: Sequence[int]) -> list[Condition]:
    """Return the conditions, the ones that change least first."""
    return [
        Condition(name="restart", ballast=7),
        Condition(name="restart (2)", ballast=1001),
        *(Condition(name=f"hash seed {seed}", hash_seed=seed) for seed in (1, 2, 3, 4)),
        Condition(name="random state", random=1),
        Condition(name="clock ahead", clock_ns=_YEAR_2030 + 34_585_377 * 10**9, zone="XXX-5:30"),
        Condition(name="clock fast", clock_ns=_YEAR_2030 - 10_999 * 10**9, tick_ns=299_999_999),
        Condition(name="reads left out", leave_out=True),
        *(Condition(name=f"restore after {cut}", restore_after=cut) for cut in cuts),
    ]
