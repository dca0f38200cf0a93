"""The vote: which policies can be, and how ballots are counted."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voter.core.vote import LOST, PENDING, WON, Policy, PolicyError, count


@pytest.mark.parametrize("text", ["1/1", "1/3", "2/2", "2/3", "3/5", "3/4", "64/64", "1/64"])
def test_policies_that_can_be(text: str) -> None:
    assert str(Policy.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "4/3",
        "0/3",
        "0/0",
        "2/4",
        "2/5",
        "65/65",
        "1/65",
        "-1/3",
        "2",
        "2/",
        "/3",
        "a/b",
        "",
        "2/3/4",
    ],
)
def test_policies_that_cannot_be_are_refused_with_a_reason(text: str) -> None:
    with pytest.raises(PolicyError, match="vote"):
        Policy.parse(text)


def test_a_policy_where_two_replies_could_win_says_what_to_write() -> None:
    with pytest.raises(PolicyError, match="use 1/4 or at least 3/4"):
        Policy.parse("2/4")


@pytest.mark.parametrize(
    ("text", "compares"),
    [("1/1", False), ("1/2", False), ("1/3", False), ("2/3", True), ("3/5", True)],
)
def test_only_a_majority_convicts(text: str, compares: bool) -> None:
    assert Policy.parse(text).compares is compares


@pytest.mark.parametrize(
    ("ballots", "result"),
    [
        ("", PENDING),
        ("A", PENDING),
        ("AA", WON),
        ("AB", PENDING),
        ("ABA", WON),
        ("ABC", LOST),
    ],
)
def test_two_of_three(ballots: str, result: str) -> None:
    cast = {index: ballot.encode() for index, ballot in enumerate(ballots)}
    assert count(cast, (0, 1, 2), 2)[0] == result


def test_the_winner_is_told() -> None:
    assert count({0: b"A", 1: b"B", 2: b"B"}, (0, 1, 2), 2) == (WON, b"B")


def test_an_empty_reply_is_a_reply() -> None:
    assert count({0: b"", 1: b""}, (0, 1, 2), 2) == (WON, b"")


def test_ballots_of_others_do_not_count() -> None:
    assert count({0: b"A", 3: b"A"}, (0, 1), 2) == (PENDING, None)
    assert count({0: b"A", 3: b"A"}, (0,), 2) == (LOST, None)
    assert count({}, (), 1) == (LOST, None)


values = st.sampled_from([b"", b"A", b"B", b"C"])


@given(
    electors=st.integers(0, 5),
    need=st.integers(1, 5),
    cast=st.dictionaries(st.integers(0, 6), values, max_size=7),
)
def test_lost_means_that_nothing_that_may_come_can_win(
    electors: int, need: int, cast: dict[int, bytes]
) -> None:
    """Against a count by trying all that the others could still say."""
    names = range(electors)
    waiting = [index for index in names if index not in cast]

    def wins(ballots: dict[int, bytes]) -> set[bytes]:
        said = [ballots[index] for index in names if index in ballots]
        return {value for value in said if said.count(value) >= need}

    result, value = count(cast, names, need)
    now = wins(cast)
    later = any(
        wins(cast | dict(zip(waiting, rest, strict=True)))
        for rest in product([b"", b"A", b"B", b"C", b"D"], repeat=len(waiting))
    )
    if now:
        assert result == WON
        assert value in now
    else:
        assert result == (PENDING if later else LOST)
        assert value is None


@given(st.integers(0, 9), st.integers(0, 9))
def test_at_most_one_value_can_win_under_any_policy_that_compares(need: int, of: int) -> None:
    try:
        policy = Policy(need, of)
    except PolicyError:
        return
    assert policy.compares == (2 * need > of and need > 1)
    assert policy.compares or need == 1
