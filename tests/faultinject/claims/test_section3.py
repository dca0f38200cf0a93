"""The claims of section 3: how the arms of an experiment become a verdict."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from faultinject.claims.evidence import read_results
from faultinject.claims.section3 import SECTION3
from faultinject.results.experiment import EXPERIMENT_FILE, ArmResult, ExperimentResult, Fitness
from faultinject.results.findings import Proportion


def kept(folder: Path, name: str, *fitness: Fitness, accel: str = "tcg") -> None:
    """Write the result of an experiment whose arms fit their predictions like this."""
    arms = tuple(
        ArmResult(
            name=f"a{number}", label=f"arm {number}", event="failed", planned=10, excluded=0,
            observed=Proportion(count=number, of=10, low=0.0, high=1.0), predicted=0.5,
            basis="computed", source="", margin=0.1, fitness=fit,
        )
        for number, fit in enumerate(fitness)
    )  # fmt: skip
    result = ExperimentResult(
        name=name, title=name, about="Something was done.", paper="section 3", seed=1, share=1.0,
        planned=10 * len(arms), done=10 * len(arms), excluded=0, confidence=0.95, accel=accel,
        seconds=1.0, version="test", arms=arms,
    )  # fmt: skip
    (folder / name).mkdir()
    (folder / name / EXPERIMENT_FILE).write_bytes(msgspec.json.encode(result))


@pytest.mark.parametrize(
    ("fitness", "verdict"),
    [
        (("agrees", "agrees", "measured"), "mechanism shown"),
        (("agrees", "undecided"), "mechanism shown"),
        (("agrees", "departs"), "does not hold"),
        (("undecided",), "undecided"),
    ],
)
def test_arms_decide_the_verdict(
    tmp_path: Path, fitness: tuple[Fitness, ...], verdict: str
) -> None:
    [claim] = [claim for claim in SECTION3 if claim.needs == "scrubbing"]
    kept(tmp_path, "scrubbing", *fitness)
    assert claim.answer(read_results(tmp_path)).verdict == verdict


def test_a_claim_without_its_experiment_is_not_measured_yet(tmp_path: Path) -> None:
    found = read_results(tmp_path)
    assert {claim.answer(found).verdict for claim in SECTION3} == {"not measured yet"}


def test_the_stand_in_is_named_in_the_evidence(tmp_path: Path) -> None:
    [claim] = [claim for claim in SECTION3 if claim.needs == "replay"]
    kept(tmp_path, "replay", "agrees", accel="exec")
    assert "not virtual machines" in claim.answer(read_results(tmp_path)).evidence
