"""Counters as evidence: right sums pass, lost and doubled increments are named."""

from __future__ import annotations

from faultinject.soak.evidence import Evidence


def found(evidence: Evidence) -> tuple[int, int, int]:
    return evidence.lost, evidence.twice, evidence.back


def test_right_sums_are_no_complaint() -> None:
    evidence = Evidence()
    for total in (1, 2, 3):
        evidence.own("c1", total)
        evidence.added("c1", 2 * total - 1)
        evidence.added("c2", 2 * total)
    evidence.finish(6, {"c1": 3})
    assert found(evidence) == (0, 0, 0)
    assert (evidence.increments, evidence.shared, evidence.complaints) == (9, 6, [])


def test_an_own_counter_that_stands_still_lost_one() -> None:
    evidence = Evidence()
    evidence.own("c1", 1)
    evidence.own("c1", 1)
    assert found(evidence) == (1, 0, 0)


def test_an_own_counter_that_jumps_had_one_applied_twice() -> None:
    evidence = Evidence()
    evidence.own("c1", 1)
    evidence.own("c1", 3)
    assert found(evidence) == (0, 1, 0)
    assert "c1" in evidence.complaints[0]


def test_a_jump_is_right_where_an_increment_had_no_answer() -> None:
    for total in (2, 3):
        evidence = Evidence()
        evidence.own("c1", 1)
        evidence.own_lost("c1")
        evidence.own("c1", total)
        assert found(evidence) == (0, 0, 0)


def test_a_shared_sum_that_comes_twice_lost_one() -> None:
    evidence = Evidence()
    evidence.added("c1", 1)
    evidence.added("c2", 1)
    assert found(evidence) == (1, 0, 0)


def test_a_shared_counter_that_ends_too_high_had_one_applied_twice() -> None:
    evidence = Evidence()
    evidence.added("c1", 1)
    evidence.finish(2, {})
    assert found(evidence) == (0, 1, 0)
    evidence = Evidence()
    evidence.added("c1", 1)
    evidence.shared_lost += 1
    evidence.finish(2, {})
    assert found(evidence) == (0, 0, 0)


def test_a_shared_counter_that_ends_too_low_lost_what_was_told() -> None:
    evidence = Evidence()
    evidence.added("c1", 1)
    evidence.added("c1", 2)
    evidence.finish(1, {})
    assert found(evidence) == (1, 0, 0)


def test_own_counters_are_looked_at_in_the_end_too() -> None:
    evidence = Evidence()
    evidence.own("c1", 1)
    evidence.own("c2", 1)
    evidence.finish(0, {"c1": 2})
    assert found(evidence) == (1, 1, 0)


def test_a_read_that_goes_back_is_named() -> None:
    evidence = Evidence()
    evidence.read("c1", 5)
    evidence.read("c2", 4)
    evidence.read("c1", 4)
    assert found(evidence) == (0, 0, 1)
