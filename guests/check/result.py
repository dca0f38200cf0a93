"""The result of a check, as data and as text."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

__all__ = [
    "CheckResult",
    "Disagreement",
    "ServiceFacts",
    "format_result",
    "show_message",
    "show_reply_difference",
    "show_state_difference",
]


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """What a service says of itself: replicas must have the same name and state format."""

    name: str
    state_format: int


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """The first difference under one condition.

    ``request_number`` counts from 1; 0 is the initial state.  ``expected`` and ``got``: the two
    replies or digests.  ``detail`` shows where they differ.
    """

    condition: str
    what: str
    request_number: int
    request: str
    expected: str
    got: str
    detail: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of a check.  ``ok``: there was no difference under any of ``conditions``."""

    service: str
    ok: bool
    requests: int
    seed: int
    conditions: tuple[str, ...]
    statuses: dict[str, int]
    differences: tuple[Disagreement, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> Disagreement | None:
        """The difference under the condition that changes least, or None."""
        return self.differences[0] if self.differences else None


def format_result(result: CheckResult) -> str:
    """Return the result as text, with the first difference in full."""
    statuses = ", ".join(f"{count} x {status}" for status, count in result.statuses.items())
    lines = [f"{result.service}: {result.requests} requests, seed {result.seed} ({statuses})"]
    first = result.first
    if first is None:
        lines.append(f"no difference under {len(result.conditions)} conditions:")
        lines.append("  " + ", ".join(result.conditions))
    else:
        lines.append(f"NOT deterministic: {first.what}")
        lines.append(f"condition: {first.condition}")
        lines.append(f"request {first.request_number}:")
        for title, text in (
            ("", first.request),
            ("expected:", first.expected),
            ("got:", first.got),
            ("difference:", first.detail),
        ):
            if text:
                lines.extend([title] if title else [])
                lines.extend(f"    {line}" for line in text.rstrip("\n").split("\n"))
        if first.hint:
            lines.append(f"likely: {first.hint}")
        others = ", ".join(
            f"{d.condition} (request {d.request_number})" for d in result.differences[1:]
        )
        if others:
            lines.append(f"also: {others}")
    lines.extend(f"note: {note}" for note in result.notes)
    return "\n".join(lines) + "\n"


def show_message(message: bytes, limit: int = 2000) -> str:
    """Return a message as text: bytes escaped, the middle of a long one left out."""
    text = message.decode("latin-1").replace("\r\n", "\n")
    text = "".join(
        char if char == "\n" or " " <= char <= "~" else f"\\x{ord(char):02x}" for char in text
    )
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... {len(text) - limit} more ... {text[-limit // 2 :]}"


def show_reply_difference(expected: bytes, got: bytes) -> str:
    """Return where two replies differ."""
    lines = difflib.unified_diff(
        show_message(expected).splitlines(),
        show_message(got).splitlines(),
        "expected",
        "got",
        lineterm="",
        n=1,
    )
    return "\n".join(lines)


def show_state_difference(ours: bytes, theirs: bytes) -> str:
    """Return where two states differ."""
    if ours == theirs:
        return ""
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    begin = max(0, at - 24)
    return (
        f"the snapshots differ from byte {at} (sizes {len(ours)} and {len(theirs)}):\n"
        f"  {ours[begin : at + 40]!r}\n  {theirs[begin : at + 40]!r}"
    )
