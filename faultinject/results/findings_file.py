"""What a report writes down for other programs: ``findings.json``, numbers with their intervals.

Strict on reading; a field more is another version's, and said so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from faultinject.results.findings import (
    CommonCauseFinding,
    DoseFinding,
    Findings,
    NodeFinding,
    Point,
    Share,
    Silence,
    StratumFinding,
    VerdictFinding,
)

__all__ = ["FILE", "FindingsFile", "FindingsFileError", "finite_only", "keep", "read_kept"]

FILE = "findings.json"
T = TypeVar("T")


class FindingsFileError(Exception):
    """A file of findings cannot be used; the text says why and what to do."""


class FindingsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The findings of a campaign that are finite numbers.  See ``findings`` for each.

    ``lying``: of the weights of the guests' faults, the part that are wrong replies.
    """

    title: str
    question: str
    seed: int
    planned: int
    done: int
    used: int
    void: int
    confidence: float
    accel: str
    lying: float = 0.0
    verdicts: tuple[VerdictFinding, ...]
    strata: tuple[StratumFinding, ...]
    points: tuple[Point, ...]
    nodes: tuple[NodeFinding, ...]
    doses: tuple[DoseFinding, ...]
    shots: tuple[CommonCauseFinding, ...]
    silence: Silence
    idle_timeouts: Share | None

    @property
    def partial(self) -> bool:
        """Whether missions of the plan are missing."""
        return self.done < self.planned


def keep(findings: Findings) -> FindingsFile:
    """Return what is kept of findings."""
    head = findings.head
    return FindingsFile(
        title=head.title, question=head.question, seed=head.seed, planned=head.planned,
        done=head.done, used=head.used, void=head.void, confidence=head.confidence,
        accel=", ".join(sorted({each.accel for each in head.facts})), lying=head.lying,
        verdicts=findings.verdicts, strata=findings.strata, points=finite_only(findings.points),
        nodes=tuple(
            msgspec.structs.replace(node, points=finite_only(node.points))
            for node in findings.nodes
        ),
        doses=finite_only(findings.doses), shots=finite_only(findings.shots),
        silence=findings.silence, idle_timeouts=findings.idle_timeouts,
    )  # fmt: skip


def finite_only(found: Iterable[T]) -> tuple[T, ...]:
    """Return those of which all numbers are known: of a campaign under way some are not yet."""
    return tuple(each for each in found if _known(msgspec.to_builtins(each)))


def _known(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_known, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_known, value))
    return not isinstance(value, float) or math.isfinite(value)


def read_kept(path: Path) -> FindingsFile:
    """Read a report's ``findings.json``.  Raises FindingsFileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=FindingsFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise FindingsFileError(
            f"{path}: {error}; make it anew: trivisor campaign report {path.parent}"
        ) from error
