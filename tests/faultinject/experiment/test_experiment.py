"""An experiment is planned from its seed, survives losses, and is compared with predictions."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from faultinject.commands import experiment as command
from faultinject.experiment.assess import assess
from faultinject.experiment.design import ExperimentError, load_experiment, plan_trials
from faultinject.experiment.run import run_trials
from faultinject.experiment.store import ROWS, RowStore, new_head
from faultinject.results.experiment import EXPERIMENT_FILE, read_experiment
from faultinject.section3 import EXPERIMENTS
from tests.errors import raises
from tests.faultinject.experiment.fake_experiment import EXPERIMENT, MODULE, behave
from voter.commands.terminal import ExitCode


@pytest.fixture(autouse=True)
def behaviour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "behaviour.json"
    monkeypatch.setenv("FAKE_EXPERIMENT", str(path))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RowStore]:
    head = new_head(MODULE, "fake", seed=7, share=0.02, arms=(), version="test")
    with RowStore.create(tmp_path / "results", head) as store:
        yield store


def run(store: RowStore, *, workers: int = 2, first: int | None = None) -> str:
    return asyncio.run(
        run_trials(
            store, workers=workers, first=first, progress=lambda _: None, done=lambda _: None
        )
    )


def test_a_trial_keeps_its_seed_whatever_else_is_planned() -> None:
    whole = {(each.arm, each.number): each.seed for each in plan_trials(EXPERIMENT, 5)}
    part = plan_trials(EXPERIMENT, 5, share=0.1, arms=("half", "few"))
    assert len(part) == 90 + 1
    assert all(whole[each.arm, each.number] == each.seed for each in part)
    other = {(each.arm, each.number): each.seed for each in plan_trials(EXPERIMENT, 6)}
    assert not set(whole.values()) & set(other.values())


def test_an_unknown_arm_is_rejected_with_the_known_names() -> None:
    with raises("TV0546", "tenth"):
        plan_trials(EXPERIMENT, 1, arms=("third",))


def test_all_trials_get_one_row_each(store: RowStore) -> None:
    assert run(store) == "complete"
    assert sorted(row.index for row in store.rows) == list(range(len(store.plan)))
    with RowStore.open(store.directory, write=False) as read:
        assert read.rows == store.rows


def test_a_run_can_be_resumed_after_its_first_trials(store: RowStore) -> None:
    assert run(store, first=10) == "first"
    done = {row.index for row in store.rows}
    assert len(done) == 10
    assert run(store) == "complete"
    assert len({row.index for row in store.rows}) == len(store.rows) == len(store.plan)


def test_a_torn_last_line_is_truncated_when_the_run_is_resumed(store: RowStore) -> None:
    run(store, first=5)
    store.close()
    path = store.directory / ROWS
    path.write_bytes(path.read_bytes()[:-7])
    with RowStore.open(store.directory, write=True) as resumed:
        assert len(resumed.rows) == 4
        assert run(resumed) == "complete"
    with RowStore.open(store.directory, write=False) as read:
        assert len(read.rows) == len(read.plan)


def test_a_lost_worker_is_started_again_and_its_trial_repeated(
    store: RowStore, behaviour: Path
) -> None:
    behave(behaviour, die=0, times=1)
    assert run(store, workers=1) == "complete"
    assert not any(row.outcome.excluded for row in store.rows)


def test_a_trial_that_ends_two_workers_is_excluded(store: RowStore, behaviour: Path) -> None:
    behave(behaviour, die=1, times=2)
    assert run(store, workers=1) == "complete"
    excluded = [row for row in store.rows if row.outcome.excluded]
    assert len(excluded) == 1
    assert assess(store).excluded == 1


def test_a_rig_that_cannot_be_opened_ends_the_run(store: RowStore, behaviour: Path) -> None:
    behave(behaviour, refuse=1)
    with raises("TV0545", "no rig today"):
        run(store)
    assert not store.rows


def test_a_signal_ends_the_run_and_its_workers(store: RowStore, behaviour: Path) -> None:
    behave(behaviour, hang=1)

    async def interrupted() -> str:
        loop = asyncio.get_running_loop()

        def progress(_: str) -> None:
            loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)

        return await run_trials(
            store, workers=1, first=None, progress=progress, done=lambda _: None
        )

    assert asyncio.run(interrupted()) == "interrupted"
    assert not store.rows


def test_two_processes_cannot_run_the_same_experiment(store: RowStore) -> None:
    with raises("TV0549"):
        RowStore.open(store.directory, write=True)
    with raises("TV0547"):
        RowStore.create(store.directory, store.head)


def test_a_damaged_file_is_rejected(store: RowStore) -> None:
    store.close()
    (store.directory / ROWS).write_bytes(b"{}\n")
    with raises("TV0548"):
        RowStore.open(store.directory, write=False)


def test_each_arm_is_compared_with_its_prediction(tmp_path: Path) -> None:
    head = new_head(MODULE, "fake", seed=11, share=1.0, arms=(), version="test")
    with RowStore.create(tmp_path / "whole", head) as store:
        run(store)
        result = assess(store)
    found = {arm.name: arm.fitness for arm in result.arms}
    assert found == {
        "tenth": "agrees", "half": "agrees", "wrong": "departs", "few": "undecided",
        "never": "agrees", "open": "measured",
    }  # fmt: skip
    assert result.joint_p is not None
    assert result.joint_p < 1e-6  # of the wrong prediction
    assert result.arm("open").quantities["size_bytes"].largest == 19


def test_the_list_shows_every_experiment_and_its_arms() -> None:
    done = CliRunner().invoke(command.experiment, ["list"])
    assert done.exit_code == ExitCode.OK, done.output
    for module in EXPERIMENTS.values():
        found = load_experiment(module)
        assert f"{found.name}: {found.title}" in done.output
        assert all(f"  {arm.name}: {arm.trials:,} trials" in done.output for arm in found.arms)
    as_json = json.loads(CliRunner().invoke(command.experiment, ["list", "--json"]).stdout)
    assert [each["name"] for each in as_json] == list(EXPERIMENTS)


def test_the_command_runs_the_trials_that_it_was_given_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = ["run", "fake", "--module", MODULE, "--share", "0.02", "--out", str(out)]
    first = CliRunner().invoke(command.experiment, [*words, "--first", "3"])
    assert first.exit_code == ExitCode.OK, first.output
    assert "experiment resume" in first.stderr
    again = CliRunner().invoke(command.experiment, [*words])
    assert isinstance(again.exception, ExperimentError)
    assert CliRunner().invoke(command.experiment, ["resume", str(out)]).exit_code == ExitCode.OK
    assert not read_experiment(out / EXPERIMENT_FILE).partial


def test_the_command_reports_what_was_run(store: RowStore) -> None:
    run(store)
    store.close()
    done = CliRunner().invoke(command.experiment, ["report", str(store.directory)])
    assert done.exit_code == ExitCode.OK, done.output
    result = read_experiment(store.directory / EXPERIMENT_FILE)
    assert (result.done, result.partial) == (len(store.plan), False)
    assert (store.directory / "experiment.svg").exists()
    as_json = CliRunner().invoke(command.experiment, ["report", str(store.directory), "--json"])
    assert as_json.exit_code == ExitCode.OK
