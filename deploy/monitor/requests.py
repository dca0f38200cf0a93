"""Which rules a request matches.  Pure, but for the processor clock that bounds patterns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from deploy.monitor.patterns import TIME_LIMIT, Pattern, PatternTimeout, deadline
from deploy.monitor.rules import RequestRule
from guests.protocol.message import MessageError, Request

__all__ = ["Match", "RequestJudge", "SeenRequest"]

MOST_CLIENTS = 10_000
"""Clients whose requests a rule with ``more_than`` counts; the one seen least recently goes."""


class SeenRequest(NamedTuple):
    """A request as the voter ordered it; ``seq`` 0: it is not ordered yet."""

    seq: int
    time: float  # agreed time, seconds since 1970
    caller: str
    read_only: bool
    data: bytes  # canonical HTTP


class Match(NamedTuple):
    """A rule and the request that it matches."""

    rule: RequestRule
    request: SeenRequest
    undecided: bool  # a pattern took too long, which counts as a match


class _Parts:
    """The parts of a request that conditions look at."""

    def __init__(self, seen: SeenRequest) -> None:
        self.seen = seen
        try:
            request = Request.decode(seen.data)
            headers = request.headers
        except MessageError:  # only conditions on the body look at it
            request, headers = Request("", "", seen.data), {}
        self.method, self.body = request.method, request.body
        self.target = request.target.encode()
        self.path = request.path_bytes
        self.query = unquote_to_bytes(request.target.partition("?")[2].replace("+", " "))
        self.headers = {name: value.encode("latin-1") for name, value in headers.items()}


Condition = Callable[[_Parts, float], bool]


def _in_part(name: str, pattern: Pattern) -> Condition:
    return lambda parts, until: pattern.search(getattr(parts, name), until)


def _in_header(name: str, pattern: Pattern) -> Condition:
    def holds(parts: _Parts, until: float) -> bool:
        value = parts.headers.get(name)
        return value is not None and pattern.search(value, until)

    return holds


def _conditions(rule: RequestRule) -> list[Condition]:
    """Return a rule's conditions, the cheap ones first.  Raises PatternError."""
    found: list[Condition] = []
    if rule.method:
        found.append(lambda parts, _: parts.method in rule.method)
    if rule.writes is not None:
        found.append(lambda parts, _: parts.seen.read_only is not rule.writes)
    if (size := rule.larger) is not None:
        found.append(lambda parts, _: len(parts.body) > size)
    if rule.caller:
        caller = Pattern(rule.caller)
        found.append(lambda parts, until: caller.search(parts.seen.caller.encode(), until))
    for name in ("path", "query", "target"):
        if text := getattr(rule, name):
            found.append(_in_part(name, Pattern(text)))
    found += [_in_header(name.lower(), Pattern(text)) for name, text in rule.header.items()]
    if rule.body:
        found.append(_in_part("body", Pattern(rule.body)))
    return found


class _Rate:
    """Counts the requests of each client within a time."""

    def __init__(self, more_than: int, within: float) -> None:
        self._more_than = more_than
        self._within = within
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def exceeds(self, caller: str, now: float) -> bool:
        """Count a request; return whether there are too many."""
        times = self._times.pop(caller, None) or deque(maxlen=self._more_than + 1)
        self._times[caller] = times
        if len(self._times) > MOST_CLIENTS:
            self._times.popitem(last=False)
        times.append(now)
        return len(times) > self._more_than and now - times[0] <= self._within


class _Judged:
    """A rule, ready to be evaluated."""

    def __init__(self, rule: RequestRule) -> None:
        self.rule = rule
        self._conditions = _conditions(rule)
        self._rate = _Rate(rule.more_than, rule.within) if rule.more_than is not None else None

    def matches(self, parts: _Parts, until: float) -> bool:
        """Raises PatternTimeout."""
        if not all(condition(parts, until) for condition in self._conditions):
            return False
        return self._rate is None or self._rate.exceeds(parts.seen.caller, parts.seen.time)


class RequestJudge:
    """Evaluates rules on one request after another."""

    def __init__(self, rules: Iterable[RequestRule], limit: float = TIME_LIMIT) -> None:
        """``limit``: seconds of processor time for one request.  Raises PatternError."""
        self._rules: Sequence[_Judged] = [_Judged(rule) for rule in rules]
        self._limit = limit

    def judge(self, seen: SeenRequest) -> list[Match]:
        """Return the rules that a request matches, in the order of the file."""
        parts, until, found = _Parts(seen), deadline(self._limit), []
        for judged in self._rules:
            try:
                if judged.matches(parts, until):
                    found.append(Match(judged.rule, seen, undecided=False))
            except PatternTimeout:
                found.append(Match(judged.rule, seen, undecided=True))
        return found
