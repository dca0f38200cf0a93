"""A campaign's file: what is asked, of what node, with which faults, and how many missions.

It is strict TOML: an unknown key, a fault that does not exist, a probability outside [0, 1] or a
stratum that cannot be is refused before anything runs, with its line and its remedy
(``faultinject.campaign.planning.spec_checks``).  ``specs/`` holds the shipped ones.
"""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Literal

import msgspec

from faultinject.campaign.records import Design, StationSpec
from faultinject.results.outcome import Question
from faultinject.strict_toml import SpecError, read_strict, suggest
from voter.core.vote import Policy

__all__ = [
    "FORCED",
    "DoseSpec",
    "MarginSpec",
    "Points",
    "Question",
    "Range",
    "Repair",
    "CommonCauseSpec",
    "Spec",
    "SpecError",
    "StratumSpec",
    "Workload",
    "load",
    "parse",
    "shipped",
]

FORCED: frozenset[Question] = frozenset({"inequality4", "designs"})
"""The questions whose strata force hit guests to fail: they test the voter, not the model."""

Repair = Literal["off", "on", "both"]
"""Whether an expelled guest is put back within the mission; ``off`` is the paper's model.
``both``: the same once with and once without, kept apart."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Workload(_Section, frozen=True, kw_only=True):
    """The requests of a mission.  ``length``: how many.  ``mix``: their kinds with weights; none:
    ``faultinject.history.workload.KV_MIX``, of static content STATIC_MIX.  ``seed``: None, each
    mission has
    requests of its own, drawn from the campaign's seed; else all missions make the same requests.
    Over how many keys, and how large values are: ``StationSpec``.
    """

    length: int = 20
    seed: int | None = None
    mix: dict[str, float] = {}


class StratumSpec(_Section, frozen=True, kw_only=True):
    """Missions in which so many guests are hit.

    ``missions``: how many; or ``bound``: as many as it takes that, if not one of them comes out
    otherwise than the others, the interval of the stratum is no wider than this.  ``repair``: None,
    as the whole campaign.  ``vote``: None, the station's; else another policy, as "1/4", over the
    first of the station's guests.  ``function_hit``: so many further guests, whose function f is
    hit; ``host_function_hit``: F is.
    """

    guests_hit: int
    voter_hit: bool = False
    function_hit: int = 0
    host_function_hit: bool = False
    design: Design = "voted"
    vote: str | None = None
    repair: Repair | None = None
    missions: int | None = None
    bound: float | None = None


class DoseSpec(_Section, frozen=True, kw_only=True):
    """So many ``flips`` for each guest in each mission, at independent moments and places; nothing
    is forced to fail.  ``voted`` and ``nv``: missions of each design.  ``kind``: what is flipped.
    """

    flips: int
    voted: int
    nv: int
    kind: str = "flip-ram"


class CommonCauseSpec(_Section, frozen=True, kw_only=True):
    """One shared cause a mission: it strikes all guests at once, ``flips`` with one seed.

    ``missions``: voted ones; ``nv``: those of the plain design under the same shot.  ``vote``: of
    the first so many guests; not given: the station's.
    """

    kind: str
    missions: int
    nv: int = 0
    flips: int = 1
    vote: str | None = None


class Range(_Section, frozen=True, kw_only=True):
    """A grid: from ``start`` to ``stop``, both in it, by ``step``."""

    start: float
    stop: float
    step: float

    def __post_init__(self) -> None:
        if not (self.step > 0 and self.stop >= self.start):
            raise ValueError("a grid needs a step above 0 and a stop not below its start")
        if (self.stop - self.start) / self.step > 10_000:
            raise ValueError("a grid of more than 10000 points: make its step larger")

    @property
    def values(self) -> tuple[float, ...]:
        """The points, rounded to 12 digits so that 0.1 steps give 0.3 and not 0.30000000000000004.

        A stop that the steps miss by a rounding error is in it.
        """
        count = int((self.stop - self.start) / self.step + 1e-9) + 1
        return tuple(round(self.start + number * self.step, 12) for number in range(count))


Values = tuple[float, ...] | Range


class Points(_Section, frozen=True, kw_only=True):
    """Operating points: all combinations of these reliabilities of a guest (R_M), of the
    virtualization layer (R_V) and of the hardware (R_H).
    """

    rm: Values = (0.7, 0.8, 0.9, 0.95)
    rv: Values = (0.9, 0.95, 0.98, 0.99, 0.999)
    rh: Values = (1.0,)

    def axis(self, name: Literal["rm", "rv", "rh"]) -> tuple[float, ...]:
        """Return one axis' values."""
        values: Values = getattr(self, name)
        return values.values if isinstance(values, Range) else values

    def grid(self) -> tuple[tuple[float, float, float], ...]:
        """Return all (rm, rv, rh)."""
        return tuple(product(self.axis("rm"), self.axis("rv"), self.axis("rh")))


