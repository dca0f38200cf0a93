"""Checkpoints: markers, the vote on digests, the fetch of a state, and what may delay them."""

from __future__ import annotations

import msgspec
import pytest

from tests.voter.core.model import HANG, Node, digest_of
from tests.voter.core.test_engine import make_node, step
from tests.voter.core.test_incarnations import make_checkpoint, silence, state_of
from voter.core import Limits
from voter.core import events as ev
from voter.core.events import Failure
from voter.core.replica import State

OFTEN = Limits(hang=HANG, digest=HANG, marker_every=4, checkpoint_bytes=1000)


def marks(node: Node) -> list[ev.Mark]:
    return [message for message in node.replicas[0].inbox if isinstance(message, ev.Mark)]


def make_slow(node: Node, *indexes: int) -> Node:
    for index in indexes:
        node.replicas[index].slow = True
    return node


def write(node: Node, count: int) -> None:
    """Submit writes that all replicas answer; slow digests stay under way."""
    for number in range(count):
        ticket = node.submit(b"%d" % number)
        while any(replica.inbox for replica in node.replicas):
            step(node, *(replica.index for replica in node.replicas if replica.inbox))
        assert isinstance(node.results[ticket], ev.Release)


def send_digest(node: Node, index: int) -> None:
    node.replicas[index].send_digest()
    while node.replicas[index].outbox:
        node.deliver(index)


def test_marker_is_placed_every_k_requests() -> None:
    node = make_node(limits=Limits(hang=HANG, digest=HANG, marker_every=4))
    for number in range(8):
        node.submit(b"%d" % number, read_only=number % 2 == 0)
    assert len(marks(node)) == 1, "one at a time"
    node.run()
    node.submit(b"more")
    assert len(marks(node)) == 1
    assert marks(node)[0].keeper is None, "the log is not worth a checkpoint"
    node.run()
    node.check_idle()


def test_keepers_take_turns() -> None:
    node = make_node(limits=OFTEN)
    keepers = []
    for number in range(40):
        node.submit(b"%d" % number)
        keepers += [mark.keeper for mark in marks(node) if mark.keeper is not None]
        node.run()
    assert keepers[:4] == [0, 1, 2, 0]
    assert len(node.checkpoints) == len(keepers)


def test_checkpoint_is_the_state_at_the_marker_and_empties_the_log() -> None:
    node = make_node(limits=OFTEN)
    seq = make_checkpoint(node)
    point = node.engine.log.checkpoint
    assert (point.seq, point.digest) == (seq, digest_of(point.state))
    assert node.engine.log.bytes == 0
    assert point.state == node.replicas[0].state


def test_wanted_checkpoint_is_made_however_short_the_log_is() -> None:
    node = make_node()
    node.submit(b"one")
    node.run()
    node.tick(0.1)
    assert not marks(node)
    node.feed(ev.TakeCheckpoint())
    node.tick(0.1)
    (mark,) = marks(node)
    assert mark.keeper is not None
    node.run()
    point = node.engine.log.checkpoint
    assert (point.seq, node.engine.log.bytes) == (mark.seq, 0)
    assert {replica.digest_seq for replica in node.engine.members} == {point.seq}
    node.tick(0.1)
    assert not marks(node), "it is made once"


def test_wanted_checkpoint_waits_for_a_majority() -> None:
    node = make_node()
    node.submit(b"one")
    node.run()
    node.crash(0)
    node.crash(1)
    node.feed(ev.TakeCheckpoint())
    node.tick(0.1)
    assert not marks(node)
    node.connect(0)
    node.run()
    node.tick(0.1)
    (mark,) = marks(node)
    node.run()
    assert node.engine.log.checkpoint.seq == mark.seq


@pytest.mark.parametrize("liar", [0, 1])
def test_wrong_digest_is_a_dissent(liar: int) -> None:
    """Also that of the keeper (g1 is the first)."""
    node = make_node(limits=OFTEN)
    node.replicas[liar].fault = "lie-digest"
    for number in range(12):
        node.submit(b"%d" % number)
        node.run()
    assert state_of(node, liar) is State.EXPELLED
    assert node.engine.log.checkpoint.seq, "another replica kept the state"
    node.heal()
    node.check_idle()


