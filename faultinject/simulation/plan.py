"""The plan of a run: the clients' operations and the faults.  Pure: a function of the seed.

Operations and faults are drawn from two random sources, so that neither depends on the other.

There are two ways to draw a plan.  Seeds below ``SWARM`` are drawn with fixed weights.  That must
not change, because a recorded seed must name the same plan forever.  From ``SWARM`` on each seed
first draws its own weights, kinds, counts, sizes and timings (swarm testing: Groce et al., ISSTA
2012).  With fixed weights a fault kind of weight 1 in 45 meets another one of its kind once in
hundreds of seeds, and a gap of a millisecond between two faults is as rare.  A swarm plan with
few kinds and small gaps has such a pair nearly always.

From ``BURSTS`` on, clients of most plans also make many requests at once.  The voter orders the
requests of one turn of its loop as a batch.

From ``ROLES`` on, most plans have a guest more than there are voters.  The supervisor exchanges
guests by way of that free slot.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

import msgspec

__all__ = [
    "ALL_OF_IT", "BURSTS", "DEADLY", "EXCHANGES", "HISTORY", "KINDS", "ROLES", "SITUATIONS",
    "REPLICA_FAULTS", "SWARM",
    "SimFault", "Operation", "SimPlan", "make_plan",
]  # fmt: skip

SWARM = 1 << 32
"""The first seed whose plan draws its own weights."""
BURSTS = SWARM + (1 << 55)
"""The first seed whose plan has bursts of requests."""
HISTORY = BURSTS + (1 << 55)
"""The first seed whose plan keeps a history of the journal."""
ROLES = HISTORY + (1 << 55)
"""The first seed whose plan changes roles."""
BATCH_FAULTS = ("cut-client", "corrupt-reply", "kill-service", "cut-link")
"""Faults after which a batch is voted on request by request: a retry, a lie, a lost replica."""
ALL_OF_IT = 1 << 40
"""Bytes of history that no run fills."""
LARGEST_BURST = 64
"""Most requests that a client makes at once: as many as a batch has at most."""
REPLICAS = 3
DEADLY_WRITES = frozenset({"kill", "freeze"})
DEADLY_READS = {"kill": "kill-read", "freeze": "freeze-read"}
DEADLY = DEADLY_WRITES | frozenset(DEADLY_READS.values())
"""Kinds of operations that end, or hang, every service that applies them."""


SITUATIONS = (
    "restoring",  # a replica receives a checkpoint
    "learning",  # a replica catches up from the log
    "fetching",  # a marker is in progress, and one replica keeps its state for the voter
    "awaiting-sync",  # a vote is won, and its reply waits for the disk
    "restarted",  # the voter has restarted, and not all replicas vote yet
)
"""Situations that last for milliseconds, which a fault that is timed by the clock seldom meets."""


class Operation(msgspec.Struct, frozen=True):
    """One request of a client: ``pause`` seconds after the one before it."""

    index: int
    client: int
    kind: str  # get, put, increment, delete, swap (If-Match), create (If-None-Match), or DEADLY
    key: str
    pause: float  # 0: in the same turn of the client's loop
    concurrent: bool = False  # does not wait for the one before it
    padding: int = 0  # bytes behind the value that is written


class SimFault(msgspec.Struct, frozen=True):
    """A fault that begins at ``at`` and lasts for ``seconds``.

    ``target`` is a replica's index.  The meaning of ``amount`` depends on the kind.  With a
    ``situation`` (one of ``SITUATIONS``) the fault waits for that situation, for a short while.
    """

    index: int
    kind: str
    at: float
    target: int = 0
    seconds: float = 0.0
    amount: int = 0
    situation: str = ""


class SimPlan(msgspec.Struct, frozen=True):
    """Everything that a run depends on."""

    seed: int
    durability: str
    operations: tuple[Operation, ...]
    faults: tuple[SimFault, ...]
    delay: float  # longest delay of a link, in seconds
    split: float  # probability that a delivery is cut in two
    marker_every: int
    segment: int
    block: int
    two_faulty: bool  # two replicas may be faulty at a time; liveness is not checked then
    clients_without_retry: tuple[int, ...] = ()
    clients_with_key: tuple[int, ...] = ()  # over HTTP, with an Idempotency-Key
    checkpoint_bytes: int = 1500  # smallest log for which a checkpoint is made
    log_bytes: int = 60_000  # largest log
    scrub: float = 60.0  # most seconds between two markers
    history: int = 0  # most bytes of older segments and checkpoints that the journal keeps
    follow: bool = False  # one replica gets its orders in batches
    spares: int = 0  # slots without a voter

    @property
    def clients(self) -> int:
        """The number of clients."""
        return 1 + max((operation.client for operation in self.operations), default=0)

    @property
    def only_replicas(self) -> bool:
        """Whether all faults are of replicas."""
        harmless = {**REPLICA_FAULTS, **EXCHANGES}
        return all(fault.kind in harmless for fault in self.faults) and not self.deadly

    @property
    def deadly(self) -> bool:
        """Whether an operation ends or hangs every service that applies it."""
        return any(operation.kind in DEADLY for operation in self.operations)

    def without(
        self, faults: Collection[int] | None, operations: Collection[int] | None
    ) -> SimPlan:
        """Return the same plan with these faults and operations only (None: all)."""
        return msgspec.structs.replace(
            self,
            faults=tuple(f for f in self.faults if faults is None or f.index in faults),
            operations=tuple(
                o for o in self.operations if operations is None or o.index in operations
            ),
        )


REPLICA_FAULTS = {
    "kill-service": 3,  # the service dies; the guest restarts it on the same port
    "reboot": 3,  # the guest is killed and replaced by a fresh one
    "hang": 3,  # it stops reading for a while, or (odd amount) until it is replaced
    "slow-link": 2,  # each delivery takes longer
    "cut-link": 3,  # the link's connection breaks, in the middle of a frame
    "garbage": 1,  # random bytes among its own
    "corrupt-reply": 2,  # changed replies with correct checksums
    "stale-reply": 1,
    "wrong-seq": 1,
    "drop-reply": 1,
    "duplicate": 1,  # some of its bytes are delivered twice
    "flip": 2,  # some of its bits are changed
    "corrupt-state": 3,  # a stored value is changed
    "corrupt-snapshot": 4,  # the state that it gives has another digest than it reported
    "expel": 2,  # by an operator
}
"""Faults of one replica, with their weights."""

VOTER_FAULTS = {
    "kill-voter": 6,  # before its amount-th callback from now
    "kill-voter-in-call": 5,  # in its amount-th system call from now
    "power-loss": 5,  # voter and all guests
    "clock-jump": 2,  # the wall clock, by up to days in either direction (faults.CLOCK_UNIT)
    "stop-voter": 1,  # SIGSTOP for a while
}
DISK_FAULTS = {
    "disk-full": 2,
    "disk-slow": 2,
    "sync-fails": 2,
    "bit-rot": 1,  # the voter is killed, and one bit of a file changes before its next start
}
OTHER_FAULTS = {"cut-client": 3}
KINDS = {**REPLICA_FAULTS, **VOTER_FAULTS, **DISK_FAULTS, **OTHER_FAULTS}
"""All kinds of faults, with their weights."""

EXCHANGES = {
    "exchange-learner": 4,  # a guest in the free slot takes the place of the target-th voter
    "exchange-observer": 3,  # the same, but it observes at first
    "abandon-exchange": 2,  # it is retired once it has caught up
}
"""What the supervisor does with roles, with weights.  It is no fault, but planned as one:
``seconds`` pass between the replica's catching up and the next change."""
EXCHANGE_SITUATIONS = (
    "changing roles",  # a change of roles was requested, and the voter has not answered
    "standing by",  # a replica without a vote has caught up
)
EXCHANGE_FAULTS = {
    "kill-voter": 6, "kill-voter-in-call": 6, "power-loss": 4, "stop-voter": 1, "disk-full": 1,
    "disk-slow": 1, "kill-service": 2, "reboot": 2, "cut-link": 2, "hang": 2, "corrupt-reply": 5,
    "corrupt-state": 3,
}  # fmt: skip
"""Faults that are added close to an exchange, with their weights."""

