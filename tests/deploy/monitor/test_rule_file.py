"""Files of rules: every problem is an error with file and line, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.monitor.rule_file import LARGEST_FILE, load_rules, parse_rules
from tests.errors import raises

GOOD = """
[[request]]
name = "traversal"
path = '\\.\\./'
header = { user-agent = '(?i)scanner' }
action = "block"
block_for = 60

[[request]]
name = "inline"
inline = true
body = 'secret'
action = "crash"

[[console]]
name = "oops"
line = 'Oops'
action = "crash"

[[resource]]
name = "busy"
cpu_above = 0.9
rss_above = 1000000
guests = ["g1"]

[[vote]]
name = "dissent"
event = "dissent"
more_than = 1

[[memory]]
name = "text"
begin = 'BEGIN-MARK\\x00\\x01'
end = 'END-MARK-END'
"""


def test_rules_of_all_kinds_are_read() -> None:
    rules = parse_rules(GOOD, "rules.toml")
    assert [rule.name for rule in rules] == [
        "traversal", "inline", "oops", "busy", "dissent", "text"
    ]  # fmt: skip
    assert [rule.name for rule in rules.inline] == ["inline"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it has no rule"),
        ("[[request", "not TOML"),
        ('[[request]]\nname = "a"\npaht = "x"', "line 3: unknown key `paht`"),
        ('[[requests]]\nname = "a"', "unknown key `requests`"),
        ('[[request]]\npath = "x"', "missing required field `name`"),
        ('[[request]]\nname = "a b"\npath = "x"', "line 2: name 'a b'"),
        ('[[request]]\nname = "a"\npath = "(x"', r"line 3: .*path: a \( without its \)"),
        ('[[console]]\nname = "a"\nline = ""', "line 3: .*line: the pattern is empty"),
        ('[[request]]\nname = "a"\naction = "explode"', "line 3: .*[Ii]nvalid enum"),
        ('[[request]]\nname = "a"\nwithin = 0', "line 3: .*> 0"),
        (
            '[[request]]\nname = "a"\npath = "x"\n[[console]]\nname = "a"\nline = "x"',
            "line 5: two rules have the name 'a'",
        ),
        ('[[memory]]\nname = "a"\ncontains = "short"', "line 3: .*found by chance"),
        ('[[memory]]\nname = "a"\ncontains = "ä very long text"', "line 3: .*not ASCII"),
        (
            '[[memory]]\nname = "a"\nbegin = "begin-mark"\nend = "end-mark-"\nsha256 = "1"',
            "line 5: .*64 hexadecimal",
        ),
        (
            "\n".join(f'[[request]]\nname = "a{n}"\npath = "x"' for n in range(201)),
            "201 rules, the limit is 200",
        ),
    ],
)
def test_file_that_cannot_be_read_as_rules_names_the_line(text: str, problem: str) -> None:
    with raises("TV0780", problem):
        parse_rules(text, "rules.toml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[console]]\nname = "a"\nline = "x"\naction = "block"', "line 4: .*client to block"),
        ('[[vote]]\nname = "a"\nevent = "lost"\naction = "revert"', "line 4: .*what to revert"),
        ('[[request]]\nname = "a"\ninline = true\ncaller = "x"', "line 4: .*no caller"),
        ('[[request]]\nname = "a"\ninline = true\nmore_than = 2', "line 4: .*no more_than"),
        ('[[request]]\nname = "a"\ninline = true\nwrites = true', "line 4: .*use `method`"),
        (
            '[[request]]\nname = "a"\ninline = true\nbody = "x"\naction = "revert"',
            "line 5: .*nothing to revert",
        ),
        ('[[request]]\nname = "a"\npath = "x"\nblock_for = 5', 'line 4: .*action "block"'),
        (
            '[[request]]\nname = "a"\npath = "x"\neverything = true\naction = "block"',
            "line 4: .*only for action",
        ),
        ('[[resource]]\nname = "a"', "line 2: .*cpu_above"),
        ('[[memory]]\nname = "a"\nbegin = "begin-mark"', "line 2: .*give either"),
        (
            '[[memory]]\nname = "a"\ncontains = "long enough"\nsha256 = "' + "0" * 64 + '"',
            "line 4: .*between `begin` and `end`",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(text: str, problem: str) -> None:
    with raises("TV0782", problem):
        parse_rules(text, "rules.toml")


@pytest.mark.parametrize(
    "condition",
    ["", "path = '.*'", "path = '/'", "target = '^'", "body = 'x*'", "path = '^/'\ncaller = ':'"],
)
@pytest.mark.parametrize("action", ["alert", "block", "crash", "revert"])
def test_rule_that_matches_every_request_is_refused(condition: str, action: str) -> None:
    text = f'[[request]]\nname = "wide"\naction = "{action}"\n{condition}\n'
    with raises("TV0781", f"line 2: rule wide matches everything, so `{action}`"):
        parse_rules(text, "rules.toml")


def test_rule_that_matches_every_line_is_refused() -> None:
    with raises("TV0781", "rule wide matches everything"):
        parse_rules("[[console]]\nname = 'wide'\nline = '.*'\naction = 'crash'", "rules.toml")


def test_rule_that_says_so_may_alert_of_everything() -> None:
    rules = parse_rules("[[request]]\nname = 'all'\neverything = true", "rules.toml")
    assert [rule.name for rule in rules] == ["all"]


@pytest.mark.parametrize("condition", ["path = 'kv'", "method = ['PUT']", "larger = 100"])
def test_rule_with_a_condition_is_not_refused(condition: str) -> None:
    parse_rules(f'[[request]]\nname = "a"\naction = "block"\n{condition}\n', "rules.toml")


def test_file_that_is_missing_or_too_large_is_named(tmp_path: Path) -> None:
    with raises("TV0780", "No such file"):
        load_rules(tmp_path / "none.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (LARGEST_FILE + 1))
    with raises("TV0780", "the limit is"):
        load_rules(tmp_path / "large.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe4")
    with raises("TV0780", "cannot be read"):
        load_rules(tmp_path / "latin.toml")