class MarginSpec(_Section, frozen=True, kw_only=True):
    """What counts as equal to the paper: ``|U/U_paper - 1|`` up to ``u`` for q in the range ``q``,
    and a measured R_V* within ``rv`` of the bound.
    """

    u: float = 0.10
    q: tuple[float, float] = (0.05, 0.5)
    rv: float = 0.005


class Spec(_Section, frozen=True, kw_only=True):
    """The whole file.

    ``faults`` and ``voter_faults``: kinds with weights, from which the fault of each hit guest, or
    of the voter, is drawn; ``function_faults`` and ``host_function_faults``: of each hit f, and F.
    ``alike``: of missions with two or more liars, the share in which they lie alike.
    ``extension``: the share of the missions that may be added once if the first look leaves the
    question undecided; both looks then are at half of ``alpha``.
    """

    title: str
    question: Question
    about: str = ""
    station: StationSpec = StationSpec()
    workload: Workload = Workload()
    repair: Repair = "off"
    faults: dict[str, float] = {}
    voter_faults: dict[str, float] = {}
    function_faults: dict[str, float] = {}
    host_function_faults: dict[str, float] = {}
    alike: float = 0.5
    strata: tuple[StratumSpec, ...] = ()
    doses: tuple[DoseSpec, ...] = ()
    shots: tuple[CommonCauseSpec, ...] = ()
    points: Points = Points()
    alpha: float = 0.05
    margins: MarginSpec = MarginSpec()
    extension: float = 0.0
    workers: int | None = None

    @property
    def alpha_look(self) -> float:
        """The error probability of one look at the data."""
        return self.alpha / 2 if self.extension else self.alpha

    @property
    def guest_names(self) -> tuple[str, ...]:
        """g1, g2, ..."""
        return tuple(f"g{number}" for number in range(1, self.station.guests + 1))

    def guests_of(self, vote: str) -> int:
        """Return over how many guests a stratum's vote is."""
        return Policy.parse(vote).of if vote else self.station.guests

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind of fault that a mission of it may have."""
        mixes = (
            (self.faults, any(each.guests_hit for each in self.strata)),
            (self.voter_faults, any(each.voter_hit for each in self.strata)),
            (self.function_faults, any(each.function_hit for each in self.strata)),
            (self.host_function_faults, any(each.host_function_hit for each in self.strata)),
        )
        return frozenset(
            {kind for mix, used in mixes if used for kind, weight in mix.items() if weight}
            | {dose.kind for dose in self.doses if dose.flips}
            | {shot.kind for shot in self.shots}
        )

    @property
    def node(self) -> StationSpec:
        """What a station must be able to do, its workload included."""
        return msgspec.structs.replace(self.station, mix=self.workload.mix)

    @property
    def hash(self) -> str:
        """SHA-256 in hex of what it means: comments, spaces and ``workers`` do not matter."""
        meaning = msgspec.to_builtins(msgspec.structs.replace(self, workers=None))
        # What was not there when campaigns were first kept means nothing where it is not used.
        _forget(meaning, function_faults={}, host_function_faults={})
        _forget(meaning["station"], function="none", mix={})
        _forget(meaning["workload"], mix={})
        for stratum in meaning["strata"]:
            _forget(stratum, vote=None, function_hit=0, host_function_hit=False)
        for shot in meaning["shots"]:
            _forget(shot, vote=None)
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()


def _forget(part: dict[str, object], **unused: object) -> None:
    """Leave out of ``part`` what is as in ``unused``."""
    for name, value in unused.items():
        if part[name] == value:
            del part[name]


def parse(text: str, name: str = "campaign") -> Spec:
    """Read a campaign from text.  Raises SpecError that tells every problem with its line."""
    from faultinject.campaign.planning.spec_checks import check  # noqa: PLC0415 - it is about Spec

    spec, problems = read_strict(text, name, Spec)
    check(spec, problems)
    return spec


def shipped() -> dict[str, Path]:
    """Return the shipped campaign files by name."""
    folder = Path(__file__).with_name("specs")
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(path: Path | str) -> tuple[Spec, str]:
    """Read a campaign file, or a shipped one by its name; return it and its text.

    Raises SpecError.
    """
    place, known = Path(path), shipped()
    if not place.exists() and place.parent == Path() and place.stem in known:
        place = known[place.stem]
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        remedy = suggest(place.stem, known)
        raise SpecError(f"{path}: no such file, and no shipped campaign: {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path)), text