_OPERATIONS = {"get": 35, "put": 30, "increment": 15, "delete": 7, "swap": 10, "create": 3}


def _draw(random: Random, table: dict[str, int]) -> str:
    return random.choices(list(table), list(table.values()))[0]


def make_plan(seed: int) -> SimPlan:
    """Draw a plan."""
    plan = _draw_swarm(seed) if seed >= SWARM else _draw_fixed(seed)
    plan = _add_bursts(plan) if seed >= BURSTS else plan
    if seed >= HISTORY and plan.durability != "none":
        plan = msgspec.structs.replace(plan, history=_draw_history(seed))
    return _add_exchanges(plan) if seed >= ROLES else plan


def _allowed(durability: str) -> dict[str, int]:
    """Return the kinds of faults that a durability tolerates, with their weights."""
    table = dict(KINDS)
    if durability == "none":
        for kind in ("kill-voter", "kill-voter-in-call"):
            del table[kind]  # without a journal nothing survives the voter
    if durability != "fsync":
        for kind in ("power-loss", *DISK_FAULTS):
            del table[kind]
    return table


def _draw_follow(seed: int) -> bool:
    return Random(f"{seed} follow").random() < 0.5


def _draw_history(seed: int) -> int:
    """Draw the size of the history: none, small, or enough for all of a run."""
    random = Random(f"{seed} history")
    small = round(_between(random, 1_000, 60_000))
    return random.choice((0, small, small, ALL_OF_IT, ALL_OF_IT))


