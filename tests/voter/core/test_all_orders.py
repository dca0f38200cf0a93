"""Model check: every order of events, for 3 replicas and 3 requests, with one fault anywhere.

This is a depth-first search over a node's states.  In each state, every event that can happen next
is tried on a copy.  A state that was seen before is not searched again.  model.py asserts at each
step what must hold (Agreement, Order, Fail-safe, Bounded).  At the end of every path nothing more
can happen: every request must have its reply, and nothing may be left (Liveness).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from tests.voter.core.model import Node, make_engine
from voter.core import Limits
from voter.core import events as ev
from voter.core.batch import Batch
from voter.core.poll import Poll
from voter.core.replica import CAUGHT_UP, Role, State

Step = tuple[str, int]


class Search:
    """The search for one kind of fault; counts states and ends of paths."""

    def __init__(
        self,
        requests: tuple[str, ...],
        fault: str,
        *,
        victims: tuple[int, ...],
        limits: Limits,
        role: str = "",
    ) -> None:
        """``role``: of a fourth replica, which takes the place of the second one at any time."""
        self.requests = requests
        self.fault = fault
        self.victims = victims
        self.states = 0
        self.ends = 0
        self.outcomes: set[tuple[Any, ...]] = set()
        self._seen: set[tuple[Any, ...]] = set()
        self._start = Node(make_engine(limits=limits, spares=bool(role)))
        self._exchange = bool(role)
        for index in range(3):
            self._start.connect(index)
        if role:
            self._start.change_roles(g4=role)
            self._start.connect(3)
        self._start.run()

    def run(self) -> None:
        """Search everything."""
        todo: list[tuple[bytes, tuple[Step, ...]]] = [(pickle.dumps((self._start, 0, -1)), ())]
        while todo:
            packed, path = todo.pop()
            node, sent, victim = pickle.loads(packed)
            steps = list(self._steps(node, sent, victim))
            if not steps:
                self._check_end(node, path)
            for step in steps:
                node, sent, victim = pickle.loads(packed)
                try:
                    sent, victim = self._take(step, node, sent, victim)
                    node.check_order()
                except AssertionError as error:
                    error.add_note(f"after {[*path, step]}")
                    raise
                mark = (sent, victim, *fingerprint(node))
                if mark not in self._seen:
                    self._seen.add(mark)
                    self.states += 1
                    todo.append((pickle.dumps((node, sent, victim)), (*path, step)))

    def _steps(self, node: Node, sent: int, victim: int) -> Iterator[Step]:
        """Yield all that can happen next."""
        if sent < len(self.requests):
            yield ("submit", sent)
        for replica in node.replicas:
            index = replica.index
            if replica.outbox:
                yield ("deliver", index)
            if replica.inbox:
                yield ("work", index)
            if not replica.epoch and node.engine.members[index].role is not Role.RETIRED:
                yield ("connect", index)
            if victim < 0 and self.fault and index in self.victims:
                yield (self.fault, index)
        if self._exchange and node.engine.members.roles_version == 1 and self._may_exchange(node):
            yield ("exchange", 3)
        if self.fault == "silent" and victim >= 0:
            # Time passes when only the victim has anything to do: the others are never late.
            waits = node.engine.members[victim].outstanding
            if waits and set(node.busy()) <= {victim}:
                yield ("tick", victim)

    def _may_exchange(self, node: Node) -> bool:
        members = node.engine.members
        return members[3].state in CAUGHT_UP and any(i in members.active for i in (0, 2))

    def _take(self, step: Step, node: Node, sent: int, victim: int) -> tuple[int, int]:
        what, index = step
        if what == "submit":
            turn = self.requests[index].split()
            if len(turn) == 1:
                node.submit(b"%d" % index, read_only=turn == ["read"])
            else:
                requests = enumerate(turn)
                node.submit_all([(b"%d %d" % (index, i), kind == "read") for i, kind in requests])
            return sent + 1, victim
        if what == "work":
            # Its answers come next, unless its link may be cut in between.
            node.work(index)
            if self.fault != "cut":
                while node.replicas[index].outbox:
                    node.deliver(index)
        elif what == "deliver":
            node.deliver(index)
        elif what == "tick":
            node.tick(0.9)
        elif what == "exchange":
            assert isinstance(node.change_roles(g4="voter", g2="retired"), ev.RolesChanged)
        elif what == "connect":
            replica = node.replicas[index]
            if replica.fault or node.engine.members[index].state is State.EXPELLED:
                replica.fault = None  # the supervisor restores the guest
                replica.restart()
            node.connect(index)
        else:
            victim = index
            if what == "crash":
                node.crash(index)
            elif what == "cut":
                node.lose(index)
            else:
                node.replicas[index].fault = what
        return sent, victim

    def _check_end(self, node: Node, path: tuple[Step, ...]) -> None:
        self.ends += 1
        results = [node.results.get(ticket) for ticket in range(1, node.tickets + 1)]
        assert all(isinstance(result, ev.Release) for result in results), (results, path)
        self.outcomes.add(tuple(replica.state for replica in node.engine.members))
        if self.fault == "corrupt":
            node.heal()  # damage after the last marker is found at the next one
        if node.engine.status == "ready":
            node.check_idle()


def fingerprint(node: Node) -> tuple[Any, ...]:
    """Return what distinguishes this state of a node from others.

    Epochs are only compared, and time only matters for who is silent: both are left out.
    """
    engine, marker = node.engine, node.engine.checkpoints.marker
    return (
        engine.log.seq,
        engine.log.checkpoint.seq,
        tuple(entry.tag for entry in engine.log),
        engine.checkpoints.requests,
        marker and (marker.seq, marker.keeper, marker.digest),
        tuple(
            (
                poll.seq, tuple(poll.tickets), poll.winner, poll.sent, poll.unanswered,
                tuple(sorted(poll.ballots.items())),
            )
            for poll in chain[Poll | Batch](
                engine.polls.open.values(), engine.polls.batches.values()
            )
        ),
        tuple(
            (
                r.state, r.cursor, r.live, r.join_seq, r.suspect, r.pinged, tuple(r.outstanding),
                tuple(seq for seq, _ in r.markers),
                round(node.now - r.heard, 1) if r.outstanding else 0,
            )
            for r in engine.members
        ),
        tuple(
            (
                r.epoch > 0, r.fault, r.fresh, r.last_seq, r.state, r.kept,
                tuple((type(m), _name(m)) for m in r.inbox),
                tuple((type(m), getattr(m, "seq", 0)) for m in r.outbox),
            )
            for r in node.replicas
        ),
        tuple(sorted((t, getattr(v, "reply", b"")) for t, v in node.results.items())),
    )  # fmt: skip


def _name(message: ev.Effect) -> Any:
    """Return what distinguishes a message to a replica from others."""
    if isinstance(message, ev.SendAll):
        return message.records[0].seq
    return message.record.seq if isinstance(message, ev.Send) else message


WRITES = ("write", "write", "write")
MIXED = ("write", "read", "write")
NO_MARKERS = Limits(ping=1000.0)
MARKERS = Limits(marker_every=2, checkpoint_bytes=500)


@pytest.mark.parametrize(
    ("requests", "limits"),
    [(WRITES + WRITES, NO_MARKERS), (MIXED + MIXED, NO_MARKERS), (WRITES, MARKERS)],
    ids=["writes", "with a read", "with a checkpoint"],
)
def test_every_order_ends_alike_without_a_fault(requests: tuple[str, ...], limits: Limits) -> None:
    search = Search(requests, "", victims=(), limits=limits)
    search.run()
    assert search.ends == 1, "all orders end in the same state"
    assert search.outcomes == {(State.ACTIVE,) * 3}


@pytest.mark.parametrize("requests", [WRITES, MIXED], ids=["writes", "with a read"])
@pytest.mark.parametrize("fault", ["crash", "lie", "silent"])
def test_every_order_answers_all_requests_with_one_fault(
    requests: tuple[str, ...], fault: str
) -> None:
    search = Search(requests, fault, victims=(1,), limits=NO_MARKERS)
    search.run()
    assert search.states > 400
    assert search.outcomes >= {(State.ACTIVE,) * 3}


def test_every_order_answers_all_requests_with_one_lost_link() -> None:
    """Messages may be lost with the link, and the replica keeps its state."""
    search = Search(("write", "read"), "cut", victims=(1,), limits=NO_MARKERS)
    search.run()
    assert search.states > 400


@pytest.mark.parametrize("fault", ["crash", "lie-digest", "lie-state"])
def test_every_order_answers_all_requests_with_a_checkpoint_and_a_fault(fault: str) -> None:
    search = Search(WRITES, fault, victims=(0,), limits=MARKERS)
    search.run()
    assert search.states > 400


@pytest.mark.parametrize("fault", ["crash", "lie", "silent", "wrong-seq", "cut-reply"])
def test_every_order_answers_all_requests_of_batches_with_one_fault(fault: str) -> None:
    turns = ("write read write", "write write", "read write")
    search = Search(turns, fault, victims=(1,), limits=NO_MARKERS)
    search.run()
    assert search.states > 100
    assert search.outcomes >= {(State.ACTIVE,) * 3}


@pytest.mark.parametrize("role", ["learner", "observer"])
@pytest.mark.parametrize("fault", ["", "crash", "lie"])
def test_every_order_answers_all_requests_while_a_replica_takes_anothers_place(
    role: str, fault: str
) -> None:
    search = Search(("write", "read"), fault, victims=(0,), limits=NO_MARKERS, role=role)
    search.run()
    assert search.states > 200
    ready = (State.ACTIVE, State.RETIRED, State.ACTIVE, State.ACTIVE)
    assert search.outcomes >= {ready}


@pytest.mark.long
@pytest.mark.parametrize("requests", [WRITES, MIXED], ids=["writes", "with a read"])
@pytest.mark.parametrize("limits", [NO_MARKERS, MARKERS], ids=["plain", "markers"])
@pytest.mark.parametrize(
    "fault", ["crash", "cut", "lie", "lie-digest", "lie-state", "corrupt", "wrong-seq", "twice"]
)
def test_every_order_answers_all_requests_with_any_fault(
    fault: str, limits: Limits, requests: tuple[str, ...]
) -> None:
    victims = (0,) if fault == "cut" else (0, 1, 2)  # it has far more states than the others
    search = Search(requests, fault, victims=victims, limits=limits)
    search.run()
    assert search.ends
