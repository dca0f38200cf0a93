"""Mutation testing of the simulation: each planted defect must break a promise."""

from __future__ import annotations

import pytest

from faultinject.simulation.defects import DEFECTS
from faultinject.simulation.mutation import DEFECT_SEEDS, plant, run_planted
from faultinject.simulation.promises import PROMISES
from tests.project.tree import ROOT

QUICK = {
    "vote-with-one": 20,
    "release-before-fsync": 20,
    "send-before-write": 20,
    "skip-the-dedupe": 60,
    "replay-skips-one": 60,
    "batch-replies-shifted": 20,
    "batch-compares-one-reply": 40,
    "roles-forgotten": 20,
    "roles-do-not-wait": 60,
}
"""Defects of the fast suite, and the number of seeds within which each is detected."""


def test_each_defect_names_promises_and_its_edits_fit_the_source_once() -> None:
    assert len(DEFECTS) >= 20
    for defect in DEFECTS.values():
        assert set(defect.promises) & set(PROMISES) == set(defect.promises) != set(), defect.name
        for module, old, new in defect.edits:
            source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
            assert source.count(old) == 1, f"{module}: {old!r}"
            assert new != old


@pytest.mark.parametrize("name", QUICK)
def test_planted_defect_breaks_an_expected_promise(name: str) -> None:
    first = DEFECTS[name].first
    breach = run_planted(name, first, first + QUICK[name] - 1)
    assert breach, f"{name} is not detected in {QUICK[name]} seeds"
    assert breach["promise"] in DEFECTS[name].promises


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(DEFECTS) - set(QUICK)))
def test_every_other_planted_defect_breaks_a_promise(name: str) -> None:
    first = DEFECTS[name].first
    assert run_planted(name, first, first + DEFECT_SEEDS - 1)


def test_plant_raises_when_the_module_is_imported_already() -> None:
    with pytest.raises(RuntimeError, match="is imported already"):
        plant(DEFECTS["vote-with-one"])