def test_damaged_state_is_found_when_no_reply_shows_it() -> None:
    node = make_node(limits=Limits(hang=HANG, digest=HANG, marker_every=4))
    for number in range(4):
        node.submit(b"%d" % number)
        if number < 3:
            node.run()
    step(node, 0, 1, 2)
    node.replicas[1].state = b"damaged"
    node.run()
    assert state_of(node, 1) is State.EXPELLED
    assert all(isinstance(result, ev.Release) for result in node.results.values())


def test_damaged_state_is_found_within_the_scrub_time_when_idle() -> None:
    node = make_node(limits=Limits(hang=HANG, digest=HANG, scrub=30.0))
    node.submit(b"a")
    node.run()
    node.replicas[1].state = b"damaged"
    waited = 0.0
    while state_of(node, 1) is State.ACTIVE:
        assert waited <= 30.0
        node.tick(0.5)
        node.run()
        waited += 0.5
    assert state_of(node, 1) is State.EXPELLED
    assert waited > 20.0, "not at each tick"


def test_keeper_is_expelled_when_its_state_is_not_the_voted_one() -> None:
    node = make_node(limits=OFTEN)
    node.replicas[0].fault = "lie-state"
    for number in range(8):
        node.submit(b"%d" % number)
        node.run()
    assert state_of(node, 0) is State.EXPELLED
    assert node.engine.log.checkpoint.state == node.replicas[1].state
    node.heal()
    node.check_idle()


def test_state_that_was_not_requested_is_ignored() -> None:
    """Neither before the digest is voted, nor from a replica that is not the keeper."""
    node = make_node(limits=OFTEN)
    for number in range(4):
        node.submit(b"%d" % number)
    seq = marks(node)[0].seq
    for index, replica in enumerate(node.replicas):
        for event in (
            ev.Fetched(index, replica.epoch, seq, b"", digest_of(b"")),
            ev.FetchFailed(index, replica.epoch, seq, "no"),
            ev.Piece(index, replica.epoch, seq, 10),
        ):
            assert node.feed(event) == []
    node.run()
    assert node.checkpoints == [seq]
    assert node.engine.status == "ready"


def test_keeper_stays_active_when_it_cannot_send_its_state() -> None:
    node = make_node(limits=OFTEN)
    for number in range(4):
        node.submit(b"%d" % number)
        while node.replicas[0].inbox and not isinstance(node.replicas[0].inbox[0], ev.Fetch):
            step(node, 0, 1, 2)
    seq = node.replicas[0].inbox.popleft()
    assert isinstance(seq, ev.Fetch)
    node.feed(ev.FetchFailed(0, node.replicas[0].epoch, seq.seq, "too large"))
    assert not node.checkpoints
    make_checkpoint(node)
    node.check_idle()


@pytest.mark.parametrize("when", ["before its digest", "before the fetch", "during the fetch"])
def test_checkpoints_continue_when_the_keeper_dies(when: str) -> None:
    node = make_node(limits=OFTEN)
    for number in range(4):
        node.submit(b"%d" % number)
    step(node, *[1, 2] * 4)
    if when == "before its digest":
        step(node, 1, 2)
    else:
        step(node, *[0] * 5)
        if when == "during the fetch":
            step(node, 1, 2)
            node.feed(
                ev.Piece(0, node.replicas[0].epoch, marks(node)[0].seq if marks(node) else 8, 1)
            )
    node.crash(0)
    node.run()
    make_checkpoint(node)
    node.heal()
    node.check_idle()


@pytest.mark.parametrize("size", [0, 200])
def test_keeper_is_absent_when_the_fetch_is_overdue(size: int) -> None:
    """Each 100 bytes that have arrived extend the deadline by a second."""
    node = make_node(limits=msgspec.structs.replace(OFTEN, digest=3 * HANG, fetch_rate=100))
    node.replicas[0].fault = "withhold"
    write(node, 4)
    silence(node, 5.0)
    node.feed(ev.Piece(0, node.replicas[0].epoch, 8, size))
    silence(node, 0.9 + size / 100)
    assert state_of(node, 0) is State.ACTIVE
    silence(node, 0.3)
    assert state_of(node, 0) is State.ABSENT


@pytest.mark.parametrize("late", ["digest", "state"])
def test_delayed_voter_extends_the_deadlines_of_digest_and_fetch(late: str) -> None:
    node = make_node(limits=OFTEN)
    node.replicas[2].slow = late == "digest"
    node.replicas[0].fault = "withhold" if late == "state" else None
    write(node, 4)
    node.tick(1000)
    node.run()
    assert node.engine.status == "ready"


