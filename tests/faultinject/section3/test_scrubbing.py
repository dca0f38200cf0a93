"""The experiment `scrubbing`: its plan, its service, and one trial of each kind on real guests."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from faultinject.experiment.design import plan_trials
from faultinject.section3.scrubbing import EXPERIMENT, GAPS, PERIOD, draw_plan
from faultinject.services import frail, latent
from guests.answer import answer
from guests.context import Context
from guests.protocol.message import Reply, encode_request


def survives(seed: int, gap: int) -> bool:
    """Whether the first hit is still there at the second one."""
    plan = draw_plan(seed, gap)
    return all(place != plan.first for _, place in plan.replacements)


@pytest.mark.parametrize("gap", GAPS)
def test_plan_removes_the_first_hit_as_often_as_predicted(gap: float) -> None:
    times = round(gap * PERIOD)
    share = sum(survives(seed, times) for seed in range(4000)) / 4000
    assert abs(share - max(0.0, 1 - gap)) < 0.03


@pytest.mark.parametrize("seed", range(20))
def test_plan_replaces_each_place_once_in_a_period(seed: int) -> None:
    plan = draw_plan(seed, 3 * PERIOD)
    assert plan.first != plan.second
    for place in range(3):
        times = [time for time, each in plan.replacements if each == place]
        assert len(times) == 3
        assert {later - sooner for sooner, later in itertools.pairwise(times)} == {PERIOD}


def get(service: latent.Latent, method: str, target: str, body: bytes = b"") -> Reply:
    request = encode_request(method, target, [], body)
    return Reply.decode(answer(service, request, Context(1, 0, bytes(8), "test")))


def test_switch_changes_one_reply_and_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (latent.HEAD, latent.TAIL, latent.MODE) == (frail.HEAD, frail.TAIL, frail.MODE)
    service, page = latent.Latent(), bytearray(4096)
    monkeypatch.setattr(latent, "_page", page)
    get(service, "PUT", latent.PROBE, b"right")
    get(service, "PUT", "/kv/other", b"value")
    before = service.digest()
    assert get(service, "GET", latent.PROBE).body == b"right"
    page[latent.MODE] = 1
    assert get(service, "GET", latent.PROBE).body == latent.WRONG
    assert get(service, "GET", "/kv/other").body == b"value"
    assert service.digest() == before


def test_arms_have_as_many_trials_as_the_issue_asks_for() -> None:
    trials = {arm.name: arm.trials for arm in EXPERIMENT.arms}
    assert [trials[f"gap-{gap:g}"] for gap in GAPS] == [300] * 6
    assert trials["never"] + trials["reactive"] == 600
    assert trials["switch"] == 400


@pytest.mark.long
@pytest.mark.vm
def test_one_trial_of_each_kind_on_real_guests(scratch: Path) -> None:
    async def run() -> dict[str, tuple[bool, str]]:
        found = {}
        async with EXPERIMENT.open_rig(scratch / "r", print) as rig:
            for trial in plan_trials(EXPERIMENT, 3, share=0.001):
                if trial.arm in ("gap-0.1", "gap-1.2", "never", "reactive", "switch", "state"):
                    outcome = await rig.run(trial)
                    found[trial.arm] = outcome.event, outcome.excluded
        return found

    (scratch / "r").mkdir()
    found = asyncio.run(run())
    assert found.pop("switch")[0] is False
    assert found.pop("gap-0.1")[1] == ""
    assert found == {
        "gap-1.2": (False, ""), "never": (True, ""), "reactive": (True, ""), "state": (True, ""),
    }  # fmt: skip
