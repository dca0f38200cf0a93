"""How replicas come, catch up, are admitted, and go."""

from __future__ import annotations

import pytest

from tests.voter.core.model import HANG, Node, Replica, digest_of, make_engine
from tests.voter.core.test_engine import make_node, step, verdict
from voter.core import Limits
from voter.core import events as ev
from voter.core.replica import State


def state_of(node: Node, index: int) -> State:
    return node.engine.members[index].state


def sent_to(node: Node, index: int) -> list[int]:
    """SequenceReservation of the requests in a replica's inbox."""
    return [m.record.seq for m in node.replicas[index].inbox if isinstance(m, ev.Send)]


def make_checkpoint(node: Node) -> int:
    """Let the node vote and fetch a checkpoint; return its place."""
    before = len(node.checkpoints)
    for number in range(50):
        node.submit(b"%d" % number)
        node.run()
        if len(node.checkpoints) > before:
            return node.checkpoints[-1]
    raise AssertionError("no checkpoint")


SMALL = Limits(hang=HANG, marker_every=5, checkpoint_bytes=1000)


# ---------------------------------------------------------------- coming


def test_a_fresh_replica_replays_the_log() -> None:
    node = make_node()
    for number in range(5):
        node.submit(b"%d" % number, read_only=number == 2)
    node.run()
    node.crash(1)
    node.connect(1)
    assert sent_to(node, 1) == [4, 5, 7, 8], "writes only: a read has changed nothing"
    node.run()
    node.check_idle()


def test_a_replica_that_kept_its_state_gets_what_it_missed() -> None:
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


def test_a_replica_that_missed_nothing_votes_at_once() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.lose(1)
    node.connect(1)
    assert state_of(node, 1) is State.ACTIVE


@pytest.mark.parametrize("change", ["history", "ahead"])
def test_a_replica_that_holds_something_else_gets_the_checkpoint(change: str) -> None:
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


def test_a_replica_of_before_the_checkpoint_gets_it() -> None:
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
def test_one_that_has_applied_what_is_not_settled_is_built_anew(has_reply: bool) -> None:
    """Its ballot went with its link, and it cannot apply the request again to cast another one.

    Unless it still has its reply: then it is asked for that.
    """
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
    assert ticket in node.verdicts
    node.heal()
    node.check_idle()


def test_a_handshake_ends_the_one_before_it() -> None:
    node = make_node()
    ticket = node.submit(b"a")
    step(node, 1)
    replica = node.replicas[1]
    replica.cut()
    node.connect(1)
    node.run()
    assert verdict(node, ticket).agreed == 2
    node.check_idle()


# --------------------------------------------------------------- learning


def test_a_learner_gets_no_more_than_its_window() -> None:
    node = make_node(limits=Limits(hang=HANG, window=3))
    node.crash(1)
    for number in range(10):
        node.submit(b"%d" % number)
    node.run()
    node.connect(1)
    assert len(sent_to(node, 1)) == 3
    step(node, 1)
    assert len(sent_to(node, 1)) == 3
    node.run()
    node.check_idle()


def test_a_learner_gets_no_more_bytes_than_its_window() -> None:
    node = make_node(limits=Limits(hang=HANG, window_bytes=1000))
    node.crash(1)
    for _ in range(10):
        node.submit(bytes(400))
    node.run()
    node.connect(1)
    assert len(sent_to(node, 1)) == 3
    node.run()
    node.check_idle()


def test_a_learner_is_admitted_after_all_that_was_ordered_when_it_went_live() -> None:
    node = make_node(limits=Limits(hang=HANG, window=2))
    node.crash(1)
    for number in range(3):
        node.submit(b"%d" % number)
    node.run()
    node.connect(1)
    step(node, 1)
    node.submit(b"late")  # live by now
    assert state_of(node, 1) is State.LEARNER
    assert len(sent_to(node, 1)) == 3
    step(node, 1, 1)
    assert state_of(node, 1) is State.ACTIVE, "it need not answer what came after"


