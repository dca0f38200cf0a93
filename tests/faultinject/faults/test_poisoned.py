"""The planted bug: kv's replies until it is triggered, then wrong ones, equal in all replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from faultinject.faults.common_causes import poison_request
from faultinject.services import PLANTED
from faultinject.services.poisoned import CRASHES, LIES, SIGN, STATUS
from guests.answer import answer
from guests.protocol.message import encode_request
from guests.service import Context, Service, load
from guests.services.kv import CHECK_REQUESTS, KeyValue

POISONED = load(str(PLANTED["poisoned"]))
ROOT = Path(__file__).resolve().parents[3]


def ask(service: Service, seq: int, method: str, target: str, body: bytes = b"") -> bytes:
    request = encode_request(method, target, (), body)
    return answer(service, request, Context(seq, 0, bytes(8), "test"))


def test_replies_equal_those_of_kv_until_the_bug_is_triggered() -> None:
    ours, right = POISONED(), KeyValue()
    for seq, (method, target, body, *_) in enumerate(CHECK_REQUESTS):
        assert ask(ours, seq, method, target, body) == ask(right, seq, method, target, body)
    assert b"".join(ours.snapshot()) == b"".join(right.snapshot())


def test_triggered_bug_makes_every_reply_wrong_in_the_same_way() -> None:
    one, two, right = POISONED(), POISONED(), KeyValue()
    calls = [poison_request("poison", 9), *((m, t, b) for m, t, b, *_ in CHECK_REQUESTS)]
    for seq, (method, target, body) in enumerate(calls):
        reply = ask(one, seq, method, target, body)
        assert reply == ask(two, seq, method, target, body)
        assert reply != ask(right, seq, method, target, body)
        assert SIGN.encode() in reply
    assert b"".join(one.snapshot()) == b"".join(right.snapshot())


def test_bug_is_restored_with_the_state() -> None:
    ill, well = POISONED(), POISONED()
    ask(ill, 1, *poison_request("poison", 1))
    well.restore(b"".join(ill.snapshot()))
    assert SIGN.encode() in ask(well, 2, "GET", "/kv/a")
    well.restore(b"")
    assert SIGN.encode() not in ask(well, 3, "GET", "/kv/a")


def test_crash_bug_ends_the_process() -> None:
    code = (
        "from faultinject.services.poisoned import *\n"
        "from guests.protocol.message import Request\n"
        "from guests.service import Context\n"
        "request = Request('PUT', '/kv/a', CRASHES)\n"
        "Poisoned().apply(request, Context(1, 0, bytes(8), 'test'))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == STATUS
    assert poison_request("poison-crash", 1)[2] == CRASHES
    assert poison_request("poison", 1)[2] == LIES
