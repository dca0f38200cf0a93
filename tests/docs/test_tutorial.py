"""What the tutorial and the how-to pages tell a reader to do works, and prints what they show."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from tests.docs.commands import ELSEWHERE, NOT_RUN, ON_A_NODE
from tests.docs.pages import BACKUP, NATIVE, TUTORIAL, Command, SavedFile, steps
from tests.docs.shell import Done, Shell, shown_as
from tests.project.tree import ROOT

CAMPAIGN = "shopping.toml"


def to_do(page: Path) -> list[Command | SavedFile]:
    """Return the steps of a page that are run here: all but those in a table of `commands`."""
    return [
        step
        for step in steps(page)
        if isinstance(step, SavedFile) or step.text not in NOT_RUN.keys() | ELSEWHERE.keys()
    ]


@pytest.fixture
def shell(scratch: Path) -> Iterator[Shell]:
    shell = Shell(scratch / "reader")
    yield shell
    shell.close()


def check(steps_done: list[Done], todo: list[Command | SavedFile]) -> None:
    assert len(steps_done) == sum(isinstance(step, Command) for step in todo), steps_done[-1]
    for done in steps_done:
        assert done.status == done.command.status, done
        assert shown_as(done) is not None, done


@pytest.mark.readme
@pytest.mark.vm
def test_tutorial_leads_to_a_service_that_is_voted_and_repaired(shell: Shell) -> None:
    """Its campaign runs in `tests/integration/test_installed_wheel.py`, and in the test below."""
    todo = list(
        takewhile(
            lambda step: not (isinstance(step, SavedFile) and step.name == CAMPAIGN),
            to_do(TUTORIAL),
        )
    )
    check(shell.run(todo), todo)


@pytest.mark.long
@pytest.mark.vm
def test_tutorial_prints_what_it_shows(shell: Shell) -> None:
    todo = to_do(TUTORIAL)
    check(shell.run(todo, seconds=1800), todo)


@pytest.mark.vm
def test_node_is_used_backed_up_and_restored_as_the_pages_say(shell: Shell) -> None:
    used = [Command(ROOT / "README.md", 0, text) for text in ON_A_NODE if text != "trivisor down"]
    todo = [*used, *to_do(NATIVE), *to_do(BACKUP)]
    check(shell.run(todo), todo)
