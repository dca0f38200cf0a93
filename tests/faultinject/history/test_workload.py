"""Workloads follow from their seed and their mix."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from faultinject.history.model import ServiceModel
from faultinject.history.workload import (
    KV_MIX,
    STATIC_MIX,
    CallOutcome,
    WorkloadCall,
    check,
    mixed_calls,
    own_calls,
    static_calls,
)
from guests.protocol.message import encode_request


def digest(calls: Iterator[WorkloadCall]) -> str:
    return hashlib.sha256(b"".join(call.request for call in islice(calls, 500))).hexdigest()[:16]


def test_default_workloads_never_change() -> None:
    assert digest(mixed_calls(1)) == "0eb6e1d7989444c3"
    assert digest(static_calls(1)) == "413b20b6060b5220"
    assert digest(mixed_calls(1, mix=KV_MIX)) == "0eb6e1d7989444c3"
    assert digest(static_calls(1, mix=STATIC_MIX)) == "413b20b6060b5220"


def test_calls_are_drawn_by_their_mix() -> None:
    kinds = Counter(call.kind for call in islice(mixed_calls(5, mix={"get": 1, "put": 3}), 4000))
    assert set(kinds) == {"get", "put"}
    assert 2700 < kinds["put"] < 3300
    heads = {call.kind for call in islice(static_calls(5, mix={"head": 0.1}), 100)}
    assert heads == {"head"}


@pytest.mark.parametrize("mix", [{"gett": 1.0}, {"get": 0.0}, {"get": -1.0, "put": 2.0}])
def test_invalid_mix_raises(mix: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a mix has weights of get, put"):
        next(mixed_calls(1, mix=mix))


def test_own_calls_are_drawn_from_the_given_requests() -> None:
    requests = [encode_request("GET", "/a"), encode_request("PUT", "/a", [], b"x")]
    calls = list(islice(own_calls(3, requests), 100))
    assert calls == list(islice(own_calls(3, requests), 100))
    assert {(call.kind, call.request, call.read_only) for call in calls} == {
        ("get", requests[0], True), ("put", requests[1], False),
    }  # fmt: skip


INCREMENT = encode_request("POST", "/kv/n?increment=1", [], b"")


def history(*calls: tuple[int, float, float, int]) -> list[CallOutcome]:
    """Make increments of one counter: total, start, end and place of each (0: no reply)."""
    model, call = ServiceModel(), WorkloadCall("increment", INCREMENT, False)
    replies = {total: model.apply(INCREMENT, total) for total in range(1, 4)}
    return [
        CallOutcome(call, started, ended, seq, reply=replies[total], failure="" if seq else "lost")
        for total, started, ended, seq in calls
    ]


@pytest.mark.parametrize(
    "calls, correct, wrong, unknown",
    [
        (((1, 0, 1, 5), (2, 2, 3, 6)), 2, 0, 0),
        (((2, 0, 3, 6), (1, 1, 2, 5)), 2, 0, 0),
        (((1, 0, 1, 5), (1, 2, 3, 6)), 1, 1, 0),
        (((1, 0, 1, 5), (1, 2, 3, 0), (3, 4, 5, 7)), 2, 0, 0),
        (((1, 0, 1, 5), (1, 2, 3, 0), (2, 4, 5, 7)), 2, 0, 1),
        (((2, 0, 1, 6), (1, 2, 3, 5)), 0, 3, 0),
    ],
    ids=["sequential", "concurrent", "lost", "unknown executed", "unknown not", "not real time"],
)
def test_check_judges_a_history_by_places_and_real_time(
    calls: tuple[tuple[int, float, float, int], ...], correct: int, wrong: int, unknown: int
) -> None:
    found = check(history(*calls))
    assert (found.correct, found.wrong, found.unknown) == (correct, wrong, unknown)
    assert bool(found.complaints) == bool(wrong)
