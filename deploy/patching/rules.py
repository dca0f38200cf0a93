"""Rules of expected differences: the bug that a patch fixes, declared before it is looked for.

A rule explains a difference if all its conditions hold: on the request, on the released (old) reply
and on the copy's (new) reply.  If the voter no longer has the released reply (the copy answers
requests of the log, as it catches up), the conditions on it are not checked.  No rule explains a
crash, a copy that is late on average, or another state: while versions are mixed, replicas with
different states could outvote nobody.  A file has one ``[[expect]]`` table for
each rule::

    [[expect]]
    name = "the total is rounded to cents"
    method = "GET"
    path = "/orders/[0-9]+"
    only_json = ["total"]

Matching has a time limit: Python's regular expressions may take very long on some texts, and the
texts come from guests and clients.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import msgspec

from deploy.patching.differences import (
    Comparison,
    Difference,
    Kind,
    compare,
    decode,
    decode_asked,
    json_at,
    read_json,
)
from deploy.strict_toml import SpecProblems, read_strict
from guests.protocol.message import Reply, Request, encode_reply, encode_request

__all__ = ["Explanation", "ReplyCondition", "Rule", "RuleSet", "read_rules"]

LONGEST_PATTERN = 1000
"""Characters of a regular expression."""
MATCH_LIMIT = 0.25
"""Seconds for all rules on one difference.  After that the difference counts as unexpected."""
_CODE = "TV0773"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Status = Annotated[int, msgspec.Meta(ge=200, le=599)]


class ReplyCondition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must hold of a reply.  Nothing given: any reply."""

    status: Status | list[Status] | None = None  # its status, or one of several
    headers: dict[str, str] = {}  # regular expressions that the values of these headers match
    body: str | None = None  # a regular expression that is found in the body
    json: dict[str, Any] = {}  # values at dotted paths of a JSON body, such as "items.0.price"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expected difference.  All conditions that are given must hold."""

    name: Name  # what the patch changes; shown with each difference that the rule explains
    method: str | list[str] | None = None  # the request's method, or one of several
    path: str | None = None  # a regular expression that the whole path matches, without the query
    query: str | None = None  # a regular expression that is found in the query
    body: str | None = None  # a regular expression that is found in the request's body
    json: dict[str, Any] = {}  # values at dotted paths of the request's JSON body
    kinds: list[Kind] = []  # the kinds that it explains: status, body, header, latency; none: all
    old: ReplyCondition = ReplyCondition()  # what must hold of the released reply
    new: ReplyCondition = ReplyCondition()  # what must hold of the copy's reply
    only_json: list[str] = []  # the JSON bodies differ at or below these dotted paths only
    only_headers: list[str] = []  # no other headers differ
    most: Annotated[int, msgspec.Meta(ge=1)] | None = None  # differences that it explains at most


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    expect: list[Rule]  # at least one


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a set of rules says of one difference.

    ``rule``: the name of the first rule that explains it, None if it is unexpected.  ``problem``:
    why the rules could not be applied, or "".
    """

    rule: str | None
    problem: str = ""


class RuleSet:
    """The rules of one file, in its order.  The first that explains a difference counts."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._patterns: dict[str, re.Pattern[str]] = {}
        self.used = {rule.name: 0 for rule in self.rules}
        """How many differences each rule has explained."""

    def explain(self, difference: Difference, comparison: Comparison | None = None) -> Explanation:
        """Return which rule explains a difference, and count it."""
        found = comparison if comparison is not None else compare(difference)
        if Kind.CRASH in found.kinds:
            return Explanation(rule=None)
        try:
            with _time_limit(MATCH_LIMIT):
                rule = next(
                    (each for each in self.rules if self._explains(each, difference, found)), None
                )
        except TimeoutError:
            text = f"the rules took more than {MATCH_LIMIT:g} s: simplify their expressions"
            return Explanation(rule=None, problem=text)
        if rule is None:
            return Explanation(rule=None)
        self.used[rule.name] += 1
        return Explanation(rule=rule.name)

    def asks(self, rule: Rule, request: bytes) -> bool:
        """Return whether a rule's conditions on the request hold for this one."""
        asked = decode_asked(request)
        try:
            with _time_limit(MATCH_LIMIT):
                return asked is not None and self._request_matches(rule, asked)
        except TimeoutError:
            return False

    def _explains(self, rule: Rule, difference: Difference, found: Comparison) -> bool:
        if rule.most is not None and self.used[rule.name] >= rule.most:
            return False
        if rule.kinds and not set(found.kinds) <= set(rule.kinds):
            return False
        return self.matches(rule, difference, found)

    def matches(self, rule: Rule, difference: Difference, found: Comparison) -> bool:
        """Return whether all conditions of a rule hold but for ``kinds`` and ``most``."""
        if difference.kind != "reply":
            return False
        asked = decode_asked(difference.request)
        if asked is None or not self._request_matches(rule, asked):
            return False
        if not self._reply_matches(rule.new, decode(difference.other)):
            return False
        if difference.released is None:  # nobody can check the conditions on it
            return True
        if rule.only_headers and not set(found.headers) <= {n.lower() for n in rule.only_headers}:
            return False
        if rule.only_json and not _only_below(found, rule.only_json):
            return False
        return self._reply_matches(rule.old, decode(difference.released))

    def _request_matches(self, rule: Rule, asked: Request) -> bool:
        methods = [rule.method] if isinstance(rule.method, str) else rule.method
        if methods is not None and asked.method not in methods:
            return False
        if rule.path is not None and not self._pattern(rule.path).fullmatch(asked.path):
            return False
        query = asked.target.partition("?")[2]
        if rule.query is not None and not self._pattern(rule.query).search(query):
            return False
        return self._body_matches(rule.body, rule.json, asked.body)

    def _reply_matches(self, condition: ReplyCondition, reply: Reply | None) -> bool:
        if condition == ReplyCondition():
            return True
        if reply is None:
            return False
        wanted = condition.status
        statuses = [wanted] if isinstance(wanted, int) else wanted
        if statuses is not None and reply.status not in statuses:
            return False
        for name, pattern in condition.headers.items():
            value = reply.header(name)
            if value is None or not self._pattern(pattern).search(value):
                return False
        return self._body_matches(condition.body, condition.json, reply.body)

    def _body_matches(self, pattern: str | None, values: dict[str, Any], body: bytes) -> bool:
        text = body.decode(errors="replace")
        if pattern is not None and not self._pattern(pattern).search(text):
            return False
        if not values:
            return True
        try:
            document = read_json(body)
            return all(_equal(json_at(document, path), value) for path, value in values.items())
        except (ValueError, LookupError):
            return False

    def _pattern(self, text: str) -> re.Pattern[str]:
        if text not in self._patterns:
            self._patterns[text] = re.compile(text)
        return self._patterns[text]


