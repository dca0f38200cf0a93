"""The table of states: every state with every cause."""

from __future__ import annotations

from itertools import product

import pytest

from voter.core.replica import TRANSITIONS, Cause, Replica, State

TABLE = """
            behind   foreign    restored admitted observing gone    convicted  pardoned
absent      learner  restoring  -        -        -         -       expelled   absent
expelled    learner  restoring  -        -        -         -       -          absent
restoring   -        -          learner  -        -         absent  expelled   -
learner     -        restoring  -        active   observer  absent  expelled   -
active      -        -          -        -        -         absent  expelled   -
observer    -        -          -        -        -         absent  expelled   -
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("state", "cause"), list(product(State, Cause)))
def test_each_state_with_each_cause(state: State, cause: Cause) -> None:
    row = next(row for row in ROWS[1:] if row[0] == state)
    wanted = row[1 + ROWS[0].index(cause)]
    replica = Replica(0, "g1")
    replica.state = state
    if wanted == "-":
        with pytest.raises(KeyError):
            replica.move(cause, "why")
        assert replica.state is state
    else:
        replica.move(cause, "why")
        assert replica.state == wanted
        assert replica.reason == "why"


def test_the_table_names_every_state_and_cause() -> None:
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(State)
    assert {cause for _, cause in TRANSITIONS} == set(Cause)


def test_every_state_can_be_left_and_reached() -> None:
    reached, before = {State.ABSENT}, set[State]()
    while reached != before:
        before = set(reached)
        reached |= {after for (state, _), after in TRANSITIONS.items() if state in reached}
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


def test_a_lost_link_leaves_nothing_behind() -> None:
    replica = Replica(0, "g1")
    replica.epoch, replica.live, replica.cursor, replica.pinged = 5, True, 7, True
    replica.outstanding.append((1, 10))
    replica.outstanding_bytes = 10
    replica.suspect, replica.dissents = True, 2
    replica.reset()
    assert not (replica.epoch or replica.live or replica.cursor or replica.pinged)
    assert not (replica.outstanding or replica.outstanding_bytes)
    assert replica.suspect, "distrust outlives the link"
    assert replica.dissents == 2
