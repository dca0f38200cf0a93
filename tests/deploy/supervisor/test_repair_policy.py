"""When guests are repaired, and how often."""

from __future__ import annotations

import pytest

from deploy.supervisor.repair_policy import (
    FLAP_LIMIT,
    FLAP_WINDOW,
    GRACE,
    LIMIT,
    STABLE,
    VOTER_WARMUP,
    FlapCounter,
    RepairPolicy,
    ReplicaView,
    diagnose,
    is_flapping,
    select_repairs,
)


def view(**changes: object) -> ReplicaView:
    values = {"vm": "ready", "replica": "active", "reason": "votes", "since": 0.0} | changes
    return ReplicaView(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "healthy",
    [
        view(),
        view(replica="learner"),
        view(replica="restoring", since=100.0),
        view(replica="absent", since=GRACE / 2),
        view(replica=None, since=100.0),
        view(replica="absent", since=GRACE, voter_age=VOTER_WARMUP / 2),
        view(replica="learner", flaps=FLAP_LIMIT - 1),
        view(replica="learner", flaps=FLAP_LIMIT, fault=True),
        view(vm="booting", replica="absent", since=100.0),
        view(vm="restoring", replica="expelled"),
        view(vm="dead", replica="absent", fault=True),
        view(vm="paused", fault=True, since=100.0),
        view(vm="paused", since=GRACE / 2),
        view(replica="expelled", reason="dissent", fault=True),
    ],
)
def test_diagnose_is_none_for_a_healthy_guest_or_an_active_fault(healthy: ReplicaView) -> None:
    assert diagnose(healthy) is None


@pytest.mark.parametrize(
    "failed,cause",
    [
        (view(vm="dead", replica="absent"), "dead"),
        (view(vm="paused", since=GRACE), "paused"),
        (view(replica="expelled", reason="dissent"), "dissent"),
        (view(replica="absent", reason="hang", since=GRACE), "hang"),
        (view(replica="absent", reason="gone", since=GRACE, voter_age=VOTER_WARMUP), "gone"),
        (view(vm="dead", replica="absent", voter_age=0.0), "dead"),
        (view(flaps=FLAP_LIMIT, reason="restarted"), f"{FLAP_LIMIT} times"),
    ],
)
def test_diagnose_names_the_cause_of_a_failed_guest(failed: ReplicaView, cause: str) -> None:
    assert cause in (diagnose(failed) or "")


def test_first_repair_is_immediate_and_each_further_one_waits_longer() -> None:
    policy = RepairPolicy()
    now, waits = 0.0, []
    while not policy.abandoned:
        waits.append(policy.delay(now))
        now += waits[-1]
        policy.begin(now)
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert len(waits) == LIMIT
    assert policy.delay(now + 1e9) == float("inf")
    policy.reset()
    assert policy.delay(now) == 0.0


def test_policy_starts_from_zero_after_stable_voting() -> None:
    policy = RepairPolicy()
    for _ in range(LIMIT - 1):
        policy.begin(0.0)
    policy.observe(active=True, now=100.0)
    policy.observe(active=False, now=100.0 + STABLE)  # it left the vote: not stable
    policy.observe(active=True, now=101.0 + STABLE)
    assert policy.consecutive == LIMIT - 1
    policy.observe(active=True, now=101.0 + 2 * STABLE)
    assert policy.consecutive == 0
    assert policy.repairs == LIMIT - 1


@pytest.mark.parametrize(
    ("wanted", "in_progress", "active", "selected"),
    [
        ({"g1": 1.0, "g3": 5.0}, [], 3, ["g3"]),
        ({"g1": 1.0, "g3": 5.0}, ["g2"], 3, []),
        ({"g1": 1.0, "g3": 5.0}, ["g2"], 0, ["g3", "g1"]),
        ({"g5": 9.0}, ["g4"], 2, ["g5"]),
    ],
)
def test_one_guest_is_repaired_at_a_time_while_a_majority_votes(
    wanted: dict[str, float], in_progress: list[str], active: int, selected: list[str]
) -> None:
    assert select_repairs(wanted, in_progress, active=active, need=3) == selected


def test_flaps_count_within_the_window_until_reset() -> None:
    flaps = FlapCounter()
    for second in range(2 * FLAP_LIMIT):
        flaps.record(float(second))
    assert flaps.count(2.0 * FLAP_LIMIT) == FLAP_LIMIT
    assert is_flapping(view(flaps=flaps.count(2.0 * FLAP_LIMIT)))
    assert flaps.count(FLAP_WINDOW + 2 * FLAP_LIMIT - 2.5) == 2
    flaps.reset()
    assert flaps.count(2.0 * FLAP_LIMIT) == 0
