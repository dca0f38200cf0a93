"""Every command that the documentation shows is run by a test, or is listed with a reason."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.docs.commands import ELSEWHERE, NOT_RUN, OFFLINE, ON_A_NODE
from tests.docs.pages import BACKUP, NATIVE, TUTORIAL, Command, all_commands, steps
from tests.project.tree import ROOT

MOST_NOT_RUN = 20


def test_every_shown_command_is_in_one_table_and_no_entry_is_stale() -> None:
    in_scenarios = {
        step.text
        for page in (TUTORIAL, NATIVE, BACKUP)
        for step in steps(page)
        if isinstance(step, Command)
    }
    tables = Counter([*OFFLINE, *ON_A_NODE, *ELSEWHERE, *NOT_RUN])
    shown = {each.text for each in all_commands()}
    assert {text for text, count in tables.items() if count > 1} == set()
    missing = [
        f"{each.page.relative_to(ROOT)}:{each.line}: {each.text}"
        for each in all_commands()
        if each.text not in tables and each.text not in in_scenarios
    ]
    assert missing == [], "add them to tests/docs/commands.py"
    assert tables.keys() - shown == set(), "no page shows these any more"
    assert len(NOT_RUN) <= MOST_NOT_RUN
    assert all(NOT_RUN.values())


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_test_that_runs_a_command_exists(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert any(isinstance(node, functions) and node.name == name for node in tree.body)
