"""The plan of a run: who asks for what, and what goes wrong when.  Pure: a function of the seed.

Two random sources, one for the operations and one for the faults, so that leaving one out while a
failure is shrunk does not change the others.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

import msgspec

__all__ = ["DEADLY", "KINDS", "REPLICA_FAULTS", "Fault", "Operation", "Plan", "make_plan"]

REPLICAS = 3
DEADLY = frozenset({"kill", "freeze"})
"""Kinds of operations that end, or hang, every service that they get to."""


class Operation(msgspec.Struct, frozen=True):
    """One request of a client: ``pause`` seconds after the one before it."""

    index: int
    client: int
    kind: (
        str  # get, put, increment, delete, swap (If-Match), create (If-None-Match), or a deadly one
    )
    key: str
    pause: float
    concurrent: bool = False  # does not wait for the one before it


class Fault(msgspec.Struct, frozen=True):
    """Something that goes wrong: from ``at`` on, for ``seconds``.

    ``target`` is a replica's index, ``amount`` a number that the kind gives a meaning.
    """

    index: int
    kind: str
    at: float
    target: int = 0
    seconds: float = 0.0
    amount: int = 0


class Plan(msgspec.Struct, frozen=True):
    """Everything that a run depends on."""

    seed: int
    durability: str
    operations: tuple[Operation, ...]
    faults: tuple[Fault, ...]
    delay: float  # most seconds that a link takes
    split: float  # chance that a delivery is cut in two
    marker_every: int
    segment: int
    block: int
    two: bool  # two replicas may be faulty at a time: no liveness then
    plain: tuple[int, ...] = ()  # clients that never try again
    keyed: tuple[int, ...] = ()  # clients over HTTP, with an Idempotency-Key

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return 1 + max((operation.client for operation in self.operations), default=0)

    @property
    def only_replicas(self) -> bool:
        """Whether nothing but replicas is broken."""
        return all(fault.kind in REPLICA_FAULTS for fault in self.faults) and not self.deadly

    @property
    def deadly(self) -> bool:
        """Whether there is a request that ends or hangs every service that it gets to."""
        return any(operation.kind in DEADLY for operation in self.operations)

    def without(self, faults: Collection[int] | None, operations: Collection[int] | None) -> Plan:
        """The same plan with these faults and operations only (None: all)."""
        return msgspec.structs.replace(
            self,
            faults=tuple(f for f in self.faults if faults is None or f.index in faults),
            operations=tuple(
                o for o in self.operations if operations is None or o.index in operations
            ),
        )


REPLICA_FAULTS = {
    "kill-service": 3,  # the service dies; the guest starts it anew on the same port
    "reboot": 3,  # the guest is ended; a fresh one comes
    "hang": 3,  # it takes nothing in for a while, or (odd amount) until it is put back
    "slow-link": 2,  # each delivery takes longer
    "cut-link": 3,  # the link's connection breaks, in the middle of a frame
    "garbage": 1,  # random bytes among its own
    "corrupt-reply": 2,  # lies with right checksums
    "stale-reply": 1,
    "wrong-seq": 1,
    "drop-reply": 1,
    "duplicate": 1,  # some of its bytes come twice
    "flip": 2,  # some of its bytes are changed
    "corrupt-state": 3,  # a stored value is changed
    "corrupt-snapshot": 4,  # the state it gives is not the one whose digest it told
    "expel": 2,  # by an operator
}
"""Faults of one replica, and how often they are drawn."""

VOTER_FAULTS = {
    "kill-voter": 6,  # before its amount-th callback from now
    "kill-voter-in-call": 5,  # in its amount-th system call from now
    "power-loss": 5,  # voter and all guests
    "clock-jump": 2,  # the wall clock, by amount ms
    "stop-voter": 1,  # SIGSTOP for a while
}
DISK_FAULTS = {
    "disk-full": 2,
    "disk-slow": 2,
    "sync-fails": 2,
    "bit-rot": 1,  # one bit of a file is another one when the voter starts again
}
OTHER_FAULTS = {"cut-client": 3}
KINDS = {**REPLICA_FAULTS, **VOTER_FAULTS, **DISK_FAULTS, **OTHER_FAULTS}
"""All kinds, and how often they are drawn."""

_OPERATIONS = {"get": 35, "put": 30, "increment": 15, "delete": 7, "swap": 10, "create": 3}


def _draw(random: Random, table: dict[str, int]) -> str:
    return random.choices(list(table), list(table.values()))[0]


def make_plan(seed: int, *, size: int = 1, kinds: Collection[str] | None = None) -> Plan:
    """Draw a plan.  ``size`` multiplies operations and faults; ``kinds``: faults that may be."""
    random = Random(f"{seed} plan")
    durability = random.choices(("fsync", "os", "none"), (8, 1, 1))[0]
    clients = random.randint(2, 4)
    count = random.randint(8, 14) * size
    gap = random.choice((0.002, 0.01, 0.04))
    operations = [
        Operation(
            index=index,
            client=(client := random.randrange(clients)),
            kind=(kind := _draw(random, _OPERATIONS)),
            key="n" if kind == "increment" else random.choice("abn"),
            pause=random.expovariate(1 / gap) if client >= 0 else 0.0,
            concurrent=random.random() < 0.2,
        )
        for index in range(clients * count)
    ]
    if random.random() < 0.06:
        at = random.randrange(len(operations))
        kind = random.choice(("kill", "freeze"))
        operations[at] = msgspec.structs.replace(operations[at], kind=kind)
    chances = Random(f"{seed} faults")
    two = chances.random() < 0.1
    table = {k: w for k, w in KINDS.items() if kinds is None or k in kinds}
    if durability == "none":
        for kind in ("kill-voter", "kill-voter-in-call"):
            table.pop(kind, None)  # nothing is promised then
    if durability != "fsync":
        for kind in ("power-loss", *DISK_FAULTS):
            table.pop(kind, None)
    length = gap * count * 1.5 + 0.3
    faults = []
    when = 0.02
    for index in range(chances.choice((0, 1, 2, 3, 3, 4, 5)) * size if table else 0):
        kind = _draw(chances, table)
        when += chances.random() * length / 3
        faults.append(
            Fault(
                index=index,
                kind=kind,
                at=when,
                target=chances.randrange(REPLICAS),
                seconds=chances.choice((0.0, 0.02, 0.1, 0.4, 1.2)),
                amount=int(chances.random() ** 2 * 150) + 1,
            )
        )
    return Plan(
        seed=seed,
        durability=durability,
        operations=tuple(operations),
        faults=tuple(faults),
        delay=random.choice((0.0005, 0.003, 0.02)),
        split=random.choice((0.0, 0.1, 0.5)),
        marker_every=random.choice((4, 8, 20)),
        segment=random.choice((1024, 4096, 16384)),
        block=random.choice((512, 4096)),
        two=two,
        plain=tuple(c for c in range(clients) if random.random() < 0.2),
        keyed=tuple(c for c in range(clients) if random.random() < 0.15),
    )
