"""Reading a file of rules: everything that can be wrong with it is reported by file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.monitor.patterns import Pattern, PatternError, deadline
from deploy.monitor.requests import RequestJudge, SeenRequest
from deploy.monitor.rules import (
    ConsoleRule,
    MemoryRule,
    RequestRule,
    ResourceRule,
    Rule,
    Rules,
    VoteRule,
    mark_bytes,
)
from deploy.strict_toml import SpecError, SpecProblems, read_strict
from guests.protocol.message import encode_request

__all__ = ["load_rules", "parse_rules"]

MOST_RULES = 200
LARGEST_FILE = 1 << 20
LEAST_MARK = 8
"""Bytes of a text to be found in a guest's memory: a shorter one is there by chance."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")
_INVALID, _TOO_WIDE, _MISUSED = "TV0780", "TV0781", "TV0782"

_Add = Callable[[str, str], None]  # (key, problem)

PROBE_REQUESTS = [
    SeenRequest(number, float(number), caller, method in ("GET", "HEAD"), data)
    for number, (method, caller, data) in enumerate(
        (method, caller, encode_request(method, target, headers, body))
        for method, body in (("GET", b""), ("HEAD", b""), ("PUT", b"blue"), ("POST", b"\x00\xff{}"))
        for target, headers in (("/", ()), ("/kv/colour?a=1", (("host", "example.org"),)))
        for caller in ("http:192.0.2.1", "uid:1000", "token:billing")
    )
]
"""Unlike requests: a rule that matches all of them is taken to match everything."""
PROBE_LINES = [b"", b" ", b"x", b"0", b"kernel: booting", b"\xff\x00", b"[  1.2] eth0: up!"]


def load_rules(path: Path) -> Rules:
    """Read rules from a file.  Raises SpecError with file and line of each problem."""
    try:
        data = path.read_bytes()
        if len(data) > LARGEST_FILE:
            raise ValueError(f"it has {len(data)} bytes, the limit is {LARGEST_FILE}")
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            remedy="give the path of a file of rules that you may read",
            error_code=_INVALID,
        ) from error
    return parse_rules(text, str(path))


def parse_rules(source: str, name: str) -> Rules:
    """Read rules from a text; ``name`` is that of its file.  Raises SpecError."""
    rules, invalid = read_strict(source, name, Rules, error_code=_INVALID)
    misused = SpecProblems(name, source, _MISUSED)
    too_wide = SpecProblems(name, source, _TOO_WIDE)
    count = len(list(rules))
    if not count:
        invalid.add("it has no rule: write [[request]], and below it a name and a condition")
    if count > MOST_RULES:
        invalid.add(f"{count} rules, the limit is {MOST_RULES}: merge some")
    seen: set[str] = set()
    for table, number, rule in rules.places():
        if not _NAME.fullmatch(rule.name):
            text = f"name {rule.name!r}: use letters, digits, '.', '_', '-', at most 40"
            invalid.add(text, key="name", table=table, number=number)
        if rule.name in seen:
            invalid.add(
                f"two rules have the name {rule.name!r}: rename one",
                key="name",
                table=table,
                number=number,
            )
        seen.add(rule.name)
        for key, text in _unreadable(rule):
            invalid.add(f"rule {rule.name}: {key}: {text}", key=key, table=table, number=number)
        for key, text in _misused(rule):
            misused.add(f"rule {rule.name}: {text}", key=key, table=table, number=number)
    invalid.raise_any()
    misused.raise_any()
    for table, number, rule in rules.places():
        if _matches_everything(rule) and not (rule.everything and rule.action == "alert"):
            text = (
                f"rule {rule.name} matches everything, so `{rule.action}` would hit every client: "
                'add a condition, or write `everything = true` with `action = "alert"`'
            )
            too_wide.add(text, table=table, number=number, key="name")
    too_wide.raise_any()
    return rules


def _patterns(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield the keys and texts of a rule's patterns."""
    if isinstance(rule, RequestRule):
        for key in ("path", "query", "target", "body", "caller"):
            if text := getattr(rule, key):
                yield key, text
        for text in rule.header.values():
            yield "header", text
    elif isinstance(rule, ConsoleRule):
        yield "line", rule.line


def _unreadable(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield the key and problem of each text that cannot be read."""
    for key, text in _patterns(rule):
        try:
            Pattern(text)
        except PatternError as error:
            yield key, str(error)
    if isinstance(rule, MemoryRule):
        for key in ("contains", "begin", "end"):
            try:
                size = len(mark_bytes(getattr(rule, key)))
            except ValueError as error:
                yield key, str(error)
                continue
            if 0 < size < LEAST_MARK:
                yield key, f"{size} bytes are found by chance: use at least {LEAST_MARK}"
        if rule.sha256 and not re.fullmatch("[0-9a-f]{64}", rule.sha256):
            yield "sha256", "write 64 hexadecimal digits in lower case"


def _misused(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield the key and problem of what does not fit together."""
    if rule.everything and rule.action != "alert":
        yield "everything", '`everything = true` is only for action "alert"'
    if isinstance(rule, RequestRule):
        yield from _misused_in_request(rule)
    elif rule.action == "block":
        yield "action", "only a rule on requests knows a client to block: use alert or crash"
    elif rule.action == "revert":
        yield "action", "only a rule on requests knows what to revert: use alert or crash"
    if isinstance(rule, ResourceRule) and rule.cpu_above is None and rule.rss_above is None:
        yield "name", "give `cpu_above`, `rss_above` or both"
    if isinstance(rule, MemoryRule):
        region = bool(rule.begin), bool(rule.end)
        if any(region) != all(region) or bool(rule.contains) == all(region):
            yield "name", "give either `contains`, or both `begin` and `end`"
        elif rule.sha256 and not all(region):
            yield "sha256", "it is the digest of the region between `begin` and `end`"


def _misused_in_request(rule: RequestRule) -> Iterator[tuple[str, str]]:
    if rule.inline and (rule.caller or rule.more_than is not None):
        key = "caller" if rule.caller else "more_than"
        yield (
            key,
            f"the voter does not say whose request it asks about: an inline rule has no {key}",
        )
    if rule.inline and rule.writes is not None:
        yield "writes", "the voter does not say whether it may write: use `method`"
    if rule.inline and rule.action == "revert":
        yield "action", "a request that is rejected before it is ordered leaves nothing to revert"
    if rule.block_for is not None and rule.action != "block":
        yield "block_for", 'it belongs to action "block"'
    if rule.inline and rule.block_for is not None:
        yield "block_for", "the voter keeps an inline block until its restart: leave it out"


def _matches_everything(rule: Rule) -> bool:
    if isinstance(rule, RequestRule):
        if rule.more_than is not None:
            return False
        judge = RequestJudge([rule])
        return all(judge.judge(probe) for probe in PROBE_REQUESTS)
    if isinstance(rule, ConsoleRule):
        pattern = Pattern(rule.line)
        return all(pattern.search(line, deadline()) for line in PROBE_LINES)
    assert isinstance(rule, ResourceRule | VoteRule | MemoryRule)
    return False
