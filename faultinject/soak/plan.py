"""The plan of a soak: which part is broken when.  A pure function of the seed.

A plan is a sequence of episodes.  Each begins with all guests voting, and injects one fault.  In
four of six episodes a second fault follows while the first one's guest is being replaced.  Its
target is the voter, the supervisor or that same guest.  So never more than one replica is faulty,
and every request must be answered at all times.

If guests are to be rejuvenated, a third of the episodes replace a guest by a fresh one in the free
slot, planned as a fault is.  In most of them voter or supervisor is killed meanwhile.  Targets g1
to g3 are then the first to the third guest that votes, whatever their slots are called.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import Generic, TypeVar

import msgspec

__all__ = [
    "BY_SUPERVISOR", "GUESTS", "BalancedDraw", "Episode", "Trigger", "PlannedInjection",
    "SoakFaultKind", "make_plan",
]  # fmt: skip

T = TypeVar("T")

GUESTS = ("g1", "g2", "g3")


class SoakFaultKind(StrEnum):
    """A kind of fault."""

    VOTER_KILL = "voter-kill"  # SIGKILL
    SUPERVISOR_KILL = "supervisor-kill"  # SIGKILL
    GUEST_KILL = "guest-kill"  # SIGKILL to its QEMU
    GUEST_FREEZE = "guest-freeze"  # SIGSTOP to its QEMU: monitor and link are silent too
    HANG = "hang"  # this and the rest: as in the catalogue of faultinject.faults
    SLOW = "slow"
    CORRUPT_REPLY = "corrupt-reply"
    STALE_REPLY = "stale-reply"
    WRONG_SEQ = "wrong-seq"
    GARBAGE = "garbage"
    DROP_REPLY = "drop-reply"
    CORRUPT_STATE = "corrupt-state"
    REJUVENATE = "rejuvenate"  # no fault: a fresh guest takes its place


BY_SUPERVISOR = frozenset(SoakFaultKind) - {
    SoakFaultKind.VOTER_KILL,
    SoakFaultKind.SUPERVISOR_KILL,
    SoakFaultKind.GUEST_KILL,
    SoakFaultKind.GUEST_FREEZE,
    SoakFaultKind.REJUVENATE,
}
"""Kinds that the supervisor injects, and ends after the planned seconds."""


class Trigger(StrEnum):
    """The situation in which a fault is injected."""

    ALL_VOTE = "all guests vote"
    HELD = "the first fault acts"
    REPLACED = "its guest is being replaced"
    JOINING = "its guest receives the state, or catches up"
    STARTED = "a fresh guest starts in the free slot"
    CATCHING_UP = "the fresh guest receives the state, or catches up"

    @property
    def overlaps(self) -> bool:
        """Whether a repair or a transfer is in progress then."""
        return self not in (Trigger.ALL_VOTE, Trigger.HELD)


class PlannedInjection(msgspec.Struct, frozen=True, kw_only=True):
    """One fault.

    ``target``: voter, supervisor or a guest.  ``seconds``: how long a fault of BY_SUPERVISOR acts.
    ``trigger``: concerns the guest of the episode's first fault.
    """

    number: int  # from 1
    kind: SoakFaultKind
    target: str
    seconds: float = 0.0
    trigger: Trigger = msgspec.field(default=Trigger.ALL_VOTE, name="moment")


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One or two faults.  ``calm``: seconds that all guests vote before the first one."""

    calm: float
    injections: tuple[PlannedInjection, ...]


class BalancedDraw(Generic[T]):
    """Draws items in random order without replacement, and starts again when all are drawn.

    So the shares of the items come out as given, also in a short plan.
    """

    def __init__(self, random: Random, *items: T) -> None:
        self._random = random
        self._all = items
        self._left: list[T] = []

    def draw(self) -> T:
        """Return the next item."""
        if not self._left:
            self._left = list(self._all)
            self._random.shuffle(self._left)
        return self._left.pop()


