"""How replicas join, catch up and are admitted, and how their incarnations end."""

from __future__ import annotations

import pytest

from tests.voter.core.model import HANG, Node, digest_of
from tests.voter.core.test_engine import make_node, result, step
from voter.core import Limits
from voter.core import events as ev
from voter.core.replica import State


def state_of(node: Node, index: int) -> State:
    return node.engine.members[index].state


def sent_to(node: Node, index: int) -> list[int]:
    """Sequence numbers of the requests in a replica's inbox."""
    return [m.record.seq for m in node.replicas[index].inbox if isinstance(m, ev.Send)]


def make_checkpoint(node: Node) -> int:
    """Let the node make a checkpoint; return its sequence number."""
    before = len(node.checkpoints)
    for number in range(50):
        node.submit(b"%d" % number)
        node.run()
        if len(node.checkpoints) > before:
            return node.checkpoints[-1]
    raise AssertionError("no checkpoint")


SMALL = Limits(hang=HANG, marker_every=5, checkpoint_bytes=1000)


# ---------------------------------------------------------------- joining


def test_fresh_replica_replays_the_log() -> None:
    node = make_node()
    for number in range(5):
        node.submit(b"%d" % number, read_only=number == 2)
    node.run()
    node.crash(1)
    node.connect(1)
    assert sent_to(node, 1) == [4, 5, 7, 8], "writes only: a read has changed nothing"
    node.run()
    node.check_idle()


def test_replica_that_kept_its_state_is_sent_what_it_missed() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.lose(1)
    node.submit(b"b")
    node.run()
    node.connect(1)
    assert sent_to(node, 1) == [5]
    node.run()
    node.check_idle()


@pytest.mark.parametrize("change", ["history", "ahead"])
def test_replica_with_another_history_gets_the_checkpoint(change: str) -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.lose(1)
    replica = node.replicas[1]
    if change == "history":
        replica.history = b"another!"
    else:
        replica.last_seq = 99
    node.connect(1)
    assert state_of(node, 1) is State.RESTORING
    node.run()
    node.check_idle()


def test_replica_behind_the_checkpoint_gets_it() -> None:
    node = make_node(limits=SMALL)
    node.lose(1)
    seq = make_checkpoint(node)
    node.connect(1)
    restore = node.replicas[1].inbox[0]
    assert isinstance(restore, ev.Restore)
    assert (restore.seq, restore.digest) == (seq, digest_of(restore.state))
    node.run()
    node.check_idle()


@pytest.mark.parametrize("has_reply", [False, True])
def test_replica_ahead_of_the_votes_keeps_its_state_only_with_its_reply(
    has_reply: bool,
) -> None:
    """Its ballot is void, and it cannot apply the write again: it must repeat its reply."""
    node = make_node()
    node.crash(0)
    ticket = node.submit(b"a")
    step(node, 1)
    node.lose(1)
    if not has_reply:
        node.replicas[1].replies.clear()
    node.connect(1)
    assert state_of(node, 1) is (State.LEARNER if has_reply else State.RESTORING)
    node.run()
    assert node.engine.pending == 0
    assert ticket in node.results
    node.heal()
    node.check_idle()


def test_handshake_ends_the_incarnation_before_it() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    step(node, 1)
    replica = node.replicas[1]
    replica.cut()
    node.connect(1)
    node.run()
    assert result(node, ticket).agreed == 2
    node.check_idle()


# --------------------------------------------------------------- learning


@pytest.mark.parametrize(
    "limits", [Limits(hang=HANG, window=3), Limits(hang=HANG, window_bytes=1000)]
)
def test_learner_is_sent_no_more_than_its_window(limits: Limits) -> None:
    node = make_node(limits=limits)
    node.crash(1)
    for _ in range(10):
        node.submit(bytes(400))
    node.run()
    node.connect(1)
    assert len(sent_to(node, 1)) == 3
    step(node, 1)
    assert len(sent_to(node, 1)) == 3
    node.run()
    node.check_idle()


def test_learner_is_admitted_when_it_has_answered_all_before_it_went_live() -> None:
    node = make_node(limits=Limits(hang=HANG, window=2))
    node.crash(1)
    for number in range(3):
        node.submit(b"%d" % number)
    node.run()
    node.connect(1)
    step(node, 1)
    node.submit(b"late")  # it is live now
    assert state_of(node, 1) is State.LEARNER
    assert len(sent_to(node, 1)) == 3
    step(node, 1, 1)
    assert state_of(node, 1) is State.ACTIVE, "it need not answer what came after"


