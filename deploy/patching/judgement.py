"""Whether a patched copy has passed its quarantine.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deploy.patching.differences import Comparison, Difference, compare
from deploy.patching.record import PatchRecord
from deploy.patching.rules import Explanation, RuleSet

__all__ = ["DEFAULT_AFTER", "Finding", "Quarantine", "classify", "judge"]

DEFAULT_AFTER = 1000
"""Compared requests after which a quarantine ends if neither a number nor a time is given."""


_STATE = "its state was not compared yet"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A difference, in what respects the replies differ, and whether that was expected."""

    difference: Difference
    comparison: Comparison
    explanation: Explanation

    @property
    def expected(self) -> bool:
        """Whether a rule explains it."""
        return self.explanation.rule is not None


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a quarantine.

    ``compared``: replies that were compared; ``seconds``: since it began.  ``unexpected`` counts
    by label of the comparison, ``expected`` by rule.  ``lost``: differences that were not kept, so
    that nobody knows whether they were expected.  ``waits_for`` says what is missing for a
    promotion; empty: nothing is.
    """

    compared: int
    seconds: float
    unexpected: dict[str, int]
    expected: dict[str, int]
    lost: int
    waits_for: str

    @property
    def only_state_is_missing(self) -> bool:
        """Whether the copy may be promoted once its state was compared."""
        return self.waits_for == _STATE

    @property
    def passed(self) -> bool:
        """Whether the copy may be promoted."""
        return not self.waits_for


def classify(differences: Sequence[Difference], rules: RuleSet) -> list[Finding]:
    """Return a finding for each difference, in their order."""
    findings = []
    for difference in differences:
        comparison = compare(difference)
        explanation = rules.explain(difference, comparison)
        findings.append(
            Finding(difference=difference, comparison=comparison, explanation=explanation)
        )
    return findings


def judge(
    record: PatchRecord,
    findings: Sequence[Finding],
    *,
    now: float,
    lost: int = 0,
    pending: int = 0,
) -> Quarantine:
    """Return the state of a patch's quarantine at ``now`` (seconds since 1970).

    ``lost`` differences were not kept; ``pending`` ones were counted by the voter, and are on their
    way.
    """
    unexpected: dict[str, int] = {}
    expected: dict[str, int] = {}
    for finding in findings:
        rule = finding.explanation.rule
        if rule is None:
            label = finding.comparison.label
            unexpected[label] = unexpected.get(label, 0) + 1
        else:
            expected[rule] = expected.get(rule, 0) + 1
    seconds = max(0.0, now - record.quarantined) if record.quarantined is not None else 0.0
    after = record.after
    if after is None and record.seconds is None:
        after = DEFAULT_AFTER
    missing = []
    if count := sum(unexpected.values()):
        missing.append(f"{count} unexpected difference{'s' * (count > 1)}")
    if lost:
        missing.append(f"{lost} difference{'s' * (lost > 1)} that could not be kept")
    if pending:
        missing.append(f"{pending} difference{'s' * (pending > 1)} on the way from the voter")
    if record.quarantined is None:
        missing.append("the copy does not answer requests yet")
    if record.quarantined is not None and not record.state:
        missing.append(_STATE)
    if after is not None and record.compared < after:
        missing.append(f"{record.compared:,} of {after:,} requests were compared")
    if record.seconds is not None and seconds < record.seconds:
        missing.append(f"{seconds:.0f} of {record.seconds:g} s have passed")
    return Quarantine(
        compared=record.compared,
        seconds=seconds,
        unexpected=unexpected,
        expected=expected,
        lost=lost,
        waits_for="; ".join(missing),
    )
