"""Who counts, and how a node stands."""

from __future__ import annotations

import pytest

from tests.voter.core.model import make_engine
from voter.core.membership import Membership
from voter.core.replica import State


def make(states: str, vote: str = "2/3") -> Membership:
    """One letter a replica: A active, L learner (l: live), O observer, - absent."""
    members = make_engine(vote, observers=states.count("O")).members
    for replica, letter in zip(members, states, strict=True):
        replica.state = {
            "A": State.ACTIVE, "L": State.LEARNER, "O": State.OBSERVER, "-": State.ABSENT
        }[letter.upper()]  # fmt: skip
        replica.live = letter in "AOl"
    members.refresh()
    return members


@pytest.mark.parametrize(
    ("states", "active", "live", "standing"),
    [
        ("AAA", (0, 1, 2), (0, 1, 2), "ready"),
        ("A-A", (0, 2), (0, 2), "degraded"),
        ("ALA", (0, 2), (0, 2), "degraded"),
        ("AlA", (0, 2), (0, 1, 2), "degraded"),
        ("A--", (0,), (0,), "refusing"),
        ("---", (), (), "refusing"),
        ("AA-O", (0, 1), (0, 1, 3), "degraded"),
        ("A--O", (0,), (0, 3), "refusing"),
    ],
)
def test_who_counts(
    states: str, active: tuple[int, ...], live: tuple[int, ...], standing: str
) -> None:
    members = make(states)
    assert (members.active, members.live) == (active, live)
    assert members.status == standing
    assert members.can_vote == (standing != "refusing")


@pytest.mark.parametrize(
    ("vote", "states", "can_vote"),
    [("1/1", "A", True), ("1/1", "-", False), ("1/3", "A--", True), ("2/2", "A-", False),
     ("3/5", "AAA--", True), ("3/5", "AA---", False)],
)  # fmt: skip
def test_m_never_shrinks(vote: str, states: str, can_vote: bool) -> None:
    assert make(states, vote).can_vote is can_vote


def test_members_are_found_by_index() -> None:
    members = make("AAA")
    assert [replica.name for replica in members] == ["g1", "g2", "g3"]
    assert members[1].name == "g2"