def test_learner_that_dissents_is_expelled() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.crash(1)
    node.replicas[1].fault = "lie"
    node.connect(1)
    node.run()
    assert (state_of(node, 1), node.engine.members[1].dissents) == (State.EXPELLED, 1)


def test_learner_gets_the_checkpoint_when_it_overtakes_it() -> None:
    node = make_node(limits=Limits(hang=HANG, window=1, marker_every=5, checkpoint_bytes=1000))
    node.crash(1)
    for number in range(4):
        node.submit(b"%d" % number)
    node.run()
    node.connect(1)
    assert sent_to(node, 1) == [4]
    learner = node.replicas[1].inbox.popleft()
    for number in range(20):
        node.submit(b"%d" % number)
        node.run()
    assert node.checkpoints
    node.replicas[1].inbox.appendleft(learner)
    step(node, 1)
    assert state_of(node, 1) is State.RESTORING
    node.run()
    node.check_idle()


# -------------------------------------------------------------- restoring


def test_restore_succeeds_when_a_checkpoint_is_made_meanwhile() -> None:
    node = make_node(limits=SMALL)
    make_checkpoint(node)
    node.crash(1)
    node.connect(1)
    held = list(node.replicas[1].inbox)
    node.replicas[1].inbox.clear()
    make_checkpoint(node)
    node.replicas[1].inbox.extend(held)
    node.run()
    node.check_idle()


@pytest.mark.parametrize("what", ["digest", "place", "digest, after the next checkpoint"])
def test_replica_with_a_wrongly_restored_state_is_expelled(what: str) -> None:
    node = make_node(limits=SMALL)
    make_checkpoint(node)
    node.crash(1)
    node.connect(1)
    restore = node.replicas[1].inbox.popleft()
    assert isinstance(restore, ev.Restore)
    if "after" in what:
        make_checkpoint(node)
    seq, digest = restore.seq, digest_of(b"something else")
    if what == "place":
        seq, digest = restore.seq + 1, restore.digest
    node.feed(ev.Restored(1, node.replicas[1].epoch, seq, digest))
    assert state_of(node, 1) is State.EXPELLED


def test_restore_deadline_grows_with_the_state() -> None:
    node = make_node(
        limits=Limits(hang=HANG, marker_every=5, checkpoint_bytes=1000, restore_rate=1)
    )
    make_checkpoint(node)
    size = len(node.engine.log.checkpoint.state)
    assert size == 12
    node.crash(1)
    node.connect(1)
    node.replicas[1].fault = "silent"
    for _ in range(15):
        node.run()
        node.tick(0.9)
    assert state_of(node, 1) is State.RESTORING
    node.tick(0.9)
    node.run()
    assert state_of(node, 1) is State.ABSENT


# ----------------------------------------------------------------- ending


def test_expelled_replica_may_rejoin_only_fresh() -> None:
    node = make_node()
    node.replicas[1].fault = "lie"
    node.submit(b"a")
    node.run()
    node.replicas[1].fault = None
    node.connect(1)
    assert state_of(node, 1) is State.EXPELLED
    assert not node.replicas[1].epoch, "its link is closed"
    node.replicas[1].restart()
    node.connect(1)
    node.run()
    node.check_idle()


def test_readmitted_suspect_gets_the_checkpoint() -> None:
    """A correct history does not prove a correct state."""
    node = make_node()
    node.replicas[1].fault = "corrupt"
    node.submit(b"a")
    node.run()
    assert state_of(node, 1) is State.EXPELLED
    node.replicas[1].fault = None
    node.feed(ev.Readmit(1))
    node.connect(1)
    assert state_of(node, 1) is State.RESTORING
    node.run()
    node.check_idle()


def test_operator_expels_and_readmits_a_replica() -> None:
    node = make_node()
    node.feed(ev.Readmit(1))
    assert state_of(node, 1) is State.ACTIVE, "readmission has no effect"
    node.feed(ev.Expel(1, "maintenance"))
    assert state_of(node, 1) is State.EXPELLED
    node.feed(ev.Expel(1, "again"))
    node.feed(ev.Readmit(1))
    assert state_of(node, 1) is State.ABSENT
    node.connect(1)
    node.run()
    node.check_idle()


