"""When a quarantine has been passed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from deploy.patching.judgement import DEFAULT_AFTER, classify, judge
from deploy.patching.record import PatchRecord, Phase
from deploy.patching.rules import RuleSet, read_rules
from tests.deploy.patching.messages import difference, reply
from tests.deploy.patching.test_record import a_patch


def in_quarantine(**changes: Any) -> PatchRecord:
    values = {"phase": Phase.QUARANTINE, "quarantined": 100.0, "state": True} | changes
    return msgspec.structs.replace(a_patch(), **values)


@pytest.mark.parametrize(
    "goal,compared,seconds,passed",
    [
        ({"after": 10}, 9, 1e6, False),
        ({"after": 10}, 10, 0, True),
        ({"seconds": 60.0}, 0, 59, False),
        ({"seconds": 60.0}, 0, 60, True),
        ({"after": 10, "seconds": 60.0}, 10, 59, False),
        ({"after": 10, "seconds": 60.0}, 9, 60, False),
        ({"after": 10, "seconds": 60.0}, 10, 60, True),
        ({}, DEFAULT_AFTER - 1, 1e6, False),
        ({}, DEFAULT_AFTER, 0, True),
    ],
)
def test_quarantine_ends_when_its_goal_is_reached(
    goal: dict[str, Any], compared: int, seconds: float, passed: bool
) -> None:
    record = in_quarantine(compared=compared, **goal)
    assert judge(record, [], now=100 + seconds).passed == passed


def test_unexpected_difference_stops_a_promotion() -> None:
    record = in_quarantine(after=1, compared=5)
    findings = classify([difference(reply(200, b"a"), reply(500, b"b"))], RuleSet())
    found = judge(record, findings, now=200.0)
    assert found.unexpected == {"status, body": 1}
    assert found.waits_for == "1 unexpected difference"


def test_expected_difference_does_not_stop_it() -> None:
    rules = read_rules('[[expect]]\nname = "fixed"\npath = "/orders/.*"\n', "r.toml")
    record = in_quarantine(after=1, compared=5)
    differences = [difference(reply(500), reply(200, b"b"), seq=seq) for seq in range(3)]
    found = judge(record, classify(differences, rules), now=200.0)
    assert found.expected == {"fixed": 3}
    assert found.passed


def test_difference_that_was_not_kept_stops_it() -> None:
    found = judge(in_quarantine(after=1, compared=5), [], now=200.0, lost=2)
    assert found.waits_for == "2 differences that could not be kept"


def test_state_must_have_been_compared() -> None:
    found = judge(in_quarantine(after=9, compared=9, state=False), [], now=200.0)
    assert found.waits_for == "its state was not compared yet"
    assert found.only_state_is_missing
    assert not judge(in_quarantine(after=9, state=False), [], now=200.0).only_state_is_missing


def test_difference_that_is_on_its_way_stops_it() -> None:
    found = judge(in_quarantine(after=1, compared=5), [], now=200.0, pending=1)
    assert found.waits_for == "1 difference on the way from the voter"


def test_nothing_is_passed_before_the_copy_answers() -> None:
    assert not judge(a_patch(), [], now=1e9).passed