def _draw_fixed(seed: int) -> SimPlan:
    """Draw a plan with the weights of the tables above."""
    random = Random(f"{seed} plan")
    durability = random.choices(("fsync", "os", "none"), (8, 1, 1))[0]
    clients = random.randint(2, 4)
    count = random.randint(8, 14)
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
    table = _allowed(durability)
    length = gap * count * 1.5 + 0.3
    faults = []
    when = 0.02
    for index in range(chances.choice((0, 1, 2, 3, 3, 4, 5))):
        kind = _draw(chances, table)
        when += chances.random() * length / 3
        faults.append(
            SimFault(
                index=index,
                kind=kind,
                at=when,
                target=chances.randrange(REPLICAS),
                seconds=chances.choice((0.0, 0.02, 0.1, 0.4, 1.2)),
                amount=int(chances.random() ** 2 * 150) + 1,
            )
        )
    return SimPlan(
        seed=seed,
        durability=durability,
        operations=tuple(operations),
        faults=tuple(faults),
        delay=random.choice((0.0005, 0.003, 0.02)),
        split=random.choice((0.0, 0.1, 0.5)),
        marker_every=random.choice((4, 8, 20)),
        segment=random.choice((1024, 4096, 16384)),
        block=random.choice((512, 4096)),
        two_faulty=two,
        clients_without_retry=tuple(c for c in range(clients) if random.random() < 0.2),
        clients_with_key=tuple(c for c in range(clients) if random.random() < 0.15),
        follow=_draw_follow(seed),
    )


