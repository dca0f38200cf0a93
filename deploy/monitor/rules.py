"""The monitor's rules, as a file of TOML: what to look for, and what to do about it.

A file has any number of tables ``[[request]]``, ``[[console]]``, ``[[resource]]``, ``[[vote]]`` and
``[[memory]]``, each a rule.  All conditions of a rule must hold.  Everything is checked before the
monitor starts (``deploy.monitor.rule_file``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "Action", "ConsoleRule", "MemoryRule", "RequestRule", "ResourceRule", "Rule", "Rules",
    "VoteRule", "mark_bytes",
]  # fmt: skip

Action = Literal["alert", "block", "crash", "revert"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class _Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str  # of the rule: letters, digits, '.', '_', '-', at most 40
    action: Action = "alert"  # alert; block the client; crash the node; revert it to a checkpoint
    everything: bool = False  # it may match everything, and only alerts


class RequestRule(_Rule, frozen=True, kw_only=True):
    """A rule on requests.  Patterns are searched anywhere; see ``deploy.monitor.syntax``."""

    inline: bool = False  # decide before the request is ordered; the node must ask the monitor
    method: list[str] = []  # one of these methods
    path: str = ""  # pattern in the path, percent-decoded once as services see it
    query: str = ""  # pattern in the query, with + and percent-decoded once
    target: str = ""  # pattern in path and query as sent
    header: dict[str, str] = {}  # by name in lower case: a pattern in its value
    body: str = ""  # pattern in the body
    larger: Count | None = None  # the body has more bytes than this
    caller: str = ""  # pattern in the client's name: http:192.0.2.1, uid:1000, token:NAME, ...
    writes: bool | None = None  # only requests that may change the state; false: only others
    more_than: Annotated[int, Meta(ge=1, le=1_000_000)] | None = (
        None  # of such requests by one client within the time `within`
    )
    within: Seconds = 1.0  # seconds that `more_than` counts
    block_for: Seconds | None = None  # seconds of a block; without it until `--unblock`


class ConsoleRule(_Rule, frozen=True, kw_only=True):
    """A rule on the lines that guests print."""

    line: str  # pattern in a line
    guests: list[str] = []  # only these guests


class ResourceRule(_Rule, frozen=True, kw_only=True):
    """A rule on what a guest's QEMU uses."""

    cpu_above: Annotated[float, Meta(gt=0, le=1024)] | None = None  # processors, on average
    rss_above: Annotated[int, Meta(gt=0, le=1 << 50)] | None = None  # resident memory in bytes
    lasting: Seconds = 5.0  # seconds for which this holds
    guests: list[str] = []  # only these guests


class VoteRule(_Rule, frozen=True, kw_only=True):
    """A rule on what the vote shows."""

    event: Literal["dissent", "expelled", "lost", "no-majority"]  # of a replica, or of the node
    more_than: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # events within the time `within`
    within: Seconds = 60.0  # seconds that `more_than` counts
    guests: list[str] = []  # only these guests


class MemoryRule(_Rule, frozen=True, kw_only=True):
    """A rule on guests' memory, read from the host.  Texts are ASCII with \\xNN for other bytes."""

    contains: str = ""  # these bytes are somewhere in the memory
    begin: str = ""  # with `end`: the bytes between these two marks have changed
    end: str = ""  # the mark behind the region
    sha256: str = ""  # of the region, in hexadecimal; without it what is found first counts
    every: Annotated[float, Meta(ge=0.05, le=86_400)] = 1.0  # seconds between two readings
    guests: list[str] = []  # only these guests


Rule = RequestRule | ConsoleRule | ResourceRule | VoteRule | MemoryRule


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rules of one file."""

    request: list[RequestRule] = []
    console: list[ConsoleRule] = []
    resource: list[ResourceRule] = []
    vote: list[VoteRule] = []
    memory: list[MemoryRule] = []

    def __iter__(self) -> Iterator[Rule]:
        """Yield all rules."""
        for _, _, rule in self.places():
            yield rule

    def places(self) -> Iterator[tuple[str, int, Rule]]:
        """Yield each rule with the name of its table and its index there."""
        for table in ("request", "console", "resource", "vote", "memory"):
            for index, rule in enumerate(getattr(self, table)):
                yield table, index, rule

    @property
    def inline(self) -> list[RequestRule]:
        """The rules that are decided before a request is ordered."""
        return [rule for rule in self.request if rule.inline]


def mark_bytes(text: str) -> bytes:
    r"""Return the bytes of a text with ``\xNN``.  Raises ValueError."""
    try:
        return re.sub(
            rb"\\x([0-9A-Fa-f]{2})",
            lambda found: bytes([int(found[1], 16)]),
            text.encode("ascii"),
        )
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is not ASCII: write other bytes as \\xNN") from error
