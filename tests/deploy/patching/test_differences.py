"""A reply of a patched copy is compared with the released one: in what respects it differs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.patching.differences import Difference, Kind, Source, compare, json_at
from tests.deploy.patching.messages import difference, reply


@pytest.mark.parametrize(
    "old,new,kinds",
    [
        (reply(200, b"a"), reply(200, b"b"), (Kind.BODY,)),
        (reply(200, b"a"), reply(404, b"a"), (Kind.STATUS,)),
        (reply(500, b"a"), reply(200, b"b"), (Kind.STATUS, Kind.BODY)),
        (reply(200, b"a", etag="1"), reply(200, b"a", etag="2"), (Kind.HEADER,)),
        (reply(200, b"a", etag="1"), reply(200, b"a"), (Kind.HEADER,)),
        (reply(200, b"a"), b"no HTTP", (Kind.BODY,)),
        (reply(200, b"a"), None, (Kind.BODY,)),
    ],
)
def test_kinds_name_what_differs(old: bytes, new: bytes | None, kinds: tuple[Kind, ...]) -> None:
    assert compare(difference(old, new)).kinds == kinds


def test_length_of_the_content_is_no_header_that_differs() -> None:
    assert compare(difference(reply(200, b"a"), reply(200, b"bb"))).headers == ()


def test_reply_that_comes_late_differs_in_latency() -> None:
    same = reply(200, b"a")
    assert compare(difference(same, same, behind=0.9)).kinds == ()
    assert compare(difference(same, same, behind=1.1)).kinds == (Kind.LATENCY,)
    assert compare(difference(same, same, behind=0.3), latency=0.2).kinds == (Kind.LATENCY,)


@pytest.mark.parametrize(
    "source,kind", [("crash", Kind.CRASH), ("digest", Kind.STATE), ("late", Kind.LATENCY)]
)
def test_what_is_no_reply_has_a_kind_of_its_own(source: Source, kind: Kind) -> None:
    assert compare(Difference(kind=source, seq=1, replica="g4", time=0.0)).kinds == (kind,)


def test_cut_replies_with_equal_beginnings_differ_in_their_bodies() -> None:
    same = reply(200, b"a")
    assert compare(difference(same, same, cut=True)).kinds == (Kind.BODY,)


def test_reply_whose_released_one_was_not_kept_differs_in_its_body() -> None:
    found = compare(difference(None, reply(200, b"a")))
    assert (found.kinds, found.old, found.new) == ((Kind.BODY,), None, 200)


def test_places_in_json_bodies_are_named() -> None:
    found = compare(
        difference(
            reply(200, b'{"items": [{"price": 1}, {"price": 2}], "n": 2, "old": true}'),
            reply(200, b'{"items": [{"price": 1}, {"price": 3}], "n": 2, "new": 1}'),
        )
    )
    assert found.paths == ("items.1.price", "new", "old")


def test_number_and_boolean_are_different_json_values() -> None:
    found = compare(difference(reply(200, b'{"a": 1}'), reply(200, b'{"a": true}')))
    assert found.paths == ("a",)


def test_many_places_are_cut_off() -> None:
    old = reply(200, b"[%s]" % b",".join([b"1"] * 100))
    new = reply(200, b"[%s]" % b",".join([b"2"] * 100))
    paths = compare(difference(old, new)).paths
    assert paths is not None
    assert len(paths) == 21 and paths[-1] == "..."


def test_deep_json_is_compared_without_recursion_errors() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    found = compare(difference(reply(200, deep), reply(200, b"[]")))
    assert found.kinds == (Kind.BODY,)
    nested = b"[" * 500 + b"%d" + b"]" * 500
    found = compare(difference(reply(200, nested % 1), reply(200, nested % 2)))
    assert found.paths is not None


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=50))
def test_hostile_bytes_are_compared_without_an_error(old: bytes, new: bytes, ask: bytes) -> None:
    found = compare(Difference(seq=1, replica="g4", time=0.0, request=ask, released=old, other=new))
    assert found.kinds or old == new or b"\r\n\r\n" in old + new


def test_value_at_a_path() -> None:
    document = {"a": [{"b": 1}], "c": None}
    assert json_at(document, "a.0.b") == 1
    assert json_at(document, "c") is None
    assert json_at(document, "") == document
    for path in ("a.1", "a.x", "c.d", "b"):
        with pytest.raises(LookupError):
            json_at(document, path)
