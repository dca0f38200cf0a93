"""Every file here is a story: events, and what the engine did about each; it must do so again."""

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
        f"{path.name} tells another story now; if it is the right one, run "
        "pytest tests/scenarios --rewrite-scenarios and look at the difference"
    )


def test_the_stories_are_there() -> None:
    assert len(FILES) >= 14


def test_a_line_that_is_not_of_the_language_is_named() -> None:
    with pytest.raises(ScenarioError, match="line 2: 'g1 dances'"):
        Scenario().run("node 1/1\ng1 dances\n")


def test_what_stood_below_a_line_is_written_anew() -> None:
    told = Scenario().run("node 1/1\ngreet g1\n    wrong\n# end\n")
    assert told.splitlines()[2:] == [
        "    g1 absent -> learner at 0: catches up from the log",
        "    g1 learner -> active at 1: votes",
        "# end",
    ]
