"""When guests are repaired, and how often."""

from __future__ import annotations

import pytest

from deploy.supervisor.repair_policy import (
    FALL_WINDOW,
    FALLS,
    GRACE,
    LIMIT,
    STEADY,
    YOUNG,
    FlapCounter,
    RepairPolicy,
    ReplicaView,
    choose,
    diagnose,
    restless,
)


def sight(**changes: object) -> ReplicaView:
    values = {"vm": "ready", "replica": "active", "reason": "votes", "since": 0.0} | changes
    return ReplicaView(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "seen",
    [
        sight(),
        sight(replica="learner"),
        sight(replica="restoring", since=100.0),
        sight(replica="absent", since=GRACE / 2),
        sight(replica=None, since=100.0),
        sight(replica="absent", since=GRACE, voter_age=YOUNG / 2),
        sight(replica="learner", falls=FALLS - 1),
        sight(replica="learner", falls=FALLS, fault=True),
        sight(vm="booting", replica="absent", since=100.0),
        sight(vm="restoring", replica="expelled"),
        sight(vm="dead", replica="absent", fault=True),
        sight(vm="paused", fault=True),
        sight(replica="expelled", reason="dissent", fault=True),
    ],
)
def test_what_is_well_or_held_by_a_fault_is_left_alone(seen: ReplicaView) -> None:
    assert diagnose(seen) is None


@pytest.mark.parametrize(
    "seen,word",
    [
        (sight(vm="dead", replica="absent"), "dead"),
        (sight(vm="paused"), "paused"),
        (sight(replica="expelled", reason="dissent"), "dissent"),
        (sight(replica="absent", reason="hang", since=GRACE), "hang"),
        (sight(replica="absent", reason="gone", since=GRACE, voter_age=YOUNG), "gone"),
        (sight(vm="dead", replica="absent", voter_age=0.0), "dead"),
        (sight(falls=FALLS, reason="started anew"), f"{FALLS} times"),
    ],
)
def test_what_is_ill_is_put_back_and_why_is_told(seen: ReplicaView, word: str) -> None:
    assert word in (diagnose(seen) or "")


def test_the_first_repair_is_at_once_and_each_further_one_waits_longer() -> None:
    patience = RepairPolicy()
    now, waits = 0.0, []
    while not patience.given_up:
        waits.append(patience.wait(now))
        now += waits[-1]
        patience.begin(now)
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert len(waits) == LIMIT
    assert patience.wait(now + 1e9) == float("inf")


def test_a_guest_that_votes_steadily_starts_afresh() -> None:
    patience = RepairPolicy()
    for _ in range(LIMIT - 1):
        patience.begin(0.0)
    patience.see(active=True, now=100.0)
    patience.see(active=False, now=100.0 + STEADY)  # it fell out again: not steady
    patience.see(active=True, now=101.0 + STEADY)
    assert patience.in_row == LIMIT - 1
    patience.see(active=True, now=101.0 + 2 * STEADY)
    assert patience.in_row == 0
    assert patience.repairs == LIMIT - 1


def test_an_operator_can_have_a_given_up_guest_tried_again() -> None:
    patience = RepairPolicy()
    for _ in range(LIMIT):
        patience.begin(0.0)
    assert patience.given_up
    patience.forgive()
    assert patience.wait(0.0) == 0.0


def test_one_repair_at_a_time_while_the_node_can_vote() -> None:
    ill = {"g1": 1.0, "g3": 5.0}
    assert choose(ill, [], active=3, need=3) == ["g3"]
    assert choose(ill, ["g2"], active=3, need=3) == []


def test_all_at_once_when_there_is_no_majority() -> None:
    assert choose({"g1": 1.0, "g3": 5.0}, ["g2"], active=0, need=2) == ["g3", "g1"]


def test_falls_count_for_a_while_and_until_the_guest_is_put_back() -> None:
    falls = FlapCounter()
    for second in range(2 * FALLS):
        falls.note(float(second))
    assert falls.count(2.0 * FALLS) == FALLS
    assert restless(sight(falls=falls.count(2.0 * FALLS)))
    assert falls.count(FALL_WINDOW + 2 * FALLS - 2.5) == 2
    falls.forget()
    assert falls.count(2.0 * FALLS) == 0


def test_while_one_catches_up_no_other_is_put_back_unless_the_vote_is_lost() -> None:
    assert choose({"g5": 9.0}, ["g4"], active=3, need=3) == []
    assert choose({"g5": 9.0}, ["g4"], active=2, need=3) == ["g5"]
