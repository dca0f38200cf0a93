"""The requests of a node's journal, for rules that are tried on the past.

Only writes are journaled: what rules would have matched among reads is not known.  Callers and
agreed times come from the journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.monitor.requests import RequestJudge, SeenRequest
from deploy.monitor.rules import RequestRule
from voter.core.entries import Record
from voter.journal.reader import JournalReader

__all__ = ["Trial", "journaled_writes", "try_rules"]

SHOWN = 100
"""Sequence numbers that are listed for each rule; the others are only counted."""


class Trial(NamedTuple):
    """What a rule matched in the log."""

    rule: RequestRule
    matches: int
    undecided: int
    seqs: list[int]  # the first SHOWN
    callers: dict[str, int]  # matches by client


def journaled_writes(directory: Path, after: int = -1) -> Iterator[SeenRequest]:
    """Yield the writes after a sequence number that are kept; -1: all.  Raises JournalError."""
    reader = JournalReader(directory)
    kept = reader.checkpoints()
    before = [each for each in kept if each.seq <= after] if after >= 0 else []
    start = max(before, key=lambda each: each.seq) if before else kept[0] if kept else None
    if start is None:
        return
    for entry in reader.entries(start):
        if isinstance(entry, Record) and entry.seq > after:
            caller = entry.caller.decode(errors="replace")
            yield SeenRequest(entry.seq, entry.time_ns / 1e9, caller, False, entry.request)


def try_rules(directory: Path, rules: Sequence[RequestRule]) -> tuple[list[Trial], int, int]:
    """Return what each rule matches in a journal, the number of writes and the first one's number.

    Raises JournalError.
    """
    judge = RequestJudge(rules)
    found = {rule.name: Trial(rule, 0, 0, [], {}) for rule in rules}
    count = first = 0
    for seen in journaled_writes(directory):
        count += 1
        first = first or seen.seq
        for match in judge.judge(seen):
            trial = found[match.rule.name]
            if len(trial.seqs) < SHOWN:
                trial.seqs.append(seen.seq)
            trial.callers[seen.caller] = trial.callers.get(seen.caller, 0) + 1
            found[match.rule.name] = trial._replace(
                matches=trial.matches + 1, undecided=trial.undecided + match.undecided
            )
    return list(found.values()), count, first