class _PlanDraw:
    """The random draws of one plan."""

    def __init__(self, seed: int, *, rejuvenate: bool) -> None:
        kinds = SoakFaultKind
        self._random = random = Random(f"trivisor soak {seed}")
        exchanges = ["exchange"] * 3 if rejuvenate else []
        self._shapes = BalancedDraw(random, *["overlap"] * 4, "guest", "process", *exchanges)
        self._guests = BalancedDraw(random, *GUESTS)
        self._processes = BalancedDraw(random, kinds.VOTER_KILL, kinds.SUPERVISOR_KILL, kinds.SLOW)
        # Kinds after which the guest is replaced.
        self._breaks = BalancedDraw(
            random, *[kinds.GUEST_KILL] * 4, *[kinds.CORRUPT_REPLY] * 2, *[kinds.HANG] * 2,
            kinds.GUEST_FREEZE, kinds.STALE_REPLY, kinds.WRONG_SEQ, kinds.GARBAGE,
            kinds.DROP_REPLY, kinds.CORRUPT_STATE,
        )  # fmt: skip
        self._singles = BalancedDraw(
            random, kinds.SLOW, kinds.GUEST_KILL, kinds.CORRUPT_REPLY, kinds.HANG, kinds.SLOW,
            kinds.GUEST_FREEZE,
        )  # fmt: skip
        self._seconds = BalancedDraw(
            random, *[kinds.VOTER_KILL] * 4, *[kinds.SUPERVISOR_KILL] * 2, kinds.GUEST_KILL,
            kinds.GUEST_KILL, kinds.GUEST_FREEZE,
        )  # fmt: skip
        self._triggers = BalancedDraw(random, Trigger.REPLACED, Trigger.JOINING)
        self._during = BalancedDraw(random, kinds.VOTER_KILL, kinds.SUPERVISOR_KILL, None)
        self._moments = BalancedDraw(random, Trigger.STARTED, Trigger.CATCHING_UP)

    def episode(self, number: int, left: int) -> Episode:
        """Draw the next episode, of at most ``left`` faults; its first one has this number."""
        shape = self._shapes.draw()
        guest = self._guests.draw()
        calm = round(self._random.uniform(0.2, 1.0), 2)
        if shape == "exchange":
            return self._exchange(number, left, guest, calm)
        if left == 1 and shape != "process":
            shape = "guest"
        if shape == "overlap":
            first = self._injection(number, self._breaks, guest)
            second = self._injection(number + 1, self._seconds, guest)
            second = msgspec.structs.replace(second, trigger=self._triggers.draw())
            return Episode(calm=calm, injections=(first, second))
        if shape == "guest":
            return Episode(calm=calm, injections=(self._injection(number, self._singles, guest),))
        first = self._injection(number, self._processes, guest)
        if first.kind is not SoakFaultKind.SLOW or left == 1:
            return Episode(calm=calm, injections=(first,))
        kill = PlannedInjection(
            number=number + 1, kind=SoakFaultKind.VOTER_KILL, target="voter", trigger=Trigger.HELD
        )
        return Episode(calm=calm, injections=(first, kill))

    def _exchange(self, number: int, left: int, guest: str, calm: float) -> Episode:
        first = PlannedInjection(number=number, kind=SoakFaultKind.REJUVENATE, target=guest)
        kind = self._during.draw()
        if kind is None or left == 1:
            return Episode(calm=calm, injections=(first,))
        second = PlannedInjection(
            number=number + 1,
            kind=kind,
            target="voter" if kind is SoakFaultKind.VOTER_KILL else "supervisor",
            trigger=self._moments.draw(),
        )
        return Episode(calm=calm, injections=(first, second))

    def _injection(
        self, number: int, kinds: BalancedDraw[SoakFaultKind], guest: str
    ) -> PlannedInjection:
        kind = kinds.draw()
        target = {
            SoakFaultKind.VOTER_KILL: "voter",
            SoakFaultKind.SUPERVISOR_KILL: "supervisor",
        }.get(kind, guest)
        seconds = 0.0
        if kind is SoakFaultKind.HANG:
            # Shorter or longer than the silence that the voter tolerates (5 s).
            seconds = self._random.choice((1.0, 2.0, 6.5))
        elif kind in BY_SUPERVISOR:
            seconds = round(self._random.uniform(0.5, 2.0), 1)
        return PlannedInjection(number=number, kind=kind, target=target, seconds=seconds)


def make_plan(seed: int, faults: int, *, rejuvenate: bool = False) -> tuple[Episode, ...]:
    """Return the episodes of a run with this many faults, rejuvenations among them if wanted.

    Raises ValueError if it is below 1.
    """
    if faults < 1:
        raise ValueError(f"{faults} faults: at least 1")
    draw = _PlanDraw(seed, rejuvenate=rejuvenate)
    episodes: list[Episode] = []
    planned = 0
    while planned < faults:
        episode = draw.episode(planned + 1, faults - planned)
        planned += len(episode.injections)
        episodes.append(episode)
    return tuple(episodes)
