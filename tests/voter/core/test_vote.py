"""The vote: which policies are accepted, and how ballots are counted."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.errors import raises
from voter.core.vote import LOST, PENDING, WON, Policy, PolicyError, count


@pytest.mark.parametrize("text", ["1/1", "1/3", "2/2", "2/3", "3/5", "3/4", "64/64", "1/64"])
def test_policy_parse_accepts_safe_policies(text: str) -> None:
    assert str(Policy.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [("4/3", "from 1 to n"), ("0/3", "from 1 to n"), ("0/0", "from 1 to n"),
     ("65/65", "at most 64"), ("1/65", "at most 64"),
     ("2/4", "use 1/4 or at least 3/4"), ("2/5", "could both win"),
     *((text, "write it as m/n") for text in ("-1/3", "2", "2/", "/3", "a/b", "", "2/3/4"))],
)  # fmt: skip
def test_policy_parse_rejects_with_a_reason_when_impossible_or_unsafe(
    text: str, reason: str
) -> None:
    with raises("TV0206", match=reason):
        Policy.parse(text)


values = st.sampled_from([b"", b"A", b"B", b"C"])


@given(
    electors=st.integers(0, 5),
    need=st.integers(1, 5),
    cast=st.dictionaries(st.integers(0, 6), values, max_size=7),
)
def test_count_agrees_with_trying_all_remaining_ballots(
    electors: int, need: int, cast: dict[int, bytes]
) -> None:
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
def test_policy_compares_only_if_m_is_more_than_half(need: int, of: int) -> None:
    try:
        policy = Policy(need, of)
    except PolicyError:
        return
    assert policy.compares == (2 * need > of and need > 1)
    assert policy.compares or need == 1
