"""The contents of a campaign file: the question, the node, the faults, how many missions.

``spec_file`` reads such files, and ``spec_checks`` says what they may not contain.
"""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from faultinject.campaign.records import NodeSpec
from faultinject.results.outcome import Design, Question
from voter.core.vote import Policy

__all__ = [
    "FORCED",
    "CommonCauseSpec",
    "DoseSpec",
    "MarginSpec",
    "Points",
    "Range",
    "Repair",
    "Spec",
    "StratumSpec",
    "Workload",
    "is_file",
]

FORCED: frozenset[Question] = frozenset({"inequality4", "designs"})
"""Questions whose strata force hit guests to fail: they test the voter, not the model."""

Repair = Literal["off", "on", "both"]
"""Whether an expelled guest is repaired within the mission.  ``off`` is the paper's model; ``both``
makes separate strata with and without repair."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Workload(_Section, frozen=True, kw_only=True):
    """The requests of a mission."""

    length: int = 20  # requests of a mission, 1 to 256
    seed: int | None = None  # all missions make the requests that follow from it; without it each
    # mission draws its own from the campaign's seed
    mix: dict[str, float] = {}  # kinds of requests with weights, for the shipped services; without
    # it KV_MIX or STATIC_MIX of faultinject/history/workload.py


class StratumSpec(_Section, frozen=True, kw_only=True):
    """Missions in which the same number of guests are hit.  Give ``missions`` or ``bound``."""

    guests_hit: int  # guests that are hit by a fault of [faults]
    voter_hit: bool = False  # the voter is hit too, by a fault of [voter_faults]
    function_hit: int = 0  # further guests whose function f is hit
    host_function_hit: bool = False  # F, the function on the host, is hit
    design: Design = "voted"  # with a voter, or one guest without (nv)
    vote: str | None = None  # another policy than the node's, as "1/4", over its first guests
    repair: Repair | None = None  # another setting than the campaign's
    missions: int | None = None  # how many
    bound: float | None = None  # as many as make an interval this wide if all missions end alike


class DoseSpec(_Section, frozen=True, kw_only=True):
    """Missions with bit flips in each guest, at independent moments and places.

    No guest is forced to fail.
    """

    flips: int  # bits that are flipped in each guest
    voted: int  # missions with a voter
    nv: int  # missions of one guest without a voter
    kind: str = "flip-ram"  # the fault: what is flipped


class CommonCauseSpec(_Section, frozen=True, kw_only=True):
    """Missions with one common cause that hits all guests at once."""

    kind: str  # the fault
    missions: int  # missions with a voter
    nv: int = 0  # missions of one guest without a voter
    flips: int = 1  # bits that are flipped in each guest, from one seed
    vote: str | None = None  # another policy than the node's, over its first guests


class Range(_Section, frozen=True, kw_only=True):
    """A grid from ``start`` to ``stop``, both included, by ``step``."""

    start: float  # the first value
    stop: float  # the last value
    step: Annotated[float, msgspec.Meta(le=1)]  # their distance, above 0

    def __post_init__(self) -> None:
        if not (self.step > 0 and self.stop >= self.start):
            raise ValueError("a grid needs a step above 0 and a stop not below its start")
        if (self.stop - self.start) / self.step > 10_000:
            raise ValueError("a grid of more than 10000 points: make its step larger")

    @property
    def values(self) -> tuple[float, ...]:
        """Return the points, rounded to 12 digits (0.3, not 0.30000000000000004).

        ``stop`` is included even if the steps miss it by a rounding error.
        """
        count = int((self.stop - self.start) / self.step + 1e-9) + 1
        return tuple(round(self.start + number * self.step, 12) for number in range(count))


Values = tuple[float, ...] | Range


class Points(_Section, frozen=True, kw_only=True):
    """Operating points: all combinations of these reliabilities."""

    rm: Values = (0.7, 0.8, 0.9, 0.95)  # of a guest (R_M)
    rv: Values = (0.9, 0.95, 0.98, 0.99, 0.999)  # of the virtualization layer (R_V)
    rh: Values = (1.0,)  # of the hardware (R_H)

    def axis(self, name: Literal["rm", "rv", "rh"]) -> tuple[float, ...]:
        """Return the values of one axis."""
        values: Values = getattr(self, name)
        return values.values if isinstance(values, Range) else values

    def grid(self) -> tuple[tuple[float, float, float], ...]:
        """Return all (rm, rv, rh)."""
        return tuple(product(self.axis("rm"), self.axis("rv"), self.axis("rh")))


class MarginSpec(_Section, frozen=True, kw_only=True):
    """Equivalence margins to the paper."""

    u: float = 0.10  # the largest |U/U_paper - 1|
    q: tuple[float, float] = (0.05, 0.5)  # the range of q = 1 - R_M for which `u` holds
    rv: float = 0.005  # the largest distance of a measured R_V* from the bound


class Spec(_Section, frozen=True, kw_only=True):
    """A whole campaign file.

    The file's names ``station`` (the node) and ``shots`` (common causes) are those of kept
    campaigns.
    """

    title: str  # the report's title
    question: Question  # what the report answers
    about: str = ""  # a paragraph for the report
    station: NodeSpec = NodeSpec()  # the node
    workload: Workload = Workload()  # the requests
    repair: Repair = "off"  # of guests that left the vote, in a mission; off: the paper's model
    faults: dict[str, float] = {}  # kinds with weights: the fault of each hit guest
    voter_faults: dict[str, float] = {}  # the same for a hit voter
    function_faults: dict[str, float] = {}  # the same for a hit f
    host_function_faults: dict[str, float] = {}  # the same for a hit F
    alike: float = 0.5  # share of missions with two or more liars in which they lie the same way
    strata: tuple[StratumSpec, ...] = ()  # missions by what is hit
    doses: tuple[DoseSpec, ...] = ()  # missions by numbers of bit flips
    shots: tuple[CommonCauseSpec, ...] = ()  # missions with a common cause
    points: Points = Points()  # where R_sys is compared with the paper
    alpha: float = 0.05  # error probability of all intervals together: .05 for 95 %
    margins: MarginSpec = MarginSpec()  # what counts as equal to the paper
    extension: float = 0.0  # share of the missions that may be added once if the question is still
    # undecided; each analysis then has half of alpha
    workers: int | None = None  # nodes at the same time; without it one a processor

    @property
    def alpha_per_analysis(self) -> float:
        """The error probability of one analysis of the data."""
        return self.alpha / 2 if self.extension else self.alpha

    @property
    def guest_names(self) -> tuple[str, ...]:
        """Return g1, g2, ..."""
        return tuple(f"g{number}" for number in range(1, self.station.guests + 1))

    def guests_of(self, vote: str) -> int:
        """Return the number of guests that a stratum's policy is over."""
        return Policy.parse(vote).of if vote else self.station.guests

    @property
    def kinds(self) -> frozenset[str]:
        """Return every kind of fault that a mission may have."""
        mixes = (
            (self.faults, any(each.guests_hit for each in self.strata)),
            (self.voter_faults, any(each.voter_hit for each in self.strata)),
            (self.function_faults, any(each.function_hit for each in self.strata)),
            (self.host_function_faults, any(each.host_function_hit for each in self.strata)),
        )
        return frozenset(
            {kind for mix, used in mixes if used for kind, weight in mix.items() if weight}
            | {dose.kind for dose in self.doses if dose.flips}
            | {cause.kind for cause in self.shots}
        )

    @property
    def node(self) -> NodeSpec:
        """Return the node that missions need, with the workload's mix."""
        return msgspec.structs.replace(self.station, mix=self.workload.mix)

    @property
    def hash(self) -> str:
        """Return the SHA-256, in hex, of what is run and how it is judged.

        So it does not depend on comments, spaces, ``title``, ``about``, ``workers``, and the
        directory of a service file.
        """
        meaning = msgspec.to_builtins(msgspec.structs.replace(self, workers=None))
        del meaning["title"], meaning["about"]
        # Fields that came later are left out where unused, so that older hashes stay valid.
        _forget(meaning, function_faults={}, host_function_faults={})
        if is_file(self.station.service):
            meaning["station"]["service"] = Path(self.station.service).name
        _forget(meaning["station"], function="none", mix={})
        _forget(meaning["workload"], mix={})
        for stratum in meaning["strata"]:
            _forget(stratum, vote=None, function_hit=0, host_function_hit=False)
        for cause in meaning["shots"]:
            _forget(cause, vote=None)
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()


def is_file(service: str) -> bool:
    """Return whether a service is a Python file, and not one of the shipped ones."""
    return service.endswith(".py")


def _forget(part: dict[str, object], **unused: object) -> None:
    """Remove from ``part`` the fields that have these values."""
    for name, value in unused.items():
        if part[name] == value:
            del part[name]