def test_a_learner_that_says_something_else_is_expelled() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.crash(1)
    node.replicas[1].fault = "lie"
    node.connect(1)
    node.run()
    assert (state_of(node, 1), node.engine.members[1].dissents) == (State.EXPELLED, 1)


def test_the_vote_goes_on_while_a_learner_learns() -> None:
    node = make_node(limits=Limits(hang=HANG, window=1))
    node.crash(1)
    for number in range(30):
        node.submit(b"%d" % number)
    node.connect(1)
    for number in range(30):
        ticket = node.submit(b"more %d" % number)
        node.run()
        assert verdict(node, ticket).agreed >= 2
    node.check_idle()


def test_a_checkpoint_overtakes_a_learner() -> None:
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


def test_the_log_may_move_on_while_a_replica_is_restored() -> None:
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


@pytest.mark.parametrize("moved_on", [False, True])
def test_a_restored_state_is_checked_by_its_digest(moved_on: bool) -> None:
    node = make_node(limits=SMALL)
    make_checkpoint(node)
    node.crash(1)
    node.connect(1)
    restore = node.replicas[1].inbox.popleft()
    assert isinstance(restore, ev.Restore)
    if moved_on:
        make_checkpoint(node)
    epoch = node.replicas[1].epoch
    node.feed(ev.Restored(1, epoch, restore.seq, digest_of(b"something else")))
    assert state_of(node, 1) is State.EXPELLED


def test_a_replica_cannot_say_that_it_was_restored_to_something_it_was_not_given() -> None:
    node = make_node(limits=SMALL)
    make_checkpoint(node)
    node.crash(1)
    node.connect(1)
    point = node.engine.log.checkpoint
    assert point.digest
    node.feed(ev.Restored(1, node.replicas[1].epoch, point.seq + 1, point.digest))
    assert state_of(node, 1) is State.EXPELLED


def test_a_restore_has_time_by_its_size() -> None:
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


# ------------------------------------------------------------------ going


def test_an_expelled_replica_comes_back_only_fresh() -> None:
    node = make_node()
    node.replicas[1].fault = "lie"
    node.submit(b"a")
    node.run()
    node.replicas[1].fault = None
    node.connect(1)
    assert state_of(node, 1) is State.EXPELLED
    assert not node.replicas[1].epoch, "its link is dropped"
    node.replicas[1].restart()
    node.connect(1)
    node.run()
    node.check_idle()


def test_a_pardoned_replica_is_not_built_on_what_it_holds() -> None:
    """Its history says that it applied the right requests, not that its state is right."""
    node = make_node()
    node.replicas[1].fault = "corrupt"
    node.submit(b"a")
    node.run()
    assert state_of(node, 1) is State.EXPELLED
    node.replicas[1].fault = None
    node.feed(ev.Admit(1))
    node.connect(1)
    assert state_of(node, 1) is State.RESTORING
    node.run()
    node.check_idle()


def test_expel_and_admit_by_the_operator() -> None:
    node = make_node()
    node.feed(ev.Admit(1))
    assert state_of(node, 1) is State.ACTIVE, "nothing to pardon"
    node.feed(ev.Expel(1, "maintenance"))
    assert state_of(node, 1) is State.EXPELLED
    node.feed(ev.Expel(1, "again"))
    node.feed(ev.Admit(1))
    assert state_of(node, 1) is State.ABSENT
    node.connect(1)
    node.run()
    node.check_idle()


def test_a_replica_that_is_away_can_be_expelled() -> None:
    node = make_node()
    node.submit(b"a")
    node.run()
    node.lose(1)
    node.feed(ev.Expel(1, "maintenance"))
    assert state_of(node, 1) is State.EXPELLED
    node.connect(1)
    assert state_of(node, 1) is State.EXPELLED


def test_a_refusal_ends_the_link_without_distrust() -> None:
    node = make_node()
    node.replicas[1].fault = "refuse"
    ticket = node.submit(b"a")
    node.run()
    assert state_of(node, 1) is State.ABSENT
    assert verdict(node, ticket).agreed == 2


