"""The states of replicas, who counts, and the status of a node."""

from __future__ import annotations

from itertools import product

import pytest

from tests.voter.core.model import make_engine
from voter.core.replica import Cause, Replica, State

TABLE = """
          behind  foreign   restored admitted standing-by observing gone   expelled readmitted retired assigned
absent    learner restoring -        -        -           -         -      expelled absent     retired -
expelled  learner restoring -        -        -           -         -      -        absent     retired -
restoring -       -         learner  -        -           -         absent expelled -          retired -
learner   -       restoring -        active   standby     observer  absent expelled -          retired -
active    -       -         -        active   standby     observer  absent expelled -          retired -
standby   -       -         -        active   standby     observer  absent expelled -          retired -
observer  -       -         -        active   standby     observer  absent expelled -          retired -
retired   -       -         -        -        -           -         -      -        -          -       absent
"""  # noqa: E501 - a table
ROWS = [line.split() for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("state", "cause"), list(product(State, Cause)))
def test_replica_move_follows_the_table(state: State, cause: Cause) -> None:
    row = next(row for row in ROWS[1:] if row[0] == state)
    wanted = row[1 + ROWS[0].index(cause.replace(" ", "-"))]
    replica = Replica(0, "g1", state=state)
    if wanted == "-":
        with pytest.raises(KeyError):
            replica.move(cause, "why")
        assert replica.state is state
    else:
        replica.move(cause, "why")
        assert (replica.state, replica.reason) == (wanted, "why")


@pytest.mark.parametrize(
    ("vote", "states", "active", "live", "status"),
    [
        ("2/3", "AAA", (0, 1, 2), (0, 1, 2), "ready"),
        ("2/3", "A-A", (0, 2), (0, 2), "degraded"),
        ("2/3", "ALA", (0, 2), (0, 2), "degraded"),
        ("2/3", "AlA", (0, 2), (0, 1, 2), "degraded"),
        ("2/3", "A--", (0,), (0,), "refusing"),
        ("2/3", "---", (), (), "refusing"),
        ("2/3", "AA-O", (0, 1), (0, 1, 3), "degraded"),
        ("2/3", "A--O", (0,), (0, 3), "refusing"),
        ("1/1", "A", (0,), (0,), "ready"),
        ("1/1", "-", (), (), "refusing"),
        ("1/3", "A--", (0,), (0,), "degraded"),
        ("2/2", "A-", (0,), (0,), "refusing"),
        ("3/5", "AAA--", (0, 1, 2), (0, 1, 2), "degraded"),
        ("3/5", "AA---", (0, 1), (0, 1), "refusing"),
    ],
)
def test_membership_status_depends_on_active_replicas(
    vote: str, states: str, active: tuple[int, ...], live: tuple[int, ...], status: str
) -> None:
    """One letter a replica: A active, L learner, l live learner, O observer, - absent."""
    members = make_engine(vote, observers=states.count("O")).members
    for replica, letter in zip(members, states, strict=True):
        replica.state = {
            "A": State.ACTIVE, "L": State.LEARNER, "O": State.OBSERVER, "-": State.ABSENT
        }[letter.upper()]  # fmt: skip
        replica.live = letter in "AOl"
    members.refresh()
    assert (members.active, members.live, members.status) == (active, live, status)
    assert members.can_vote == (status != "refusing")
