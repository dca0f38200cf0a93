"""Workloads follow from their seed and their mix."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from faultinject.history.workload import KV_MIX, STATIC_MIX, WorkloadCall, mixed_calls, static_calls

__all__: list[str] = []


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
