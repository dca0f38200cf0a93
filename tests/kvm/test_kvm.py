"""The record of ``./run test --kvm``, and when its steps are reached; without any guest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import load
from tests.kvm import steps
from tests.kvm.__main__ import MARK, main, read_step
from tests.kvm.record import Record, Step
from tests.kvm.steps import Bench, Facts, StepFailed, run_steps

RECORD = Record(place="host", commit="abc", began="2026-11-30T00:00:00+00:00")


def ok(_bench: Bench) -> Facts:
    return {"seen": 1}


def fails(_bench: Bench) -> Facts:
    raise StepFailed("the guest does not vote")


def starts(bench: Bench) -> Facts:
    bench.up = True
    return {}


@pytest.mark.parametrize(
    ("functions", "results"),
    [
        ((ok, starts, ok), ("ok", "ok", "ok")),
        ((fails, starts, ok), ("failed", "ok", "ok")),
        ((ok, fails, ok), ("ok", "failed", "not reached")),
    ],
)
def test_failed_step_is_recorded_and_what_does_not_need_it_still_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    functions: tuple[object, ...],
    results: tuple[str, ...],
) -> None:
    needs = ("nothing", "nothing", "node")
    monkeypatch.setattr(
        steps, "STEPS", tuple(zip(("a", "start", "c"), functions, needs, strict=True))
    )
    record = RECORD
    for step in run_steps(tmp_path, lambda _: None):
        record = record.with_step(step)
    assert tuple(step.result for step in record.steps) == results
    assert record.passed == (set(results) == {"ok"})
    text = "\n".join(record.lines())
    assert ("the guest does not vote" in text) == ("failed" in results)
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def test_record_without_steps_has_not_passed() -> None:
    assert not RECORD.passed


def test_load_checks_every_reply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored = {"load": ""}
    bench = Bench(tmp_path, lambda _: None, None)
    lies: list[str] = []

    def request(method: str, key: str, value: str = "") -> tuple[int, str, str, float]:
        if method == "PUT":
            stored[key] = value
        return 200, lies[0] if lies else stored[key], "2/3; seq=1", 0.01

    monkeypatch.setattr(bench, "request", request)
    facts: Facts = {}
    with bench.load(facts):
        pass
    assert facts["requests"] >= 2
    assert facts["slowest"] == 0.01
    lies.append("wrong")
    with pytest.raises(StepFailed, match=r"requests: .*wrong"), bench.load(facts):
        pass


@pytest.mark.parametrize("seconds", ["    0.1", "99999.9"])
def test_result_of_a_step_is_read_from_a_line_of_the_log(seconds: str) -> None:
    step = Step(name="vote", result="failed", seconds=1.5, output=f"two\nlines, 3 s  {MARK}no")
    assert read_step(f"{seconds} s  {MARK}{msgspec.json.encode(step).decode()}") == step
    for line in (f"{seconds} s  ==> vote", f"{seconds} s    {MARK}{{}}", "set up in 5 s", ""):
        assert read_step(line) is None


def test_campaign_is_short_and_under_kvm() -> None:
    spec, _ = load(str(steps.CAMPAIGN))
    assert spec.station.accel == "kvm"
    assert 5 <= len(list(plan(spec, 1).missions)) <= 20


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--out", "/proc/none/kvm"], "--out /proc/none/kvm"),
        (["--package", "/none.deb", "--here"], "--package /none.deb"),
        (["--package", __file__], "needs --here"),
        (["--frobnicate"], "unrecognized"),
    ],
)
def test_wrong_usage_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    problem: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["kvm", *words])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert problem in capsys.readouterr().err


def test_every_step_has_a_name_of_its_own() -> None:
    names = [name for name, _, _ in steps.STEPS]
    assert len(set(names)) == len(names)
    assert Step(name=names[0], result="ok").seen == {}
