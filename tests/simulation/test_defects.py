"""Mutation testing of the simulation: each planted defect must break a promise."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from faultinject.simulation.command import DEFECT_SEEDS
from faultinject.simulation.defects import DEFECTS
from faultinject.simulation.mutation import plant
from faultinject.simulation.plan import SWARM
from faultinject.simulation.promises import PROMISES

QUICK = {
    "vote-with-one": 20,
    "release-before-fsync": 20,
    "send-before-write": 20,
    "skip-the-dedupe": 60,
    "replay-skips-one": 60,
}
"""Defects of the fast suite, and within how many seeds they are caught."""


def hunt(name: str, seeds: int) -> dict[str, str]:
    """What is seen of a defect."""
    swarm = f"{SWARM}..{SWARM + seeds - 1}"
    command = [sys.executable, "-m", "faultinject.simulation.mutation", name, swarm]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


def test_there_are_enough_and_each_names_promises() -> None:
    assert len(DEFECTS) >= 20
    for defect in DEFECTS.values():
        assert set(defect.promises) <= set(PROMISES), defect.name
        assert defect.promises, defect.name


@pytest.mark.parametrize("name", DEFECTS)
def test_each_edit_fits_the_source_once(name: str) -> None:
    for module, old, new in DEFECTS[name].edits:
        source = Path(inspect.getfile(importlib.import_module(module))).read_text()
        assert source.count(old) == 1, f"{module}: {old!r}"
        assert new != old


@pytest.mark.parametrize("name", QUICK)
def test_a_defect_is_caught_as_a_broken_promise(name: str) -> None:
    said = hunt(name, QUICK[name])
    assert said, f"{name} is not caught in {QUICK[name]} seeds"
    assert said["promise"] in DEFECTS[name].promises


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(set(DEFECTS) - set(QUICK)))
def test_every_defect_is_caught(name: str) -> None:
    assert hunt(name, DEFECT_SEEDS), f"{name} is not caught in {DEFECT_SEEDS} seeds"


def test_a_defect_cannot_be_planted_in_what_is_imported() -> None:
    with pytest.raises(RuntimeError, match="is imported already"):
        plant(DEFECTS["vote-with-one"])
