"""Patterns: as Python's for what both know, and bounded where Python's are not."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deploy.monitor import patterns
from deploy.monitor.patterns import Pattern, PatternError, PatternTimeout, deadline
from deploy.monitor.syntax import LONGEST, parse

_PLACES = (r"\b", "^", "$", r"\B", r"\A")
_ATOMS = st.sampled_from(
    ["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\W", r"\x61", r"\.", "[a-c0-]", r"[\s]", *_PLACES]
)
_REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?"])


def _repeat(part: str, sign: str) -> str:
    return part if part in _PLACES else part + sign


_PATTERNS = st.recursive(
    st.builds(_repeat, _ATOMS, _REPEATS),
    lambda inner: st.one_of(
        st.builds("".join, st.lists(inner, min_size=1, max_size=4)),
        st.builds("(?:{}|{}){}".format, inner, inner, _REPEATS),
        st.builds("({}){}".format, inner, _REPEATS),
    ),
    max_leaves=8,
)
_TEXTS = st.text(alphabet="abcAB \n.1", max_size=12).map(str.encode)


@given(_PATTERNS, _TEXTS, st.sampled_from(["", "(?i)", "(?s)", "(?i)(?s)"]))
@example("a$", b"a", "")
@example(r"^\B$", b"", "")
def test_pattern_matches_what_python_matches(text: str, data: bytes, flags: str) -> None:
    # Python's $ also matches before a last line end, and \B nowhere in an empty text.
    python = "".join(f"(?{flag[2]})" for flag in re.findall(r"\(\?.\)", flags))
    written = text.replace("$", r"\Z")
    if rb"\B" in text.encode() and not data:
        return
    expected = re.search((python + written).encode(), data) is not None
    assert Pattern(flags + text).search(data, deadline(60)) is expected


@pytest.mark.parametrize(
    ("text", "data", "found"),
    [
        (r"\.\./", b"/files/../secret", True),
        (r"\.\./", b"/files/..", False),
        (r"(?i)UNION\s+SELECT", b"id=1 union \t select", True),
        (r"\x00\xff", b"a\x00\xffb", True),
        (r"[\]\-]", b"-", True),
        (r"\bor\b", b"a or b", True),
        (r"\bor\b", b"color", False),
        (r"^/kv/[a-z]{1,8}$", b"/kv/colour", True),
        (r"^/kv/[a-z]{1,8}$", b"/kv/colour/", False),
        (r"a|b|", b"", True),
    ],
)
def test_pattern_of_an_attack(text: str, data: bytes, found: bool) -> None:
    assert Pattern(text).search(data, deadline(60)) is found


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("(a+)+$", b"a" * 1_000_000 + b"b"),
        ("(?:.*a){12}$", b"z" * 1_000_000),
        ("(.*)x(.*)y", b"x" * 1_000_000),
        ("(a|aa|a*)*c", b"a" * 1_000_000),
    ],
)
def test_pattern_that_python_cannot_decide_takes_one_pass(text: str, data: bytes) -> None:
    began = time.thread_time()
    assert not Pattern(text).search(data, deadline(60))
    assert time.thread_time() - began < 5


def test_search_that_builds_too_many_states_ends_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = __import__("random").Random(1)
    data = bytes(chance.choice(b"ab") for _ in range(200_000))
    pattern = Pattern("a.{100}.*c.{100}$" + "a.{100}")
    began = time.thread_time()
    with pytest.raises(PatternTimeout):
        pattern.search(data, deadline(0.05))
    assert time.thread_time() - began < 0.5
    monkeypatch.setattr(patterns, "MOST_STATES", 50)
    few = Pattern("a.{6}b$")
    assert few.search(data[:3000] + b"axxxxxxb", deadline(60)), (
        "states that were dropped are rebuilt"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("a" * (LONGEST + 1), f"the limit is {LONGEST}"),
        ("(a", r"a \( without its \), at character 3"),
        ("a)", r"a \) without its \("),
        ("*a", r"a \* without something"),
        ("a**", "one repetition directly after another"),
        ("a{2,1}", "most is below"),
        ("a{999}", "more than 255"),
        ("a{x}", "begins no repetition"),
        ("a{2", "without its }"),
        ("[a", r"a \[ without its \]"),
        ("[z-a]", "end is before"),
        (r"(a)\1", r"\\1 has no meaning"),
        ("(?=a)", "only"),
        (r"\x4", "hexadecimal"),
        ("ä", "not ASCII"),
        (r"\b*", "cannot be repeated"),
        ("(((a{255}){255}){255})", "too large"),
        ("(" * 60 + "a" + ")" * 60, "inside each other"),
    ],
)
def test_bad_pattern_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(PatternError, match=problem):
        Pattern(text)
    with pytest.raises(PatternError):
        parse(text)
