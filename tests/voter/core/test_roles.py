"""Changes of roles: what is refused, what happens to open votes, and what a restart knows."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.voter.core.model import FIRST_CHANGE, HANG, Node, make_engine
from tests.voter.core.test_durable import DurableNode
from tests.voter.core.test_promises import POLICIES, AnyFaults, World, random_limits
from voter.core import Limits
from voter.core import events as ev
from voter.core.entries import Base, Entry, Record, RoleChange
from voter.core.followers import WATCHED_TIME
from voter.core.replica import CAUGHT_UP, Role, State
from voter.journal.format import decode_entries

VOTER, LEARNER, OBSERVER, RETIRED = map(str, Role)


def make_node(limits: Limits | None = None, *, follow: bool = False) -> Node:
    """Return a node of three voters with a free slot, g4."""
    engine = make_engine(limits=limits or Limits(hang=HANG, digest=HANG), spares=1, follow=follow)
    node = Node(engine)
    for index in range(3):
        node.connect(index)
    node.run()
    return node


def fill(node: Node, role: str) -> None:
    """Let a replica come into the free slot, and catch up."""
    assert isinstance(node.change_roles(g4=role), ev.RolesChanged)
    node.connect(3)
    node.run()
    assert node.engine.members[3].state in CAUGHT_UP


def refusal(answer: ev.RolesChanged | ev.RolesRefused | None) -> str:
    assert isinstance(answer, ev.RolesRefused), answer
    return answer.detail


@pytest.mark.parametrize("role", [LEARNER, OBSERVER])
def test_replica_takes_the_place_of_a_voter_in_one_step(role: str) -> None:
    node = make_node()
    node.submit(b"a")
    fill(node, role)
    answer = node.change_roles(g4=VOTER, g2=RETIRED)
    assert isinstance(answer, ev.RolesChanged)
    assert (answer.version, answer.seq) == (2, node.engine.log.seq)
    assert node.engine.members.active == (0, 2, 3)
    assert node.engine.members[1].state is State.RETIRED
    assert node.replicas[1].epoch == 0, "its link is closed"
    assert node.engine.status == "ready"
    node.check_alive()


def test_slot_of_a_retired_replica_is_used_again() -> None:
    node = make_node()
    fill(node, LEARNER)
    node.change_roles(g4=VOTER, g2=RETIRED)
    node.change_roles(g2=LEARNER)
    node.replicas[1].restart()
    node.connect(1)
    node.run()
    assert node.engine.members[1].state is State.STANDBY


def test_change_that_would_leave_fewer_active_voters_than_wanted_is_refused() -> None:
    node = make_node()
    fill(node, OBSERVER)
    node.crash(0)
    answer = node.change_roles(None, 3, g4=VOTER, g2=RETIRED)
    assert (
        refusal(answer) == "vote 2/3 needs 2 active voters, and 3 are wanted, only 2 would be left"
    )
    assert isinstance(node.change_roles(None, 3, g4=VOTER, g1=RETIRED), ev.RolesChanged)
    node.check_alive()


def test_there_may_be_fewer_voters_for_a_while_but_never_fewer_than_a_majority() -> None:
    node = make_node()
    assert "exactly 3 voters, not 2" in refusal(node.change_roles(g3=RETIRED))
    assert isinstance(node.change_roles(None, 2, 2, g3=RETIRED), ev.RolesChanged)
    node.check_alive()
    assert "exactly 3 voters, not 1" in refusal(node.change_roles(None, 1, 1, g2=RETIRED))
    node.lose(0)
    node.submit(b"x")
    assert node.engine.status == "refusing"
    node.connect(0)
    node.run()
    fill(node, OBSERVER)
    node.change_roles(g3=OBSERVER)
    node.replicas[2].restart()
    node.connect(2)
    node.run()
    answer = node.change_roles(None, 3, 0, g3=VOTER, g4=VOTER, g1=RETIRED)
    assert isinstance(answer, ev.RolesChanged), "two take the places of one and of none"
    node.check_alive()


def test_voter_that_is_inactive_cannot_be_missing_too() -> None:
    node = make_node()
    node.lose(0)
    assert "only 1 would be left" in refusal(node.change_roles(None, 2, 2, g3=RETIRED))
    assert isinstance(node.change_roles(None, 2, 2, g1=RETIRED), ev.RolesChanged)


def test_change_for_another_version_is_refused() -> None:
    node = make_node()
    answer = node.change_roles(1, g4=LEARNER)
    assert refusal(answer) == "the roles have version 0, not 1"
    assert isinstance(answer, ev.RolesRefused)
    assert answer.problem == "stale-roles"
    assert node.engine.members.roles_version == 0


def test_change_that_changes_nothing_is_answered_with_the_present_version() -> None:
    node = make_node()
    seq = node.engine.log.seq
    assert node.change_roles(g1=VOTER) == ev.RolesChanged(FIRST_CHANGE + 1, 0, 0)
    assert node.engine.log.seq == seq


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        ({"g9": VOTER}, "no replica 'g9': there are g1, g2, g3, g4"),
        ({"g1": "king"}, "no role 'king': there are voter, learner, observer, retired"),
        ({"g1": RETIRED}, "vote 2/3 needs exactly 3 voters, not 2"),
        ({"g1": OBSERVER}, "vote 2/3 needs exactly 3 voters, not 2"),
        ({"g4": VOTER}, "g4 cannot vote: it has not caught up, it is retired"),
        ({"g4": VOTER, "g1": RETIRED}, "g4 cannot vote: it has not caught up, it is retired"),
    ],
)
def test_impossible_change_is_refused(roles: dict[str, str], why: str) -> None:
    node = make_node()
    assert refusal(node.change_roles(**roles)) == why
    assert node.engine.members.active == (0, 1, 2)


def test_fourth_voter_is_refused() -> None:
    node = make_node()
    fill(node, LEARNER)
    assert refusal(node.change_roles(g4=VOTER)) == "vote 2/3 needs exactly 3 voters, not 4"


def test_change_that_would_cost_the_majority_is_refused() -> None:
    node = make_node()
    fill(node, LEARNER)
    node.lose(0)
    node.lose(1)
    wanted = "vote 2/3 needs 2 active voters, only 1 would be left"
    assert refusal(node.change_roles(g4=VOTER, g3=RETIRED)) == wanted
    assert isinstance(node.change_roles(g4=VOTER, g1=RETIRED), ev.RolesChanged)
    assert node.engine.status == "degraded", "the learner restores the majority"


def test_learner_is_retired_also_without_a_majority() -> None:
    node = make_node()
    fill(node, LEARNER)
    node.lose(0)
    node.lose(1)
    assert isinstance(node.change_roles(g4=RETIRED), ev.RolesChanged)


def test_ballot_of_a_new_voter_counts_in_open_votes() -> None:
    node = make_node()
    fill(node, LEARNER)
    ticket = node.submit(b"a")
    node.tick(WATCHED_TIME)
    node.run_one(3)
    node.run_one(0)
    assert ticket not in node.results
    node.change_roles(g4=VOTER, g2=RETIRED)
    released = node.results[ticket]
    assert isinstance(released, ev.Release)
    assert released.agreed == 2


def test_ballot_of_a_retired_voter_does_not_count() -> None:
    node = make_node()
    fill(node, LEARNER)
    ticket = node.submit(b"a")
    node.run_one(1)
    node.change_roles(g4=VOTER, g2=RETIRED)
    node.run_one(0)
    assert isinstance(node.results.get(ticket), ev.Release | None)
    node.run()
    assert isinstance(node.results[ticket], ev.Release)


def test_voter_that_becomes_an_observer_no_longer_counts() -> None:
    node = make_node()
    fill(node, OBSERVER)
    node.change_roles(g4=VOTER, g1=OBSERVER)
    assert node.engine.members[0].state is State.OBSERVER
    assert node.engine.members.active == (1, 2, 3)
    node.check_alive()


def test_read_that_only_a_retired_replica_answered_is_answered() -> None:
    node = make_node()
    fill(node, LEARNER)
    node.lose(0)
    ticket = node.submit(b"r", read_only=True)
    node.run_one(1)
    node.change_roles(g4=VOTER, g2=RETIRED)
    node.run()
    assert isinstance(node.results[ticket], ev.Release)


def test_trial_of_a_suspect_read_ends_with_its_replica() -> None:
    """A read that was lost with its replicas is tried on one alone; that one is retired then."""
    node = make_node()
    fill(node, LEARNER)
    first = node.submit(b"P", read_only=True)
    node.work(0)
    node.work(1)
    assert isinstance(node.results[first], ev.Fail)
    node.heal()
    node.submit(b"P", read_only=True)
    (tried,) = [r.index for r in node.engine.members if r.outstanding]
    node.change_roles(**{node.engine.members[tried].name: RETIRED}, g4=VOTER)
    node.run()
    node.check_alive()


def test_learner_that_dissents_is_expelled_and_an_observer_is_not() -> None:
    for role, state in ((LEARNER, State.EXPELLED), (OBSERVER, State.OBSERVER)):
        node = make_node()
        fill(node, role)
        node.replicas[3].fault = "lie"
        node.submit(b"a")
        node.run()
        assert node.engine.members[3].state is state
        assert [each.seq for each in node.differences] == [node.engine.log.seq]


def test_new_voter_may_still_answer_otherwise_what_it_was_sent_as_an_observer() -> None:
    """Patched observers that become voters have answers to give that the others gave otherwise."""
    node = make_node()
    fill(node, OBSERVER)
    node.replicas[3].fault = "lie"
    node.submit(b"a", read_only=True)
    for index in range(3):
        node.run_one(index)
    assert isinstance(node.change_roles(g4=VOTER, g2=RETIRED), ev.RolesChanged)
    node.run()
    assert set(node.engine.members.active) == {0, 2, 3}
    node.submit(b"b", read_only=True)
    node.run()
    assert set(node.engine.members.active) == {0, 2}, "it is a voter for this one"


def test_suspect_replica_stays_suspect_while_it_is_retired() -> None:
    """A machine that dissented must not come back with its state by way of a retired slot."""
    node = make_node()
    fill(node, LEARNER)
    node.submit(b"a")
    node.run()
    node.replicas[3].fault = "lie"
    node.submit(b"b")
    node.run()
    node.replicas[3].fault = None
    node.change_roles(g4=RETIRED)
    node.change_roles(g4=LEARNER)
    node.connect(3)
    assert node.engine.members[3].state is State.RESTORING, "it gets the checkpoint"


def test_observer_that_crashes_makes_no_write_void() -> None:
    node = make_node()
    fill(node, OBSERVER)
    node.submit(b"a")
    for _ in range(4):
        node.crash(3)
        node.connect(3)
    assert not node.engine.log.voided
    node.run()
    node.check_alive()


def test_orders_to_an_observer_are_held_although_voters_get_them_at_once() -> None:
    node = make_node()
    fill(node, OBSERVER)
    node.submit(b"a")
    assert [bool(replica.inbox) for replica in node.replicas] == [True, True, True, False]
    node.tick(WATCHED_TIME / 2)
    assert not node.replicas[3].inbox, "also while nothing else happens"
    node.tick(WATCHED_TIME / 2)
    assert node.replicas[3].inbox


def test_observer_without_a_digest_delays_no_marker() -> None:
    node = make_node(Limits(hang=HANG, marker_every=2, checkpoint_bytes=10))
    fill(node, OBSERVER)
    node.replicas[3].fault = "no-digest"
    for _ in range(12):
        node.submit(b"a")
        node.run()
        node.tick(0.6)
    assert len(node.checkpoints) > 3


# ----------------------------------------------------------------------- restarts


def make_durable() -> DurableNode:
    node = DurableNode(spares=1)
    node.connect_all()
    return node


def fill_durably(node: DurableNode, role: str) -> None:
    node.change_roles(g4=role)
    node.sync()
    node.connect(3)
    node.finish()


def check_answers(node: DurableNode) -> None:
    ticket = node.ask(b"are you there?")
    node.finish()
    assert isinstance(node.results[ticket], ev.Release)


def roles_of(node: Node) -> dict[str, str]:
    return node.engine.members.roles


def test_change_of_roles_is_answered_once_it_is_durable() -> None:
    node = make_durable()
    assert node.change_roles(g4=LEARNER) is None
    node.sync()
    ticket, seq = FIRST_CHANGE + 1, node.engine.log.seq
    assert node.answers[ticket] == ev.RolesChanged(ticket, 1, seq)


def test_open_vote_waits_until_the_change_is_durable() -> None:
    node = make_durable()
    fill_durably(node, LEARNER)
    ticket = node.ask(b"a")
    node.sync()
    node.tick(WATCHED_TIME)
    node.run_one(3)
    node.run_one(0)
    node.change_roles(g4=VOTER, g2=RETIRED)
    assert ticket not in node.results, "won by the new voter, whose role is not durable"
    node.sync()
    assert isinstance(node.results[ticket], ev.Release)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_restart_knows_the_roles(power: bool, checkpoint: bool) -> None:
    node = make_durable()
    fill_durably(node, LEARNER)
    node.change_roles(g4=VOTER, g2=RETIRED)
    node.sync()
    table = {"g1": VOTER, "g2": RETIRED, "g3": VOTER, "g4": VOTER}
    for _ in range(12 if checkpoint else 1):
        node.ask(b"a" * 300)
        node.finish()
    assert bool(node.base.roles) == checkpoint
    node.restart(power=power)
    assert roles_of(node) == table
    assert node.engine.members.roles_version == 2
    node.connect_all()
    assert node.engine.status == "ready"
    assert node.engine.members[1].state is State.RETIRED
    check_answers(node)


def test_change_that_was_not_durable_is_made_or_not_made_as_a_whole() -> None:
    node = make_durable()
    fill_durably(node, LEARNER)
    before = dict(roles_of(node))
    node.change_roles(g4=VOTER, g2=RETIRED)
    node.restart(power=True)
    assert roles_of(node) == before
    node.connect_all()
    node.finish()
    node.change_roles(g4=VOTER, g2=RETIRED)
    node.restart()  # the voter was killed, and the operating system has written the entry
    assert roles_of(node) == {"g1": VOTER, "g2": RETIRED, "g3": VOTER, "g4": VOTER}


@pytest.mark.parametrize("step", range(4))
def test_restart_after_each_step_of_a_replacement(step: int) -> None:
    """Restart the voter after each of: learner, caught up, replaced, the free slot filled again."""
    node = make_durable()
    steps: list[Callable[[], object]] = [
        lambda: node.change_roles(g4=LEARNER),
        lambda: node.connect(3),
        lambda: node.change_roles(g4=VOTER, g2=RETIRED),
        lambda: node.change_roles(g2=OBSERVER),
    ]
    for each in steps[: step + 1]:
        each()
        node.finish()
    table = dict(roles_of(node))
    node.ask(b"a")
    node.restart()
    assert roles_of(node) == table
    node.connect_all()
    node.finish()
    for each in steps[step + 1 :]:
        if each is not steps[1]:
            each()
            node.finish()
    assert roles_of(node) == {"g1": VOTER, "g2": OBSERVER, "g3": VOTER, "g4": VOTER}
    check_answers(node)


def test_full_disk_refuses_a_change_and_says_so() -> None:
    node = make_durable()
    node.feed(ev.Full(True, "no space left"))
    answer = node.change_roles(g4=LEARNER)
    assert refusal(answer) == "the journal cannot be written: no space left"
    assert isinstance(answer, ev.RolesRefused)
    assert answer.problem == "not-executed"


def test_journal_with_a_voter_that_is_not_configured_is_refused() -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match="the journal says that g4 votes"):
        engine.members.load_roles(1, {"g1": VOTER, "g2": RETIRED, "g3": VOTER, "g4": VOTER})


def test_replica_that_the_journal_does_not_know_is_retired() -> None:
    engine = make_engine(spares=1)
    engine.members.load_roles(1, {"g1": VOTER, "g2": VOTER, "g4": VOTER})
    assert engine.members.roles == {"g1": VOTER, "g2": VOTER, "g3": RETIRED, "g4": VOTER}


def test_entries_and_bases_of_earlier_formats_are_read() -> None:
    """They have no roles; their structs are shorter."""
    record = Record(1, b"a", b"", 0, b"", b"", False)
    old = msgspec.msgpack.encode([record])
    entries: list[Entry] = decode_entries(old)
    assert entries == [record]
    base = msgspec.msgpack.encode([7, b"history.", None, 5, 9, ["g1"], []])
    assert msgspec.msgpack.decode(base, type=Base) == Base(
        seq=7, history=b"history.", time_ns=5, reserved=9, suspects=["g1"]
    )


def test_role_change_is_written_and_read() -> None:
    change = RoleChange(9, 2, {"g1": "voter", "g2": "retired"}, "why")
    assert decode_entries(msgspec.msgpack.encode([change])) == [change]


# ----------------------------------------------------------------- random histories


class AnyRoles(AnyFaults):
    """Changes of roles among any faults: the promises hold, and the node recovers."""

    @initialize(
        vote=st.sampled_from(POLICIES),
        seed=st.integers(0, 99),
        observers=st.integers(0, 1),
        follow=st.booleans(),
    )
    def start(self, vote: str, seed: int, observers: int, follow: bool) -> None:
        limits = random_limits(random.Random(seed), single=False)
        engine = make_engine(vote, limits=limits, observers=observers, spares=1, follow=follow)
        self.world = World(Node(engine), single=False)
        self.count = len(self.world.node.replicas)

    @rule(role=st.sampled_from([LEARNER, OBSERVER]))
    def fill_the_free_slot(self, role: str) -> None:
        node = self.world.node
        free = next((r for r in node.engine.members if r.role is Role.RETIRED), None)
        if free is not None:
            node.change_roles(**{free.name: role})
            node.replicas[free.index].fault = None
            node.replicas[free.index].restart()
            node.connect(free.index)

    @rule(choice=st.integers(0, 2))
    def replace_a_voter(self, choice: int) -> None:
        members = self.world.node.engine.members
        new = next((r for r in members if r.role not in (Role.VOTER, Role.RETIRED)), None)
        if new is not None:
            voters = [replica for replica in members if replica.role is Role.VOTER]
            old = voters[choice % len(voters)]
            before = len(members.active)
            answer = self.world.node.change_roles(**{new.name: VOTER, old.name: RETIRED})
            if isinstance(answer, ev.RolesChanged) and before >= members.policy.need:
                assert members.can_vote

    @rule(first=st.sampled_from(list(Role)), index=st.integers(0, 6), other=st.integers(0, 6))
    def change_any(self, first: Role, index: int, other: int) -> None:
        """Change roles without regard to what is possible."""
        members = self.world.node.engine.members
        index, other = index % self.count, other % self.count
        roles = {members[index].name: str(first)}
        if other != index:
            roles[members[other].name] = str(members[index].role)
        self.world.node.change_roles(**roles)

    @precondition(lambda self: self.world.node.engine.members.roles_version)
    @rule()
    def abort(self) -> None:
        node = self.world.node
        for replica in node.engine.members:
            if replica.role in (Role.LEARNER, Role.OBSERVER):
                node.change_roles(**{replica.name: RETIRED})


TestAnyRoles = pytest.mark.filterwarnings("default")(AnyRoles.TestCase)
TestAnyRoles.settings = settings(max_examples=60, stateful_step_count=60)
