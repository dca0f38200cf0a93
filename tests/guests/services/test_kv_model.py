"""The store compared with a dict, by hypothesis: any requests, with restores between them."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from guests.protocol.message import Reply
from guests.service import ServiceError
from guests.services.kv import KeyValue
from guests.services.table import ENTRY_COST
from tests.guests.services.calls import ask

CAPACITY = 6 * ENTRY_COST
KEYS = st.sampled_from([b"a", b"b", b"a/b", b"\x00", b"\xff%", b"?&=+ ", "é".encode(), b"kv/"])
VALUES = st.binary(max_size=40) | st.integers(-(2**64), 2**64).map(lambda n: b"%d" % n)


def path(key: bytes) -> str:
    return "/kv/" + quote(key, safe="/")


class StoreMachine(RuleBasedStateMachine):
    """``model`` holds value and version; the store must answer as the model says."""

    @initialize()
    def start(self) -> None:
        self.store = KeyValue(CAPACITY)
        self.model: dict[bytes, tuple[bytes, int]] = {}
        self.version = 0

    def size(self, model: dict[bytes, tuple[bytes, int]]) -> int:
        return sum(len(key) + len(value) + ENTRY_COST for key, (value, _) in model.items())

    def write(self, key: bytes, value: bytes, reply: Reply, success: int) -> None:
        after = self.model | {key: (value, self.version + 1)}
        if self.size(after) > CAPACITY and self.size(after) > self.size(self.model):
            assert reply.status == 507
            return
        assert reply.status == success
        self.model = after
        self.version += 1
        assert reply.header("etag") == f'"{self.version}"'

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        reply = ask(self.store, "PUT", path(key), value)
        self.write(key, value, reply, 204 if key in self.model else 201)

    @rule(key=KEYS, value=VALUES, back=st.integers(0, 2))
    def compare_and_set(self, key: bytes, value: bytes, back: int) -> None:
        current = self.model.get(key, (b"", 0))[1]
        tag = max(0, (current or self.version) - back)
        reply = ask(self.store, "PUT", path(key), value, {"If-Match": f'"{tag}"'})
        if key in self.model and tag == current:
            self.write(key, value, reply, 204)
        else:
            assert reply.status == 412
            assert reply.header("etag") == (f'"{current}"' if key in self.model else None)

    @rule(key=KEYS, value=VALUES)
    def create(self, key: bytes, value: bytes) -> None:
        reply = ask(self.store, "PUT", path(key), value, {"If-None-Match": "*"})
        if key in self.model:
            assert reply.status == 412
        else:
            self.write(key, value, reply, 201)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        reply = ask(self.store, "DELETE", path(key))
        assert reply.status == (204 if key in self.model else 404)
        self.model.pop(key, None)

    @rule(key=KEYS, step=st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5))
    def increment(self, key: bytes, step: int) -> None:
        reply = ask(self.store, "POST", f"{path(key)}?increment={step}")
        old = self.model.get(key, (b"0", 0))[0]
        bounds = range(-(2**63), 2**63)
        is_number = re.fullmatch(rb"-?[0-9]{1,19}", old) and int(old) in bounds
        if is_number and int(old) + step in bounds:
            value = b"%d" % (int(old) + step)
            assert reply.status == 507 or reply.body == value
            self.write(key, value, reply, 200)
        else:
            assert reply.status == 409

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        reply = ask(self.store, "GET", path(key))
        if key in self.model:
            value, version = self.model[key]
            assert (reply.status, reply.body) == (200, value)
            assert reply.header("etag") == f'"{version}"'
        else:
            assert reply.status == 404

    @rule(limit=st.integers(1, 4), prefix=st.none() | KEYS)
    def list_all(self, limit: int, prefix: bytes | None) -> None:
        target = f"/kv/?limit={limit}"
        if prefix is not None:
            target += f"&prefix={quote(prefix, safe='')}"
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            query = f"&after={after}" if after else ""
            page = json.loads(ask(self.store, "GET", target + query).body)
            assert len(page["keys"]) <= limit
            seen += page["keys"]
            after = page["next"]
        expected = [key for key in sorted(self.model) if key.startswith(prefix or b"")]
        assert seen == [quote(key, safe="") for key in expected]

    @rule()
    def restore(self) -> None:
        other = KeyValue(CAPACITY)
        other.restore(b"".join(self.store.snapshot()))
        assert other.digest() == self.store.digest()
        self.store = other

    @invariant()
    def store_equals_model(self) -> None:
        if hasattr(self, "store"):
            assert self.store.table.entries == self.model
            assert self.store.table.keys == sorted(self.model)
            assert self.store.table.size == self.size(self.model)
            assert self.store.table.version == self.version


TestStoreMachine = StoreMachine.TestCase


def some_state() -> bytes:
    store = KeyValue()
    for key in (b"a", b"b", b"\xff\x00"):
        ask(store, "PUT", path(key), key * 5)
    return b"".join(store.snapshot())


STATE = some_state()


@given(st.integers(0, len(STATE)), st.binary(max_size=12), st.integers(0, 12))
@example(at=len(STATE), insert=b"\0", drop=0)
@example(at=0, insert=b"", drop=12)
def test_damaged_state_is_refused_or_valid(at: int, insert: bytes, drop: int) -> None:
    damaged = STATE[:at] + insert + STATE[at + drop :]
    store = KeyValue()
    ask(store, "PUT", "/kv/old", b"kept")
    before = store.digest()
    try:
        store.restore(damaged)
    except ServiceError:
        assert store.digest() == before
        assert ask(store, "GET", "/kv/old").body == b"kept"
    else:
        assert b"".join(store.snapshot()) == (damaged or b"".join(KeyValue().snapshot()))


@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_are_refused_as_a_state(data: bytes) -> None:
    with pytest.raises(ServiceError):
        KeyValue().restore(data)
