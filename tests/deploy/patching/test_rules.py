"""Rules of expected differences: what they explain, and which of them are refused."""

from __future__ import annotations

import re
import signal
from textwrap import dedent

import pytest

from deploy.patching.differences import Difference, Source
from deploy.patching.rules import RuleSet, read_rules
from tests.deploy.patching.messages import difference, reply
from tests.errors import raises


def rules(text: str) -> RuleSet:
    return read_rules(dedent(text), "rules.toml")


FIXED = """
    [[expect]]
    name = "the total is rounded"
    method = ["GET", "HEAD"]
    path = "/orders/[0-9]+"
    only_json = ["total"]
    old.status = 200
    new.status = 200
"""
OLD = reply(200, b'{"total": 1.999, "n": 1}')
NEW = reply(200, b'{"total": 2.0, "n": 1}')


def test_difference_that_meets_all_conditions_is_explained() -> None:
    found = rules(FIXED).explain(difference(OLD, NEW))
    assert found.rule == "the total is rounded"


@pytest.mark.parametrize(
    "changed",
    [
        difference(OLD, NEW, method="POST"),
        difference(OLD, NEW, target="/orders/x"),
        difference(OLD, NEW, target="/orders/7/items"),
        difference(OLD, reply(200, b'{"total": 2.0, "n": 2}')),
        difference(OLD, reply(500, b'{"total": 2.0, "n": 1}')),
        difference(OLD, reply(200, b"no JSON")),
        difference(OLD, b"no HTTP"),
        difference(OLD, None),
    ],
)
def test_difference_that_meets_them_in_part_is_unexpected(changed: object) -> None:
    assert rules(FIXED).explain(changed).rule is None  # type: ignore[arg-type]


CONDITIONS = [
    ('query = "n=1"', {"target": "/a?n=1"}, {"target": "/a?n=2"}),
    ('body = "^x"', {"body": b"xy"}, {"body": b"yx"}),
    ("json = { a = 1 }", {"body": b'{"a": 1}'}, {"body": b'{"a": true}'}),
    ("json = { 'b.0' = 'z' }", {"body": b'{"b": ["z"]}'}, {"body": b'{"b": []}'}),
    ("old.status = [404, 500]", {"old": reply(404)}, {"old": reply(200)}),
    ('old.body = "trace"', {"old": reply(500, b"a trace")}, {"old": reply(500, b"a")}),
    ('new.headers = { etag = "^1$" }', {"new": reply(200, etag="1")}, {"new": reply(200)}),
    ("new.json = { ok = true }", {"new": reply(200, b'{"ok": true}')}, {"new": reply(200, b"{}")}),
    (
        'only_headers = ["ETag"]\nmethod = "GET"',
        {"old": reply(200, etag="1"), "new": reply(200, etag="2")},
        {"old": reply(200, etag="1", age="1"), "new": reply(200, etag="2", age="2")},
    ),
    (
        'kinds = ["body"]\nmethod = "GET"',
        {"old": reply(200, b"a"), "new": reply(200, b"b")},
        {"old": reply(200, b"a"), "new": reply(201, b"b")},
    ),
]  # fmt: skip


@pytest.mark.parametrize("condition,yes,no", CONDITIONS)
def test_each_condition_is_required(
    condition: str, yes: dict[str, object], no: dict[str, object]
) -> None:
    found = rules(f'[[expect]]\nname = "r"\n{condition}\n')
    base: dict[str, object] = {"old": reply(200, b"a"), "new": reply(200, b"b")}
    assert found.explain(difference(**base | yes)).rule == "r"  # type: ignore[arg-type]
    assert found.explain(difference(**base | no)).rule is None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["digest", "crash", "late"])
def test_only_replies_can_be_expected(kind: Source) -> None:
    other = Difference(kind=kind, seq=1000, replica="g4", time=0.0)
    assert rules(FIXED).explain(other).rule is None