def test_absent_replica_can_be_expelled() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.lose(1)
    node.feed(ev.Expel(1, "maintenance"))
    assert state_of(node, 1) is State.EXPELLED
    node.connect(1)
    assert state_of(node, 1) is State.EXPELLED


def test_refused_order_makes_a_replica_absent() -> None:
    node = make_node()
    node.replicas[1].fault = "refuse"
    ticket = node.submit(b"a")
    node.run()
    assert state_of(node, 1) is State.ABSENT
    assert result(node, ticket).agreed == 2


# ------------------------------------------------------------------- time


def silence(node: Node, seconds: float, but: tuple[int, ...] = ()) -> None:
    """Let time pass in small steps; all replicas work, except ``but``."""
    for _ in range(round(seconds / 0.1)):
        node.tick(0.1)
        for replica in node.replicas:
            while replica.index not in but and (replica.inbox or replica.outbox):
                node.work(replica.index) if replica.inbox else node.deliver(replica.index)


@pytest.mark.parametrize("asked", [True, False])
def test_replica_that_hangs_is_absent_after_the_limit(asked: bool) -> None:
    node = make_node()
    if asked:
        node.submit(b"a")
    silence(node, 1.9, but=(1,))
    assert state_of(node, 1) is State.ACTIVE
    silence(node, 0.3, but=(1,))
    assert state_of(node, 1) is State.ABSENT
    assert "hang" in node.engine.members[1].reason
    assert [state_of(node, index) for index in (0, 2)] == [State.ACTIVE] * 2


def test_slow_replica_that_answers_does_not_hang() -> None:
    node = make_node()
    for number in range(10):
        node.submit(b"%d" % number)
    for _ in range(10):
        silence(node, 1.5, but=(1,))
        step(node, 1)
    assert state_of(node, 1) is State.ACTIVE


def test_idle_replica_is_pinged_once_at_a_time() -> None:
    node = make_node()
    node.tick(0.4)
    assert not node.busy()
    node.tick(0.2)
    assert [len(replica.inbox) for replica in node.replicas] == [1, 1, 1]
    node.tick(0.2)
    assert [len(replica.inbox) for replica in node.replicas] == [1, 1, 1]
    node.run()
    assert all(not replica.pinged for replica in node.engine.members)


@pytest.mark.parametrize("gap", [1.1, 3.0, 1000.0])
def test_delayed_voter_suspects_no_replica_of_hanging(gap: float) -> None:
    node = make_node()
    ticket = node.submit(b"a")
    for replica in node.replicas:
        node.work(replica.index)
    node.tick(gap)
    node.run()
    assert node.engine.status == "ready"
    assert result(node, ticket).agreed == 2


def test_burst_that_nobody_has_answered_is_no_lag() -> None:
    """Clients caused it, not a replica."""
    node = make_node(limits=Limits(hang=HANG, lag=10, lag_bytes=1000))
    tickets = [node.submit(bytes(100)) for _ in range(50)]
    node.tick(0.1)
    assert node.engine.status == "ready"
    node.run()
    assert sorted(node.results) == tickets


@pytest.mark.parametrize("size", [0, 300])
def test_replica_that_lags_behind_the_others_is_absent(size: int) -> None:
    node = make_node(limits=Limits(hang=HANG, lag=10 if not size else 10_000, lag_bytes=1000))
    for _ in range(11):
        node.submit(bytes(size))
        step(node, 0, 2)
    node.tick(0.01)
    assert state_of(node, 1) is State.ABSENT
    assert "lag" in node.engine.members[1].reason


def test_read_is_not_delayed_by_one_silent_replica_when_another_was_admitted() -> None:
    node = make_node()
    node.crash(2)
    read = node.submit(b"r", read_only=True)
    node.run_one(1)
    assert read not in node.results
    node.replicas[0].fault = "silent"
    node.connect(2)
    node.run_one(2)
    node.run_one(1)
    node.run_one(2)
    assert isinstance(node.results[read], ev.Release)


def test_read_is_ordered_again_once_at_most() -> None:
    node = make_node()
    node.crash(2)
    read = node.submit(b"r", read_only=True)
    sent = [record.seq for record in node.records.values()]
    for _ in range(3):
        node.connect(2)
        node.run_one(2)
        node.crash(2)
    assert len(node.records) - len(sent) <= 1, "ordered again once at most"
    node.run_one(0)
    node.run_one(1)
    assert isinstance(node.results[read], ev.Release)
