"""What a report writes down for other programs: ``findings.json``, numbers with their intervals.

Strict on reading; a field more is another version's, and said so.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from faultinject.campaign.report.findings import (
    Dose,
    Findings,
    Node,
    Point,
    Share,
    ShotKind,
    Silence,
    Stratum,
    Verdict,
)

__all__ = ["FILE", "Kept", "KeptError", "keep", "read_kept"]

FILE = "findings.json"


class KeptError(Exception):
    """A file of findings cannot be used; the text says why and what to do."""


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    verdicts: tuple[Verdict, ...]
    strata: tuple[Stratum, ...]
    points: tuple[Point, ...]
    nodes: tuple[Node, ...]
    doses: tuple[Dose, ...]
    shots: tuple[ShotKind, ...]
    silence: Silence
    idle_timeouts: Share | None

    @property
    def partial(self) -> bool:
        """Whether missions of the plan are missing."""
        return self.done < self.planned


def keep(findings: Findings) -> Kept:
    """Return what is kept of findings."""
    head = findings.head
    return Kept(
        title=head.title, question=head.question, seed=head.seed, planned=head.planned,
        done=head.done, used=head.used, void=head.void, confidence=head.confidence,
        accel=", ".join(sorted({each.accel for each in head.facts})), lying=head.lying,
        verdicts=findings.verdicts, strata=findings.strata, points=findings.points,
        nodes=findings.nodes, doses=findings.doses, shots=findings.shots,
        silence=findings.silence, idle_timeouts=findings.idle_timeouts,
    )  # fmt: skip


def read_kept(path: Path) -> Kept:
    """Read a report's ``findings.json``.  Raises KeptError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError) as error:
        raise KeptError(
            f"{path}: {error}; make it anew: trivisor campaign report {path.parent}"
        ) from error
