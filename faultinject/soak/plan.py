"""What is broken when: a pure function of the seed.

A plan is a row of episodes.  Each begins with all guests voting and breaks one part; in four of
six a second fault follows while the first one's guest is being put back, on the voter, on the
supervisor or on that guest itself, so that never more than one replica is faulty and liveness is
promised all the time.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import TypeVar

import msgspec

__all__ = [
    "GUESTS",
    "INJECTED",
    "Deck",
    "Episode",
    "SoakFaultKind",
    "Moment",
    "PlannedInjection",
    "make_plan",
]

T = TypeVar("T")

GUESTS = ("g1", "g2", "g3")


class SoakFaultKind(StrEnum):
    """What is done to a part of the node."""

    VOTER_KILL = "voter-kill"  # SIGKILL
    SUPERVISOR_KILL = "supervisor-kill"  # SIGKILL
    GUEST_KILL = "guest-kill"  # SIGKILL to its QEMU
    GUEST_FREEZE = "guest-freeze"  # SIGSTOP to its QEMU: monitor and link are mute too
    HANG = "hang"  # the rest is the catalogue's (faultinject.faults), by its names
    SLOW = "slow"
    CORRUPT_REPLY = "corrupt-reply"
    STALE_REPLY = "stale-reply"
    WRONG_SEQ = "wrong-seq"
    GARBAGE = "garbage"
    DROP_REPLY = "drop-reply"
    CORRUPT_STATE = "corrupt-state"


INJECTED = frozenset(SoakFaultKind) - {
    SoakFaultKind.VOTER_KILL,
    SoakFaultKind.SUPERVISOR_KILL,
    SoakFaultKind.GUEST_KILL,
    SoakFaultKind.GUEST_FREEZE,
}
"""Those that the supervisor carries out, and ends after the strike's ``seconds``."""


class Moment(StrEnum):
    """When a fault is to come."""

    WHOLE = "all guests vote"
    HELD = "the first fault holds"
    PUT_BACK = "its guest is being put back"
    JOINING = "its guest is given the state, or catches up"

    @property
    def overlaps(self) -> bool:
        """Whether a repair or a transfer is under way then."""
        return self in (Moment.PUT_BACK, Moment.JOINING)


class PlannedInjection(msgspec.Struct, frozen=True, kw_only=True):
    """One fault.  ``target``: voter, supervisor or a guest; ``seconds``: how long an injected one
    holds; ``moment``: of the guest that the episode's first fault hit.
    """

    number: int  # from 1
    kind: SoakFaultKind
    target: str
    seconds: float = 0.0
    moment: Moment = Moment.WHOLE


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One or two faults, then the node has time to be whole again.

    ``calm``: seconds for which it was whole before the first fault.
    """

    calm: float
    strikes: tuple[PlannedInjection, ...]


class Deck:
    """Draws without putting back, and shuffles anew once all are drawn: shares come out right."""

    def __init__(self, random: Random, *cards: T) -> None:
        self._random = random
        self._all = list(cards)
        self._left: list[object] = []

    def draw(self) -> object:
        """Return the next card."""
        if not self._left:
            self._left = list(self._all)
            self._random.shuffle(self._left)
        return self._left.pop()


class _Dealer:
    """The decks that a plan is drawn from."""

    def __init__(self, seed: int) -> None:
        self._random = random = Random(f"trivisor soak {seed}")
        self._shapes = Deck(random, *["overlap"] * 4, "guest", "process")
        self._guests = Deck(random, *GUESTS)
        self._processes = Deck(
            random, SoakFaultKind.VOTER_KILL, SoakFaultKind.SUPERVISOR_KILL, SoakFaultKind.SLOW
        )
        # Those after which the guest is put back.
        self._breaks = Deck(
            random,
            *[SoakFaultKind.GUEST_KILL] * 4,
            *[SoakFaultKind.CORRUPT_REPLY] * 2,
            *[SoakFaultKind.HANG] * 2,
            SoakFaultKind.GUEST_FREEZE,
            SoakFaultKind.STALE_REPLY,
            SoakFaultKind.WRONG_SEQ,
            SoakFaultKind.GARBAGE,
            SoakFaultKind.DROP_REPLY,
            SoakFaultKind.CORRUPT_STATE,
        )
        self._singles = Deck(
            random, SoakFaultKind.SLOW, SoakFaultKind.GUEST_KILL, SoakFaultKind.CORRUPT_REPLY,
            SoakFaultKind.HANG, SoakFaultKind.SLOW,
            SoakFaultKind.GUEST_FREEZE,
        )  # fmt: skip
        self._seconds = Deck(
            random,
            *[SoakFaultKind.VOTER_KILL] * 4,
            *[SoakFaultKind.SUPERVISOR_KILL] * 2,
            SoakFaultKind.GUEST_KILL,
            SoakFaultKind.GUEST_KILL,
            SoakFaultKind.GUEST_FREEZE,
        )
        self._moments = Deck(random, Moment.PUT_BACK, Moment.JOINING)

    def episode(self, number: int, left: int) -> Episode:
        """Deal the next episode, of ``left`` faults at most; its first has this number."""
        shape = self._shapes.draw()
        guest = str(self._guests.draw())
        calm = round(self._random.uniform(0.2, 1.0), 2)
        if left == 1 and shape != "process":
            shape = "guest"
        if shape == "overlap":
            first = self._strike(number, self._breaks, guest)
            second = self._strike(number + 1, self._seconds, guest)
            moment = self._moments.draw()
            return Episode(
                calm=calm, strikes=(first, msgspec.structs.replace(second, moment=moment))
            )
        if shape == "guest":
            return Episode(calm=calm, strikes=(self._strike(number, self._singles, guest),))
        first = self._strike(number, self._processes, guest)
        if first.kind is not SoakFaultKind.SLOW or left == 1:
            return Episode(calm=calm, strikes=(first,))
        killed = PlannedInjection(
            number=number + 1, kind=SoakFaultKind.VOTER_KILL, target="voter", moment=Moment.HELD
        )
        return Episode(calm=calm, strikes=(first, killed))

    def _strike(self, number: int, deck: Deck, guest: str) -> PlannedInjection:
        kind = deck.draw()
        assert isinstance(kind, SoakFaultKind)
        target = {
            SoakFaultKind.VOTER_KILL: "voter",
            SoakFaultKind.SUPERVISOR_KILL: "supervisor",
        }.get(kind, guest)
        seconds = 0.0
        if kind is SoakFaultKind.HANG:
            # Over the voter's patience (5 s of silence), or within it, by turns of chance.
            seconds = self._random.choice((1.0, 2.0, 6.5))
        elif kind in INJECTED:
            seconds = round(self._random.uniform(0.5, 2.0), 1)
        return PlannedInjection(number=number, kind=kind, target=target, seconds=seconds)


def make_plan(seed: int, faults: int) -> tuple[Episode, ...]:
    """Return the episodes of a run with so many faults.  Raises ValueError if under 1."""
    if faults < 1:
        raise ValueError(f"{faults} faults: at least 1")
    dealer = _Dealer(seed)
    episodes: list[Episode] = []
    dealt = 0
    while dealt < faults:
        episode = dealer.episode(dealt + 1, faults - dealt)
        dealt += len(episode.strikes)
        episodes.append(episode)
    return tuple(episodes)
