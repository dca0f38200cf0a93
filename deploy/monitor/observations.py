"""Rules on what guests print, use and vote, evaluated on one observation after another.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from deploy.monitor.patterns import TIME_LIMIT, Pattern, PatternTimeout, deadline
from deploy.monitor.rules import ConsoleRule, ResourceRule, Rule, VoteRule

__all__ = ["ConsoleJudge", "Finding", "ResourceJudge", "Usage", "VoteJudge"]


class Finding(NamedTuple):
    """A rule that matched, and what it matched."""

    rule: Rule
    detail: str  # what was seen, for people
    guest: str | None = None
    caller: str | None = None  # of a request
    seq: int = 0  # of a request; 0: it has none


def _concerns(guests: list[str], guest: str | None) -> bool:
    return not guests or guest in guests


class ConsoleJudge:
    """Evaluates rules on lines that guests print."""

    def __init__(self, rules: Iterable[ConsoleRule], limit: float = TIME_LIMIT) -> None:
        """``limit``: seconds of processor time for one line.  Raises PatternError."""
        self._rules = [(rule, Pattern(rule.line)) for rule in rules]
        self._limit = limit

    def judge(self, guest: str, line: str) -> list[Finding]:
        """Return what a line matches; a pattern that takes too long counts as a match."""
        until, found = deadline(self._limit), []
        for rule, pattern in self._rules:
            if not _concerns(rule.guests, guest):
                continue
            try:
                matches = pattern.search(line.encode(errors="replace"), until)
            except PatternTimeout:
                matches = True
            if matches:
                found.append(Finding(rule, f"{guest} printed {line[:200]!r}", guest))
        return found


class Usage(NamedTuple):
    """What a guest's QEMU has used at a time of the steady clock, in seconds."""

    at: float
    cpu: float  # seconds of processor time since its start
    rss: int  # bytes of resident memory


class ResourceJudge:
    """Evaluates rules on samples of what guests use."""

    def __init__(self, rules: Iterable[ResourceRule]) -> None:
        self._rules = list(rules)
        self._samples: dict[str, deque[Usage]] = {}
        self._fired: set[tuple[str, str]] = set()  # rule and guest, until it no longer holds
        self._longest = max((rule.lasting for rule in self._rules), default=0.0)

    def forget(self, guest: str) -> None:
        """Begin again for a guest whose QEMU is another one."""
        self._samples.pop(guest, None)

    def judge(self, guest: str, usage: Usage) -> list[Finding]:
        """Return the rules that hold since this sample and did not before."""
        samples = self._samples.setdefault(guest, deque())
        samples.append(usage)
        while len(samples) > 2 and samples[1].at <= usage.at - self._longest:
            samples.popleft()
        found = []
        for rule in self._rules:
            if not _concerns(rule.guests, guest):
                continue
            text = _exceeded(rule, samples)
            if text is None:
                self._fired.discard((rule.name, guest))
            elif (rule.name, guest) not in self._fired:
                self._fired.add((rule.name, guest))
                found.append(Finding(rule, f"{guest} used {text}", guest))
        return found


def _exceeded(rule: ResourceRule, samples: deque[Usage]) -> str | None:
    """Return what a guest used over the rule's time, if that is above all limits of the rule."""
    last = samples[-1]
    before = [sample for sample in samples if sample.at <= last.at - rule.lasting]
    if not before:
        return None
    texts = []
    if rule.cpu_above is not None:
        used = (last.cpu - before[-1].cpu) / (last.at - before[-1].at)
        if used <= rule.cpu_above:
            return None
        texts.append(f"{used:.2f} processors")
    if rule.rss_above is not None:
        least = min(sample.rss for sample in samples if sample.at >= before[-1].at)
        if least <= rule.rss_above:
            return None
        texts.append(f"{least} bytes of memory")
    return f"{' and '.join(texts)} for {rule.lasting:g} s"


class VoteJudge:
    """Evaluates rules on the changes of replicas, as the node's events report them."""

    def __init__(self, rules: Iterable[VoteRule], *, need: int, active: Iterable[str]) -> None:
        """``need``: votes for a majority; ``active``: the replicas that vote now."""
        self._rules = list(rules)
        self._need = need
        self._active = set(active)
        self._times: dict[str, deque[float]] = {}

    def judge(self, event: Mapping[str, Any]) -> list[Finding]:
        """Return what an event of the node matches."""
        if event.get("event") != "replica":
            return []
        guest, before, after = event["guest"], event["before"], event["after"]
        had = len(self._active) >= self._need
        (self._active.add if after == "active" else self._active.discard)(guest)
        happened: dict[str, Callable[[], bool]] = {
            "dissent": lambda: event["reason"] == "dissent",
            "expelled": lambda: after == "expelled",
            "lost": lambda: before == "active" and after == "absent",
            "no-majority": lambda: had and len(self._active) < self._need,
        }
        found = []
        for rule in self._rules:
            if happened[rule.event]() and _concerns(rule.guests, guest):
                times = self._times.setdefault(rule.name, deque(maxlen=rule.more_than + 1))
                times.append(event["time"])
                if len(times) > rule.more_than and times[-1] - times[0] <= rule.within:
                    text = f"{rule.event} of {guest}: {event['reason']}"
                    found.append(Finding(rule, text, guest, seq=int(event.get("seq") or 0)))
        return found