def test_conditions_on_a_reply_that_was_not_kept_are_not_checked() -> None:
    assert rules(FIXED).explain(difference(None, NEW)).rule == "the total is rounded"
    assert rules(FIXED).explain(difference(None, reply(500))).rule is None


def test_rule_explains_at_most_so_many() -> None:
    found = rules('[[expect]]\nname = "r"\nmethod = "GET"\nmost = 2\n')
    seen = [found.explain(difference(reply(200, b"a"), reply(200, b"b"))).rule for _ in range(3)]
    assert seen == ["r", "r", None]


def test_first_rule_that_explains_it_counts() -> None:
    found = rules(
        """
        [[expect]]
        name = "first"
        method = "GET"
        path = "/orders/.*"

        [[expect]]
        name = "second"
        method = "GET"
        """
    )
    changed = difference(reply(200, b"a"), reply(200, b"b"))
    assert found.explain(changed).rule == "first"
    assert found.used == {"first": 1, "second": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        'path = ".*"',
        'path = "/.*"\nquery = ""\nbody = ""',
        'kinds = ["body", "status", "header"]',
        'method = ["GET", "PUT", "POST", "DELETE"]',
        "new.status = [200, 201, 404]\nold.status = [200, 204, 500]",
    ],
)
def test_rule_that_matches_everything_is_refused(text: str) -> None:
    with raises("TV0773", match=r"rules.toml, line 2: the rule 'r' matches everything"):
        rules(f'[[expect]]\nname = "r"\n{text}\n')


@pytest.mark.parametrize(
    "text,problem",
    [
        ("expect = []", "there is no rule"),
        ("[[expect]]\nname = 'r'\npaht = '/a'", "line 3: unknown key `paht`"),
        ("[[expect]]\nname = 'r'\npath = '('", "line 3: rule 'r': '\\(' is no regular"),
        ("[[expect]]\nname = 'r'\n[expect.new]\nbody = '['", "line 4: rule 'r'"),
        ("[[expect]]\nname = 'r'\npath = '/a'\nold.body = '['", "line 4: rule 'r'"),
        (
            "[[expect]]\nname = 'a'\npath = '/a'\n[[expect]]\nname = 'r'\n[expect.new]\nbody = '['",
            "line 7: rule 'r'",
        ),
        (
            "[[expect]]\nname = 'r'\nkinds = ['crash']\npath='/a'",
            "no rule can explain a crash difference",
        ),
        ("[[expect]]\nname = 'r'\npath='/a'\n[[expect]]\nname='r'\npath='/b'", "line 5: two rules"),
        ("[[expect]]\npath = '/a'", "name"),
        ("[[expect", "not TOML"),
        (f"[[expect]]\nname = 'r'\npath = '{'a' * 1001}'", "1001 characters"),
    ],
)
def test_problem_is_reported_with_its_line(text: str, problem: str) -> None:
    with raises("TV0773", match=problem):
        read_rules(text, "rules.toml")


def test_expression_that_takes_too_long_explains_nothing_and_says_so() -> None:
    found = rules('[[expect]]\nname = "r"\nnew.body = "(a+)+b"\n')
    explained = found.explain(difference(reply(200, b"x"), reply(200, b"a" * 50)))
    assert explained.rule is None
    assert "took more than" in explained.problem


def test_time_limit_keeps_a_timer_that_was_set_before() -> None:
    before = signal.getsignal(signal.SIGALRM)
    left, interval = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        rules(FIXED).explain(difference(OLD, NEW))
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        assert signal.getsignal(signal.SIGALRM) is before
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def test_dry_run_on_a_request_uses_the_conditions_on_requests_only() -> None:
    found = rules(FIXED)
    ask = difference(OLD, NEW).request
    assert found.asks(found.rules[0], ask)
    assert not found.asks(found.rules[0], re.sub(b"/orders", b"/order", ask))
    assert not found.asks(found.rules[0], b"no request")