def _between(random: Random, least: float, most: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(least * (most / least) ** random.random())


def _reweigh(random: Random, table: dict[str, int], least: int) -> dict[str, float]:
    """Draw which kinds to keep, at least ``least`` of them, and give those new weights."""
    count = random.randint(least, len(table))
    kept = random.sample(sorted(table), count)
    return {kind: table[kind] * random.expovariate(1) + 1e-9 for kind in kept}


def _draw_swarm(seed: int) -> SimPlan:
    """Draw the weights, counts, sizes and timings of a plan, then the plan."""
    random = Random(f"{seed} swarm plan")
    durability = random.choices(("fsync", "os", "none"), (7, 2, 1))[0]
    clients = random.randint(1, 5)
    count = round(_between(random, 5, 30))
    gap = _between(random, 0.0005, 0.05)
    mix = _reweigh(random, _OPERATIONS, 2)
    keys = "abcn"[random.randrange(4) :]
    concurrent = random.random() ** 2
    padded = random.choice((0.0, 0.0, 0.3, 1.0))
    operations = []
    for index in range(clients * count):
        kind = random.choices(list(mix), list(mix.values()))[0]
        operations.append(
            Operation(
                index=index,
                client=random.randrange(clients),
                kind=kind,
                key="n" if kind == "increment" else random.choice(keys),
                pause=random.expovariate(1 / gap),
                concurrent=random.random() < concurrent,
                padding=round(_between(random, 1, 300)) if random.random() < padded else 0,
            )
        )
    faults = _draw_swarm_faults(seed, durability, gap * count)
    lost = any(fault.kind in ("hang", "reboot", "kill-service", "cut-link") for fault in faults)
    if random.random() < (0.25 if lost else 0.05):
        at = random.randrange(len(operations))
        kind = random.choice(sorted(DEADLY_WRITES))
        if seed % 2:
            kind = DEADLY_READS[kind]
        operations[at] = msgspec.structs.replace(operations[at], kind=kind)
    return SimPlan(
        seed=seed,
        durability=durability,
        operations=tuple(operations),
        faults=faults,
        delay=_between(random, 0.0003, 0.02),
        split=random.choice((0.0, 0.1, 0.5)),
        marker_every=round(_between(random, 2, 30)),
        segment=round(_between(random, 700, 16384)),
        block=random.choice((512, 4096)),
        two_faulty=random.random() < 0.15,
        clients_without_retry=tuple(c for c in range(clients) if random.random() < 0.2),
        clients_with_key=tuple(c for c in range(clients) if random.random() < 0.25),
        checkpoint_bytes=round(_between(random, 200, 4000)),
        scrub=random.choice((0.3, 60.0, 60.0)),
        follow=_draw_follow(seed),
        # 50 writes fit into 60,000 bytes; some plans fill more than half of that.
        log_bytes=60_000 if len(operations) <= 50 else 200_000,
    )


def _draw_swarm_faults(seed: int, durability: str, busy: float) -> tuple[SimFault, ...]:
    """Draw the faults of a swarm plan whose clients are busy for at least ``busy`` seconds.

    Most faults begin while clients still make requests; a later one would have no effect.
    """
    random = Random(f"{seed} swarm faults")
    table = _reweigh(random, _allowed(durability), 1)
    count = random.choice((1, 2, 3, 4, 5, 6, 8))
    spacing = _between(random, 0.001, busy + 0.1)
    if random.random() < 0.4:  # two or three faults close to each other, each kind as likely
        table = dict.fromkeys(table, 1.0)
        count = random.choice((2, 3))
        spacing = _between(random, 0.001, 0.7)
    if random.random() < 0.03:
        count = 0
    at_moment = random.choice((0.0, 0.0, 0.5))
    latest = 0.02 + (busy + 0.1) * random.choice((0.7, 1.0, 2.0))
    targets = random.choices(range(REPLICAS), k=random.randint(1, REPLICAS))
    longest = _between(random, 0.005, 2.0)
    when = 0.02
    faults = []
    for index in range(count):
        when += random.expovariate(1 / spacing)
        if when > latest:
            when = 0.02 + random.random() * (latest - 0.02)
        kind = random.choices(list(table), list(table.values()))[0]
        situation = random.choice(SITUATIONS) if random.random() < at_moment else ""
        if kind == "corrupt-snapshot" and random.random() < 0.7:
            situation = "fetching"  # it has no effect at any other time
        faults.append(
            SimFault(
                index=index,
                kind=kind,
                at=when,
                target=random.choice(targets),
                seconds=random.choice((0.0, longest * random.random())),
                amount=round(_between(random, 1, 300)),
                situation=situation,
            )
        )
    return tuple(faults)


def _add_bursts(plan: SimPlan) -> SimPlan:
    """Let clients make some of their requests at once, and add faults that act on open batches."""
    random = Random(f"{plan.seed} bursts")
    if random.random() < 0.2:
        return plan
    begins, longest = random.choice((0.1, 0.3, 1.0)), _between(random, 2, LARGEST_BURST)
    left: dict[int, int] = {}  # of each client: requests of its burst that are still to come
    operations = []
    for operation in plan.operations:
        client = operation.client
        if left.get(client, 0) > 0:
            left[client] -= 1
            operation = msgspec.structs.replace(operation, pause=0.0, concurrent=True)
        elif random.random() < begins:
            left[client] = round(_between(random, 1, longest))
            operation = msgspec.structs.replace(operation, concurrent=True)
        operations.append(operation)
    faults = list(plan.faults)
    busy = sum(operation.pause for operation in operations) / plan.clients
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        faults.append(
            SimFault(
                index=1 + max((fault.index for fault in faults), default=-1),
                kind=random.choice(BATCH_FAULTS),
                at=0.02 + random.random() * busy,
                target=random.randrange(REPLICAS),
                seconds=random.choice((0.0, 0.05)),
                amount=random.randrange(1, 50),
            )
        )
    return msgspec.structs.replace(plan, operations=tuple(operations), faults=tuple(faults))


def _add_exchanges(plan: SimPlan) -> SimPlan:
    """Let the supervisor exchange guests, and add faults close to that."""
    random = Random(f"{plan.seed} roles")
    if random.random() < 0.15:
        return plan
    allowed = _allowed(plan.durability)
    near = {kind: weight for kind, weight in EXCHANGE_FAULTS.items() if kind in allowed}
    faults = [
        msgspec.structs.replace(fault, target=REPLICAS) if random.random() < 0.25 else fault
        for fault in plan.faults
    ]
    busy = sum(operation.pause for operation in plan.operations) / plan.clients
    pause = random.choice((0.0, 0.02, 0.1))
    index = 1 + max((fault.index for fault in faults), default=-1)
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        at = 0.02 + random.random() * (busy + 0.1)
        faults.append(
            SimFault(
                index=index,
                kind=_draw(random, EXCHANGES),
                at=at,
                target=random.randrange(REPLICAS),
                seconds=pause * random.random() * 2,
            )
        )
        index += 1
        if random.random() < 0.6:
            faults.append(
                SimFault(
                    index=index,
                    kind=_draw(random, near),
                    at=at + random.expovariate(1 / 0.02),
                    target=random.choice((*range(REPLICAS), REPLICAS, REPLICAS)),
                    seconds=random.choice((0.0, 0.02, 0.3)),
                    amount=round(_between(random, 1, 100)),
                    situation=random.choice(("", *EXCHANGE_SITUATIONS)),
                )
            )
            index += 1
    if random.random() < 0.3:  # a lie of a replica without a vote
        at = 0.02 + random.random() * busy
        kind = random.choice(("exchange-learner", "exchange-observer"))
        faults.append(SimFault(index, kind, at, random.randrange(REPLICAS), 0.1))
        faults.append(
            SimFault(
                index=index + 1,
                kind="corrupt-reply",
                at=at,
                target=REPLICAS,
                seconds=0.08,
                amount=20,
                situation="standing by",
            )
        )
        index += 2
    if random.random() < 0.4 and "kill-voter" in near:  # what a checkpoint and a restart keep
        plan = msgspec.structs.replace(
            plan,
            marker_every=random.randint(2, 6),
            checkpoint_bytes=random.randint(200, 800),
            segment=random.randint(700, 1500),
        )
        at = 0.02 + (0.5 + 0.5 * random.random()) * (busy + 0.1)
        faults.append(SimFault(index, "kill-voter", at, amount=random.randint(1, 20)))
    faults.sort(key=lambda fault: fault.at)
    return msgspec.structs.replace(plan, faults=tuple(faults), spares=1)