def test_writes_continue_when_a_keeper_withholds_its_state() -> None:
    node = make_node(
        limits=Limits(
            hang=HANG, digest=HANG, log_bytes=20_000, checkpoint_bytes=1000, marker_every=10**6
        )
    )
    node.replicas[0].fault = "withhold"
    failed = 0
    for number in range(600):
        ticket = node.submit(b"%d" % number)
        node.run()
        failed += isinstance(node.results[ticket], ev.Fail)
        silence(node, 0.1)
    assert failed == 0
    assert state_of(node, 0) is not State.EXPELLED


def test_few_large_writes_call_for_a_checkpoint() -> None:
    """Long before ``marker_every`` requests."""
    node = make_node(limits=Limits(hang=HANG, digest=HANG, log_bytes=100_000))
    for _ in range(100):
        ticket = node.submit(bytes(10_000))
        node.run()
        assert isinstance(node.results[ticket], ev.Release)
    assert node.checkpoints


def test_writes_continue_when_the_state_is_larger_than_the_log_limit() -> None:
    node = make_node(
        limits=Limits(
            hang=HANG, digest=HANG, log_bytes=20_000, marker_every=10, checkpoint_bytes=1000
        )
    )
    make_checkpoint(node)
    node.engine.log.checkpoint.state = bytes(1_000_000)
    for number in range(200):
        ticket = node.submit(b"%d" % number)
        node.run()
        assert isinstance(node.results[ticket], ev.Release)
    assert len(node.checkpoints) > 1


def test_full_log_refuses_writes_and_answers_reads() -> None:
    node = make_node(limits=Limits(hang=HANG, digest=HANG, log_bytes=2000, marker_every=10**6))
    for replica in node.replicas:
        replica.fault = "withhold"
    tickets = [node.submit(b"%d" % number) for number in range(8)]
    failures = [node.results[ticket] for ticket in tickets if ticket in node.results]
    assert failures
    assert all(isinstance(f, ev.Fail) and f.failure == Failure.OVERLOAD for f in failures)
    read = node.submit(b"read", read_only=True)
    node.run()
    assert isinstance(node.results[read], ev.Release)
    node.heal()
    node.check_alive()


def test_unsettled_write_stays_in_the_log() -> None:
    """Two replicas answer a write differently, then send the same digest; the third is slow.

    If the log were truncated at the marker and the third then lost, nobody could settle the write.
    """
    node = make_node(limits=OFTEN)
    tickets = [node.submit(b"%d" % number) for number in range(3)]
    node.replicas[1].fault = "lie"
    step(node, 0, 1)
    node.replicas[1].fault = None
    step(node, 0, 1, 0, 1)
    node.submit(b"last")
    step(node, 0, 1, 0, 1)
    step(node, 0)
    assert not node.checkpoints
    node.crash(2)
    assert isinstance(node.results[tickets[0]], ev.Fail)
    node.heal()
    node.check_idle()


def test_first_reply_policy_skips_a_keeper_with_another_digest() -> None:
    """Under 1/n no replica is expelled for its digest, but its state is not fetched."""
    node = make_node("1/3", limits=OFTEN)
    node.replicas[0].state = b"differs"
    keepers = 0
    for number in range(40):
        node.submit(b"%d" % number)
        step(node, 1)
        keepers += len(marks(node))
        node.run()
    assert keepers > 3, "markers continue"
    assert node.checkpoints


# ----------------------------------------------------------- slow digests


def test_requests_are_answered_while_digests_are_made() -> None:
    node = make_slow(make_node(limits=OFTEN), 0, 1, 2)
    write(node, 10)
    assert all(replica.late_digest for replica in node.replicas)
    assert not node.checkpoints
    marker = node.engine.checkpoints.marker
    assert marker is not None
    send_digest(node, 1)
    write(node, 10)
    send_digest(node, 0)
    node.run_one(0)
    assert node.checkpoints == [marker.seq], "the keeper and another replica agree"
    write(node, 10)
    assert not node.engine.checkpoints.marker, "one digest is still to come"
    send_digest(node, 2)
    write(node, 1)
    assert node.engine.checkpoints.marker
    node.run()
    node.check_idle()


