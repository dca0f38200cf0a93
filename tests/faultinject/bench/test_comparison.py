"""The benchmark: its values, a small run with another build, and the picture of a result."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest
from click.testing import CliRunner

from faultinject.bench import comparison, etcd, other_build, rig
from faultinject.bench.bench_report import BenchPlan, BenchReport
from faultinject.bench.commands import bench
from faultinject.bench.comparison import run_bench
from faultinject.bench.figures import GOALS, evaluate
from faultinject.bench.rounds import ratios, run_rounds
from faultinject.bench.tables import show


def plan(*only: str) -> BenchPlan:
    return BenchPlan(minutes=1, quick=True, only=only, seed=1, accel="tcg")


def test_ratios_are_taken_within_rounds() -> None:
    rounds = [{"a": 300, "b": 100}, {"a": 20, "b": 10}, {"a": 500}]
    assert ratios(rounds, float, "a", "b") == [3, 2]
    assert ratios(rounds, float, "a", "c") == []


def test_value_is_the_median_with_quartiles_and_knows_what_to_reach() -> None:
    value = evaluate("durable", "fsync / etcd, p50", [0.5, 0.7, 0.6])
    assert value is not None
    assert (value.value, value.count) == (0.6, 3)
    assert [value.low, value.high] == pytest.approx([0.55, 0.65])
    assert value.reached and value.at_most
    missed = evaluate("haproxy", "exec: / HAProxy, /s at 64", [0.99])
    assert missed is not None and missed.reached is False
    reported = evaluate("processor", "driver, exec:", [1.0])
    assert reported is not None and reported.reached is None
    assert evaluate("haproxy", "exec: / HAProxy, /s at 64", []) is None
    with pytest.raises(KeyError):
        evaluate("haproxy", "misspelt", [1.0])


async def test_rounds_are_in_random_order_of_the_seed_and_complete() -> None:
    orders = []
    for _ in range(2):
        order: list[str] = []

        async def measure(name: str, order: list[str] = order) -> str:
            order.append(name)
            return name

        done: list[dict[str, str]] = []
        await run_rounds(["a", "b", "c"], measure, done, random=Random(3), seconds=0, least=4)
        assert done == [{"a": "a", "b": "b", "c": "c"}] * 4
        orders.append(order)
    assert orders[0] == orders[1]
    assert orders[0] != ["a", "b", "c"] * 4


def test_small_run_measures_every_target_also_of_another_build(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for load in other_build.LOADS.values():
        monkeypatch.setitem(load, "seconds", 0.05)
    progress: list[str] = []
    only = ("haproxy", "durable")
    report = run_bench(plan(*only), progress.append, compare=rig.ROOT, scratch=scratch)
    (done, *_) = report.measured.processes
    expected = {"exec", "os", "durable", "durable, 64 connections", "durable, in a session"}
    expected |= {"aiohttp proxy", "old exec", "old durable"}
    if "haproxy" not in report.missing:
        expected.add("HAProxy")
    if not etcd.missing_requirement():
        assert report.etcd
        expected |= {"etcd", "etcd, 64 connections"}
    assert done.keys() == expected
    for loads in done.values():
        assert loads["many"].rate > 0
    assert done["exec"]["one"].p50 > 0
    assert done["exec"]["many"].processor.keys() == {"voter", "replicas", "driver"}
    assert {each.figure for each in report.values} == set(only)
    assert all(f"{each.figure}: {each.name}" in GOALS for each in report.values)
    assert set(report.missing) <= {"haproxy", "durable"}  # peers that are not installed
    assert not report.interrupted
    assert len(report.modes["processes"].replicas_compiled) == 3
    assert report.old == report.build != ""
    assert list(scratch.iterdir()) == []
    copy = msgspec.json.decode(msgspec.json.encode(report), type=BenchReport)
    assert copy.values == report.values
    in_memory = msgspec.structs.replace(copy.disk, filesystem="tmpfs")
    show(msgspec.structs.replace(copy, disk=in_memory))
    assert "warning TV0804: " in capsys.readouterr().err


def test_failed_stage_is_reported_and_the_next_one_runs(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(rig, "process_voter", fail)
    monkeypatch.setattr(comparison, "CAMPAIGN", "no campaign")
    report = run_bench(plan("haproxy", "campaign"), lambda _: None, scratch=scratch)
    assert report.missing["processes"] == "OSError: no such thing"
    assert "0 missions" in report.missing["campaign"]
    assert report.values == []


@pytest.mark.parametrize("figure", ["failure", "recovery", "guests", "latency"])
def test_each_figure_of_guests_can_be_measured_alone(
    figure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = []

    async def run_guests(run: comparison._Bench) -> None:
        run._progress("begins")
        began.append(figure)

    monkeypatch.setattr(comparison._Bench, "_run_guests", run_guests)
    report = run_bench(plan(figure), lambda _: None)
    assert (began, report.missing) == ([figure], {})


def test_result_is_drawn_and_another_file_is_rejected(scratch: Path) -> None:
    pytest.importorskip("matplotlib")
    value = evaluate("haproxy", "exec: / HAProxy, /s at 64", [0.8, 1.2])
    low = evaluate("failure", "kill: added p99.9", [-20.0])
    host = {"cpu": "c", "cores": 2, "kernel": "k", "python": "3", "accel": "", "load_before": 0.0}
    kept = scratch / "bench.json"
    kept.write_bytes(msgspec.json.encode({"build": "b", "host": host, "values": [value, low]}))
    pictures = []
    for at in range(2):
        out = scratch / f"{at}.svg"
        assert CliRunner().invoke(bench, ["draw", str(kept), "--out", str(out)]).exit_code == 0
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    assert b"<svg" in pictures[0]
    kept.write_text("{}")
    result = CliRunner().invoke(bench, ["draw", str(kept), "--out", str(scratch / "x.svg")])
    assert "no result of `trivisor bench" in str(result.exception)
    assert getattr(result.exception, "error_code", "") == "TV0805"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "hapoxy"], "Did you mean 'haproxy'?"),
        (["--compare", "/usr"], "git worktree add"),
        (["--minutes", "0"], "from 1 to 600"),
        (["--compare", "/missing"], "/missing"),
    ],
)
def test_wrong_options_are_rejected_before_anything_starts(words: list[str], said: str) -> None:
    result = CliRunner().invoke(bench, words)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")


def test_put_message_is_a_protobuf_of_key_and_value() -> None:
    assert etcd.put_message(b"key", b"value") == b"\x0a\x03key\x12\x05value"
    with pytest.raises(ValueError, match="127 bytes"):
        etcd.put_message(b"key", bytes(128))


def test_missing_requirement_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "apt-get install etcd-server" in etcd.missing_requirement()
    monkeypatch.setattr("shutil.which", lambda _: "etcd")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install grpcio" in etcd.missing_requirement()
