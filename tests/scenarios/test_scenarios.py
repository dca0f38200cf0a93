"""Scenario files: events and the engine's effects, which must not change unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.language import Scenario, ScenarioError

FILES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    now = Scenario().run(text)
    if request.config.getoption("--rewrite-scenarios", False):
        path.write_text(now, encoding="utf-8")
        return
    assert now.splitlines() == text.splitlines(), (
        f"the effects in {path.name} have changed; if that is right, run "
        "pytest tests/scenarios --rewrite-scenarios and review the difference"
    )


def test_scenario_names_an_unknown_line() -> None:
    with pytest.raises(ScenarioError, match="line 2: 'g1 dances'"):
        Scenario().run("node 1/1\ng1 dances\n")


def test_scenario_replaces_old_effects() -> None:
    text = Scenario().run("node 1/1\ngreet g1\n    wrong\n# end\n")
    assert text.splitlines()[2:] == [
        "    g1 absent -> learner at 0: catches up from the log",
        "    g1 learner -> active at 1: votes",
        "# end",
    ]
