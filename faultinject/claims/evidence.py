"""Evidence for claims as data, and its evaluation.

A claim names its evidence: ``DesignPoints`` and ``MissionCounts`` select findings and say which
side of the comparison the claim is on, ``Computed`` evaluates formulas, and a function covers the
rest.  Each yields ``Evidence``: a text, and for every comparison whether it supports the claim
(True), contradicts it (False), or leaves it undecided (None).  ``conclude`` makes one verdict of
them.  An interval decides only if it lies on one side entirely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from faultinject.estimate.intervals import Interval
from faultinject.results import guest_capacity, relocation
from faultinject.results.experiment import EXPERIMENT_FILE, ExperimentResult, read_experiment
from faultinject.results.findings import (
    FILE,
    DesignFinding,
    DesignPoint,
    Findings,
    Proportion,
    read_findings,
)
from faultinject.results.guest_capacity import CrowdReport
from faultinject.results.relocation import RelocationResult

__all__ = [
    "CAPACITY", "NEAR", "RELOCATION", "Basis", "Claim", "ClaimAnswer", "ClaimVerdict", "Computed",
    "DesignPoints", "Evidence", "Expected", "MissionCounts", "Results", "above", "below",
    "conclude", "format_count", "format_interval", "higher", "near", "read_results",
]  # fmt: skip

ClaimVerdict = Literal["holds", "holds where decided", "undecided", "does not hold",
                       "mechanism shown", "follows from the formulas",
                       "not measured yet"]  # fmt: skip
Basis = Literal["measured", "recombined", "computed", "by construction"]
"""How a number came about: counted in missions, computed from measured strata with binomial
weights, from formulas alone, or enforced by the injector."""

NEAR = 0.05
"""The greatest |recombined R_sys - formula| that still counts as agreement."""
RELOCATION = "moved"
"""The result that a claim needs: the comparison of two campaigns, C1 and C2."""
CAPACITY = "guests"
"""The result that a claim needs: `trivisor bench guests`."""


Expected = Literal["all", "none", "some", "by construction"]


class Results(Mapping[str, Findings]):
    """Findings by the campaign's name, that of its directory in docs/results.

    ``moved``: the comparison of C1 and C2 (Inequality 3).  ``capacity``: how many guests fit on a
    host.  None where these were not measured.  ``experiments``: those on section 3, by name.
    """

    def __init__(
        self,
        findings: Mapping[str, Findings],
        moved: RelocationResult | None = None,
        capacity: CrowdReport | None = None,
        experiments: Mapping[str, ExperimentResult] | None = None,
    ) -> None:
        self._findings = dict(findings)
        self.moved = moved
        self.capacity = capacity
        self.experiments = dict(experiments or {})

    def __getitem__(self, name: str) -> Findings:
        return self._findings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._findings)

    def __len__(self) -> int:
        return len(self._findings)

    def has(self, name: str) -> bool:
        """Whether the result that a claim needs is there."""
        if name == RELOCATION:
            return self.moved is not None
        if name in self.experiments:
            return True
        return self.capacity is not None if name == CAPACITY else name in self


def read_results(folder: Path) -> Results:
    """Read all results in a folder: findings, the comparison of C1 and C2, the guests on a host,
    experiments.

    Raises FindingsFileError.
    """
    known = {path.parent.name: read_findings(path) for path in sorted(folder.glob(f"*/{FILE}"))}
    moved = next(map(relocation.read_relocation, sorted(folder.glob(f"*/{relocation.FILE}"))), None)
    capacity = guest_capacity.read_guest_capacity(folder / guest_capacity.FILE)
    experiments = map(read_experiment, sorted(folder.glob(f"*/{EXPERIMENT_FILE}")))
    return Results(known, moved, capacity, {found.name: found for found in experiments})


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and the side of each comparison.

    ``basis``: of its numbers.  ``planted``: the effect of a planted cause, of which the claim says
    that it occurs in the real world.
    """

    text: str
    sides: tuple[bool | None, ...]
    basis: tuple[Basis, ...]
    planted: bool = False


class ClaimAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence in words, the basis of its numbers, and the verdict on the claim.

    ``limits``: what the accelerator means for the validity of the measured values.
    """

    evidence: str
    verdict: ClaimVerdict
    basis: tuple[Basis, ...] = ()
    limits: str = ""


def conclude(evidence: Evidence) -> ClaimVerdict:
    """Return the verdict: one contradiction refutes a claim, one undecided comparison limits it."""
    sides = evidence.sides
    if False in sides:
        return "does not hold"
    if not sides or all(side is None for side in sides):
        return "undecided"
    if evidence.planted:
        return "mechanism shown"
    if evidence.basis[0] == "computed":
        return "follows from the formulas"
    return "holds where decided" if None in sides else "holds"


def below(found: Interval, limit: float) -> bool | None:
    """Whether the interval is below the limit; None: it contains the limit."""
    return True if found.high < limit else False if found.low > limit else None


def above(found: Interval, limit: float) -> bool | None:
    """Whether the interval is above the limit; None: it contains the limit."""
    return True if found.low > limit else False if found.high < limit else None


def higher(one: Interval, other: Interval) -> bool | None:
    """Whether all of one interval is above all of the other; None: they overlap."""
    return True if one.low > other.high else False if one.high < other.low else None


def near(found: Interval, value: float) -> bool | None:
    """Whether all of the interval is within NEAR of the value; False if none of it is."""
    if found.low > value + NEAR or found.high < value - NEAR:
        return False
    return True if found.low >= value - NEAR and found.high <= value + NEAR else None


def format_interval(found: Interval) -> str:
    """Format the point estimate and its interval."""
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"


def format_count(found: Proportion) -> str:
    """Format a count of trials."""
    return f"{found.count:,} of {found.of:,}"


class DesignPoints(msgspec.Struct, frozen=True, kw_only=True):
    """Operating points of designs, compared with the plain node or with the paper's formula.

    ``where`` selects them.  ``supports`` and ``contradicts`` describe both sides.
    """

    campaign: str
    where: Callable[[DesignFinding, DesignPoint], bool]
    compared_with: Literal["plain", "paper"]
    supports: str
    contradicts: str
    example: bool = False  # show the point with the highest R_V

    def evaluate(self, results: Results) -> Evidence:
        """Compare each selected point."""
        pairs = [
            (design, p) for design in results[self.campaign].designs for p in design.points
            if self.where(design, p)
        ]  # fmt: skip
        found = [p for _, p in pairs]
        strata = sum(
            sum(1 for each in (*design.failed, *design.voter) if each and each.of)
            for design in {design.vote: design for design, _ in pairs}.values()
        )
        sides = [
            near(p.recombined, p.paper) if self.compared_with == "paper"
            else below(p.recombined, p.plain)
            for p in found
        ]  # fmt: skip
        text = (
            f"{self.supports} at {sides.count(True)} of {len(found)} operating points, "
            f"{self.contradicts} at {sides.count(False)}, undecided at {sides.count(None)}; all "
            f"are recombined from {strata} strata"
        )
        if self.example and found:
            p = max(found, key=lambda each: each.rv)
            text += f" (at R_M = {p.rm:g}, R_V = {p.rv:g}: {format_interval(p.recombined)})"
        return Evidence(text=text, sides=tuple(sides), basis=("recombined",))


class MissionCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of missions of which the claim says that all, none, or some have a property.

    ``select``: (description, proportion, what the claim says).  "by construction": the injector
    made all of them so, which is no evidence.
    """

    title: str
    select: Callable[
        [Results], Iterable[tuple[str, Proportion, Expected]]
    ]  # fmt: skip
    basis: tuple[Basis, ...] = ("measured",)

    def evaluate(self, results: Results) -> Evidence:
        """Compare each count; one mission of the other kind contradicts the claim."""
        texts, sides = [], []
        for description, found, expected in self.select(results):
            limit = f" (at most {found.high:.2%})" if expected == "none" else ""
            note = " (by construction)" if expected == "by construction" else limit
            texts.append(f"{description} {format_count(found)}{note}")
            if expected == "by construction":
                continue
            as_claimed = {
                "all": found.count == found.of, "none": not found.count, "some": found.count > 0
            }[expected]  # fmt: skip
            sides.append(as_claimed if found.of else None)
        text = f"{self.title}: {', '.join(texts)}"
        return Evidence(text=text, sides=tuple(sides), basis=self.basis)


class Computed(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that follows, or not, from the formulas alone."""

    evaluate_formulas: Callable[[], tuple[str, bool]]

    def evaluate(self, _: Results) -> Evidence:
        """Evaluate the formulas."""
        text, holds = self.evaluate_formulas()
        return Evidence(text=f"computed: {text}", sides=(holds,), basis=("computed",))


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One claim of the paper.

    ``needs``: the result that its evidence rests on ("": none, it is arithmetic).  ``command``
    reproduces the evidence.
    """

    where: str
    text: str
    command: str
    evidence: DesignPoints | MissionCounts | Computed | Callable[[Results], Evidence]
    needs: str = ""

    def answer(self, results: Results) -> ClaimAnswer:
        """Evaluate the evidence; a partial campaign may not have enough missions for it."""
        if self.needs and not results.has(self.needs):
            kind = "bench" if self.needs == CAPACITY else self.command.split()[1]
            return ClaimAnswer(evidence=f"({kind} {self.needs})", verdict="not measured yet")
        campaign = results[self.needs].campaign if self.needs in results else None
        partial = campaign is not None and campaign.partial
        try:
            source = self.evidence
            if isinstance(source, DesignPoints | MissionCounts | Computed):
                source = source.evaluate
            found = source(results)
        except (LookupError, StopIteration, ValueError):
            if not partial:
                raise
            found = Evidence(text="too few missions yet", sides=(), basis=("measured",))
        text = found.text
        if campaign is not None and partial:
            text += f" (after {campaign.used:,} of {campaign.planned:,} missions)"
        limits = campaign.limits if campaign is not None and campaign.flips else ""
        return ClaimAnswer(evidence=text, verdict=conclude(found), basis=found.basis, limits=limits)