def test_keeper_sends_its_state_when_its_digest_comes_last() -> None:
    node = make_slow(make_node(limits=OFTEN), 0)
    write(node, 12)
    assert not node.checkpoints
    send_digest(node, 0)
    node.run_one(0)
    assert len(node.checkpoints) == 1
    node.check_idle()


def test_late_wrong_digest_is_a_dissent() -> None:
    node = make_slow(make_node(limits=OFTEN), 1)
    write(node, 4)
    node.replicas[1].fault = "lie-digest"
    write(node, 4)
    send_digest(node, 1)
    assert state_of(node, 1) is State.EXPELLED
    node.heal()
    node.check_idle()


@pytest.mark.parametrize("idle", [True, False])
def test_replica_is_absent_when_its_digest_is_overdue(idle: bool) -> None:
    """Pings and replies do not extend the deadline.  The state may be as large as the log."""
    limits = Limits(
        hang=HANG, digest=HANG, marker_every=4, checkpoint_bytes=1000, restore_rate=2000
    )
    node = make_slow(make_node(limits=limits), 2)
    node.replicas[2].fault = "no-digest"
    write(node, 8)
    size = len(node.engine.log.checkpoint.state) + node.engine.log.bytes
    patience = HANG + size / 2000 - 0.5
    for _ in range(int(patience / 0.1) - 1):
        silence(node, 0.1) if idle else write(node, 1)
        node.tick(0.0 if idle else 0.1)
    assert state_of(node, 2) is State.ACTIVE
    for _ in range(25):
        silence(node, 0.1) if idle else write(node, 1)
        node.tick(0.0 if idle else 0.1)
    assert state_of(node, 2) is State.ABSENT
    assert "digest" in node.engine.members[2].reason
    node.heal()
    node.check_idle()


def test_writes_continue_when_a_replica_withholds_its_digest() -> None:
    """The log fills up: the next marker is placed although a digest of the last one is to come.

    When the replica sends its digest at the new marker, the old one is forgotten.
    """
    limits = Limits(
        hang=HANG,
        digest=HANG,
        log_bytes=20_000,
        checkpoint_bytes=1000,
        marker_every=20,
        restore_rate=1000,
    )
    node = make_slow(make_node(limits=limits), 2)
    write(node, 21)
    assert len(node.checkpoints) == 1
    for _ in range(30):
        write(node, 1)
        node.tick(0.1)
    assert len(node.checkpoints) > 1
    assert len(node.engine.members[2].markers) == 2
    send_digest(node, 2)
    assert not node.engine.members[2].markers
    assert node.engine.pending == 0
    node.run()
    node.check_idle()


def test_digest_that_was_not_requested_expels() -> None:
    for seq in (0, 4, 8, 9):
        node = make_node(limits=OFTEN)
        write(node, 4)
        node.feed(ev.Digested(1, node.replicas[1].epoch, seq, digest_of(b"")))
        assert state_of(node, 1) is State.EXPELLED


def test_replica_that_cannot_make_a_digest_is_restored() -> None:
    node = make_slow(make_node(limits=OFTEN), 1)
    write(node, 4)
    seq = node.engine.members[1].markers[0][0]
    node.replicas[1].late_digest = None
    node.feed(ev.RefusedOrder(1, node.replicas[1].epoch, seq, "the process ended"))
    assert state_of(node, 1) is State.ABSENT
    node.run()
    node.connect(1)
    assert state_of(node, 1) is State.RESTORING
    node.heal()
    node.check_idle()


def test_marker_is_dropped_when_all_links_are_lost() -> None:
    node = make_slow(make_node(limits=OFTEN), 0, 1, 2)
    write(node, 4)
    for index in range(3):
        node.lose(index)
        assert not node.engine.members[index].markers
    assert node.engine.pending == 0
    node.heal()
    node.check_idle()
    node.check_alive()


def test_deadline_of_a_digest_begins_when_all_before_it_is_answered() -> None:
    """A replica may have much to catch up with."""
    node = make_node(limits=Limits(hang=HANG, digest=HANG, marker_every=4))
    for number in range(4):
        node.submit(b"%d" % number)
    step(node, *[0, 2] * 5)
    for _ in range(3):
        node.tick(0.4 * HANG)
        node.run_one(0)
        node.run_one(2)
        if node.replicas[1].inbox:
            step(node, 1)
    assert node.engine.members[1].markers
    assert state_of(node, 1) is State.ACTIVE
    node.run()
    node.check_idle()