def _equal(found: Any, wanted: Any) -> bool:
    """Compare JSON values: true is not 1."""
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def _only_below(found: Comparison, allowed: Sequence[str]) -> bool:
    if found.paths is None:
        return Kind.BODY not in found.kinds
    return all(
        any(path == each or path.startswith(f"{each}.") for each in allowed) for path in found.paths
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds, also inside a regular expression.

    Python's matcher polls for signals.  They reach the main thread only; elsewhere there is no
    limit.  A timer that was set before continues afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inside = True

    def stop(_: int, __: FrameType | None) -> None:
        if inside:
            raise TimeoutError

    handler = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler if handler is not None else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


# ---- reading a file


def read_rules(text: str, name: str) -> RuleSet:
    """Return the rules in the text of a file; ``name`` is the file's, for messages.

    Raises SpecError with all problems, each with its line.
    """
    file, problems = read_strict(text, name, _File, error_code=_CODE)
    names: set[str] = set()
    if not file.expect:
        problems.add("there is no rule: add an [[expect]] table")
    for number, rule in enumerate(file.expect):
        if rule.name in names:
            problems.add(
                f"two rules are named {rule.name!r}: give each its own name",
                table="expect", number=number, key="name",
            )  # fmt: skip
        names.add(rule.name)
        _check_rule(rule, number, problems)
    problems.raise_any()
    rules = RuleSet(file.expect)
    for number, rule in enumerate(file.expect):
        if _matches_everything(rules, rule):
            problems.add(
                f"the rule {rule.name!r} matches everything, and would hide every defect of the "
                "patch: add conditions on the request and on the replies",
                table="expect", number=number, key="name",
            )  # fmt: skip
    problems.raise_any()
    return rules


def _check_rule(rule: Rule, number: int, problems: SpecProblems) -> None:
    patterns = [
        ("expect", "path", rule.path),
        ("expect", "query", rule.query),
        ("expect", "body", rule.body),
    ]
    for side, condition in (("old", rule.old), ("new", rule.new)):
        patterns.append((f"expect.{side}", "body", condition.body))
        patterns += [(f"expect.{side}", "headers", each) for each in condition.headers.values()]
    for table, key, pattern in patterns:
        if pattern is None:
            continue
        try:
            if len(pattern) > LONGEST_PATTERN:
                raise ValueError(f"it has {len(pattern)} characters, at most {LONGEST_PATTERN}")
            re.compile(pattern)
        except (re.error, ValueError, RecursionError, OverflowError) as error:
            problems.add(
                f"rule {rule.name!r}: {pattern[:60]!r} is no regular expression: {error}",
                table=table, number=number, key=key,
            )  # fmt: skip
    if wrong := {Kind.CRASH, Kind.STATE} & set(rule.kinds):
        problems.add(
            f"rule {rule.name!r}: no rule can explain a {min(wrong)} difference: take it out of "
            "kinds",
            table="expect", number=number, key="kinds",
        )  # fmt: skip


_PROBES = tuple(
    Difference(seq=number, replica="", time=0.0, request=request, released=released, other=other)
    for number, (request, (released, other)) in enumerate(
        (request, replies)
        for request in (
            encode_request("GET", "/"),
            encode_request("PUT", "/a/1?b=2", [("content-type", "text/plain")], b"x"),
            encode_request("DELETE", "/long/path/with/parts"),
            encode_request("POST", "/q", [("content-type", "application/json")], b'{"a": 1}'),
        )
        for replies in (
            (encode_reply(Reply(200, b"1")), encode_reply(Reply(404, b"other"))),
            (encode_reply(Reply(500, b"")), encode_reply(Reply(200, b'{"c": [1]}'))),
            (
                encode_reply(Reply(200, b'{"c": [2]}', [("etag", "1")])),
                encode_reply(Reply(200, b'{"c": [3]}', [("etag", "2")])),
            ),
            (encode_reply(Reply(204)), encode_reply(Reply(201, "text"))),
        )
    )
)
"""Differences that have nothing in common: a rule that matches all of them matches everything."""


def _matches_everything(rules: RuleSet, rule: Rule) -> bool:
    try:
        with _time_limit(MATCH_LIMIT):
            return all(rules.matches(rule, probe, compare(probe)) for probe in _PROBES)
    except TimeoutError:
        return False