# ------------------------------------------------------------------- time


def silence(node: Node, seconds: float, but: tuple[int, ...] = ()) -> None:
    """Let time pass in small steps; ``but`` these replicas, all work."""
    for _ in range(round(seconds / 0.1)):
        node.tick(0.1)
        for replica in node.replicas:
            while replica.index not in but and (replica.inbox or replica.outbox):
                node.work(replica.index) if replica.inbox else node.deliver(replica.index)


@pytest.mark.parametrize("asked", [True, False])
def test_a_replica_that_hangs_is_gone_in_time(asked: bool) -> None:
    node = make_node()
    if asked:
        node.submit(b"a")
    silence(node, 1.9, but=(1,))
    assert state_of(node, 1) is State.ACTIVE
    silence(node, 0.3, but=(1,))
    assert state_of(node, 1) is State.ABSENT
    assert "hang" in node.engine.members[1].reason
    assert [state_of(node, index) for index in (0, 2)] == [State.ACTIVE] * 2


def test_progress_is_a_sign_of_life() -> None:
    node = make_node()
    for number in range(10):
        node.submit(b"%d" % number)
    for _ in range(10):
        silence(node, 1.5, but=(1,))
        step(node, 1)
    assert state_of(node, 1) is State.ACTIVE


def test_idle_replicas_are_asked_for_a_sign_of_life_once_at_a_time() -> None:
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
def test_the_voters_own_stall_blames_nobody(gap: float) -> None:
    node = make_node()
    ticket = node.submit(b"a")
    for replica in node.replicas:
        node.work(replica.index)
    node.tick(gap)
    node.run()
    assert node.engine.status == "ready"
    assert verdict(node, ticket).agreed == 2


def test_a_large_burst_is_nobodys_lag() -> None:
    """What no replica has answered yet is the clients' doing, not a replica's."""
    node = make_node(limits=Limits(hang=HANG, lag=10, lag_bytes=1000))
    tickets = [node.submit(bytes(100)) for _ in range(50)]
    node.tick(0.1)
    assert node.engine.status == "ready"
    node.run()
    assert sorted(node.verdicts) == tickets


@pytest.mark.parametrize("size", [0, 300])
def test_a_replica_that_falls_behind_the_others_is_gone(size: int) -> None:
    node = make_node(limits=Limits(hang=HANG, lag=10 if not size else 10_000, lag_bytes=1000))
    for _ in range(11):
        node.submit(bytes(size))
        step(node, 0, 2)
    node.tick(0.01)
    assert state_of(node, 1) is State.ABSENT
    assert "lag" in node.engine.members[1].reason


def test_an_observer_comes_and_goes_like_the_others() -> None:
    node = make_node(observers=1)
    node.submit(b"a")
    node.run()
    node.crash(3)
    node.submit(b"b")
    node.run()
    node.connect(3)
    node.run()
    assert state_of(node, 3) is State.OBSERVER
    assert node.engine.status == "ready"
    node.check_idle()


def test_events_for_a_replica_that_never_came_are_ignored() -> None:
    node = Node(make_engine())
    for event in (ev.Lost(0, 5, ""), ev.Misbehaved(0, 5, ""), ev.Answered(0, 5, 1, b"")):
        assert node.feed(event) == []
    assert isinstance(node.replicas[0], Replica)


def test_a_read_is_not_held_up_by_one_silent_replica_once_another_votes() -> None:
    node = make_node()
    node.crash(2)
    read = node.submit(b"r", read_only=True)
    node.run_one(1)
    assert read not in node.verdicts
    node.replicas[0].fault = "silent"
    node.connect(2)
    node.run_one(2)
    node.run_one(1)
    node.run_one(2)
    assert isinstance(node.verdicts[read], ev.Release)


def test_a_replica_that_comes_and_goes_cannot_hold_a_read_up() -> None:
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
    assert isinstance(node.verdicts[read], ev.Release)
