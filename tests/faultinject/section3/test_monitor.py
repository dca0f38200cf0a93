"""The experiment `monitor`: its attacks, its predictions, and trials on real guests."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from deploy.monitor.requests import RequestJudge, SeenRequest
from deploy.monitor.rule_file import parse_rules
from faultinject.experiment.design import Outcome, plan_trials
from faultinject.section3 import monitor
from faultinject.section3.monitor import EXPERIMENT, EXPLOITS, RULES, VARIANTS, Call
from faultinject.services.archive import Archive, is_unsafe
from guests.answer import answer
from guests.context import Context
from guests.protocol.message import Reply, encode_request
from guests.service import state_digest

ALL_VARIANTS = [(flaw, call) for flaw, calls in VARIANTS.items() for call in calls]


def reply(service: Archive, call: Call) -> Reply:
    request = encode_request(call.method, call.target, (), call.body)
    return Reply.decode(answer(service, request, Context(1, 0, bytes(8), "test")))


def matched(call: Call) -> list[str]:
    judge = RequestJudge(parse_rules(RULES, "rules").request)
    request = encode_request(call.method, call.target, (), call.body)
    return [match.rule.name for match in judge.judge(SeenRequest(1, 0.0, "", False, request))]


@pytest.mark.parametrize(("flaw", "call"), EXPLOITS.items())
def test_exploit_is_unsafe_and_is_known_to_the_rule_of_its_flaw(flaw: str, call: Call) -> None:
    service = Archive()
    assert is_unsafe(reply(service, call).body)
    assert is_unsafe(reply(service, call).body), "also when it is repeated"
    assert matched(call) == [flaw]


@pytest.mark.parametrize(("flaw", "call"), ALL_VARIANTS)
def test_variant_exploits_the_same_flaw(flaw: str, call: Call) -> None:
    assert is_unsafe(reply(Archive(), call).body)
    assert call != EXPLOITS[flaw]


def test_there_are_15_variants_and_the_rules_miss_9() -> None:
    assert len({call for _, call in ALL_VARIANTS}) == 15
    assert sum(not matched(call) for _, call in ALL_VARIANTS) == 9
    predicted = {flaw: EXPERIMENT.find(f"variants-{flaw}").predicted for flaw in VARIANTS}
    assert predicted == {"traversal": 0.4, "overflow": 0.6, "injection": 0.8}


def test_benign_requests_are_safe_and_only_large_amounts_match_a_rule() -> None:
    draw, service = random.Random(1), Archive()
    for _ in range(3000):
        call = monitor.benign(draw, large=False)
        assert not is_unsafe(reply(service, call).body)
        assert matched(call) == []
    found = [monitor.benign(draw, large=True) for _ in range(5000)]
    for call in found:
        assert matched(call) == (["overflow"] if len(call.body) == 10 else [])
    assert any(len(call.body) == 10 for call in found)


def test_the_archive_restores_its_snapshot() -> None:
    service, other = Archive(), Archive()
    assert reply(service, Call("POST", "/points/ann", b"7")).body == b"7\n"
    assert reply(service, Call("POST", "/points/ann", b"-7")).status == 400
    assert reply(service, Call("GET", "/search?q=doc-1")).body == b'["public/doc-1"]\n'
    assert reply(service, Call("GET", "/search?q='")).status == 400
    other.restore(b"".join(service.snapshot()))
    assert state_digest(other.snapshot()) == service.digest()


@pytest.mark.long
@pytest.mark.vm
async def test_one_trial_of_each_kind_on_real_guests(scratch: Path) -> None:
    names = ("inline", "after-10-ms", "variants-injection", "benign")
    trials = {trial.arm: trial for trial in plan_trials(EXPERIMENT, 1, share=0.0001, arms=names)}
    found: dict[str, Outcome] = {}
    async with EXPERIMENT.open_rig(scratch / "r", lambda _: None) as rig:
        assert rig.facts["guest"] == "QEMU through libvirt"
        for name in names:
            async with asyncio.timeout(120):
                found[name] = await rig.run(trials[name])
    assert not any(outcome.excluded for outcome in found.values()), found
    assert not found["inline"].event
    assert found["inline"].values["unsafe_replies"] == 0
    assert found["after-10-ms"].values["unsafe_replies"] >= 1
    assert 0.01 <= found["after-10-ms"].values["stop_s"] < 10
    assert found["variants-injection"].event
    assert not found["benign"].event
