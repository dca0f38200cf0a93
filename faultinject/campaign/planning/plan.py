"""The plan of a campaign: ``plan(spec, seed)``.  Pure: each mission follows from spec and seed.

A *cell* is a set of missions planned alike: a stratum, a dose or a common cause, with one design
and one setting of repair.  Missions are numbered cell by cell and run in a random order.

For each mission, the guests hit, the kinds of faults, the moments and the seeds are drawn
independently from the fixed mix.  Neither the order nor the draws depend on outcomes.  So the
strata can be combined into what independent draws would have given.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from math import ceil, log, log1p

import msgspec

from faultinject.campaign.planning.draws import Draws, Mix, permutation
from faultinject.campaign.planning.spec import Spec, StratumSpec
from faultinject.campaign.planning.spec_checks import repairs
from faultinject.campaign.records import MissionPlan
from faultinject.faults import CATALOGUE, Injection
from faultinject.results.outcome import Design

__all__ = ["LIARS", "CampaignPlan", "Cell", "missions_for", "plan"]

LIARS = frozenset({"corrupt-reply", "stale-reply"})
"""Kinds whose wrong replies would win a vote if two guests returned the same one.  The injector
chooses whether they do (``Spec.alike``)."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Missions planned alike.

    ``k``: guests hit.  ``function_k``: further guests, whose f is hit.  ``vote``: a policy over the
    first guests; "": the node's.  ``dose``: flips in each guest (0: none).  ``kind``: of a dose
    or common cause; "" for a stratum, whose kinds are drawn.  ``missions``: how many.
    """

    name: str
    design: Design
    repair: bool
    k: int
    voter_hit: bool = False
    function_k: int = 0
    host_function_hit: bool = False
    vote: str = ""
    dose: int = 0
    kind: str = ""
    common_cause: bool = msgspec.field(default=False, name="shot")
    missions: int

    @property
    def forced(self) -> bool:
        """Return whether it is a stratum, where hit guests fail by construction."""
        return not self.kind

    @property
    def failing_guests(self) -> int:
        """Return the number of guests hit, in f or elsewhere."""
        return self.k + self.function_k

    @property
    def host_target_hit(self) -> bool:
        """Return whether the layer under the guests is hit: the voter, or F."""
        return self.voter_hit or self.host_function_hit


def missions_for(bound: float, alpha: float, strata: int) -> int:
    """Return the missions that a stratum needs for an interval no wider than ``bound``.

    That is the Clopper-Pearson interval of missions that all end alike; ``strata`` strata share
    ``alpha`` (Bonferroni).
    """
    return ceil(log(alpha / (2 * strata)) / log1p(-bound))


def _stratum_cells(spec: Spec, stratum: StratumSpec) -> Iterator[Cell]:
    plain = stratum.design == "nv"
    missions = stratum.missions or missions_for(
        stratum.bound or 1.0, spec.alpha_per_analysis, len(spec.strata)
    )
    for repair in (False,) if plain else repairs(stratum.repair or spec.repair):
        # f_k: P(failure | k guests hit).  g_k: P(success | k guests and the voter hit).  See
        # report.texts.GLOSSARY.  The name also selects the mission's random stream.
        symbol = "nv" if plain else "g" if stratum.voter_hit else "f"
        yield Cell(
            name=f"{_prefix(stratum)}{symbol}{stratum.guests_hit}{_suffix(stratum)}"
            f"{'-repair' if repair else ''}",
            design=stratum.design,
            repair=repair,
            k=stratum.guests_hit,
            voter_hit=stratum.voter_hit,
            function_k=stratum.function_hit,
            host_function_hit=stratum.host_function_hit,
            vote=stratum.vote or "",
            missions=missions,
        )


def _prefix(stratum: StratumSpec) -> str:
    return "" if stratum.vote is None else stratum.vote.replace("/", "of") + "-"


def _suffix(stratum: StratumSpec) -> str:
    function = f"-function{stratum.function_hit}" if stratum.function_hit else ""
    return f"{function}{'-moved' if stratum.host_function_hit else ''}"


def _model_cells(spec: Spec) -> Iterator[Cell]:
    """Yield the cells of doses and common causes, in which no guest is forced to fail."""
    wanted = [
        (dose.kind, dose.flips, None, dose.voted, dose.nv) for dose in spec.doses
    ] + [
        (cause.kind, cause.flips, cause.vote or "", cause.missions, cause.nv)
        for cause in spec.shots
    ]  # fmt: skip
    for kind, flips, of, voted, nv in wanted:
        common_cause, vote = of is not None, of or ""
        name = f"shot-{kind}" if common_cause else f"dose-{kind}"
        name += f"-{flips}" if "flip" in kind else ""
        name += f"-{vote.replace('/', 'of')}" if vote else ""
        for repair in repairs(spec.repair) if voted else ():
            yield Cell(
                name=f"{name}{'-repair' if repair else ''}",
                design="voted",
                repair=repair,
                k=spec.guests_of(vote) if flips else 0,
                vote=vote,
                dose=flips,
                kind=kind,
                common_cause=common_cause,
                missions=voted,
            )
        if nv:
            yield Cell(
                name=f"{name}-nv",
                design="nv",
                repair=False,
                k=1 if flips else 0,
                dose=flips,
                kind=kind,
                common_cause=common_cause,
                missions=nv,
            )


class CampaignPlan:
    """The missions of a campaign, numbered from 0 to ``total`` less 1.

    The first ``first`` missions are those of the first analysis.  They all run before those of the
    extension.
    """

    def __init__(self, spec: Spec, seed: int, *, extended: bool = False) -> None:
        self.spec = spec
        self.seed = seed
        self.extended = extended
        strata = tuple(cell for one in spec.strata for cell in _stratum_cells(spec, one))
        base = (*strata, *_model_cells(spec))
        more = [ceil(cell.missions * spec.extension) if extended else 0 for cell in base]
        self.cells = tuple(
            msgspec.structs.replace(cell, missions=cell.missions + added)
            for cell, added in zip(base, more, strict=True)
        )
        # Blocks of numbers: those of the cells, then those that the extension adds to each.
        sizes = [cell.missions for cell in base] + more
        self._ends = list(accumulate(sizes))
        self._starts = [end - size for end, size in zip(self._ends, sizes, strict=True)]
        self._offsets = [0] * len(base) + [cell.missions for cell in base]
        self.first = self._ends[len(base) - 1] if base else 0
        self.total = self._ends[-1] if base else 0
        self._faults = Mix(spec.faults) if spec.faults else None
        self._voter_faults = Mix(spec.voter_faults) if spec.voter_faults else None
        self._f_faults = Mix(spec.function_faults) if spec.function_faults else None
        self._host_f_faults = Mix(spec.host_function_faults) if spec.host_function_faults else None

    @property
    def missions(self) -> Iterator[MissionPlan]:
        """Yield all missions by number."""
        return map(self.mission, range(self.total))

    # ------------------------------------------------------------- the order

    @cached_property
    def _order(self) -> list[int]:
        """Return the missions' numbers in the order in which they run."""
        order = permutation(self.seed, "order", self.first)
        added = permutation(self.seed, "order of the extension", self.total - self.first)
        return order + [self.first + number for number in added]

    @cached_property
    def _places(self) -> list[int]:
        places = [0] * self.total
        for place, index in enumerate(self._order):
            places[index] = place
        return places

    def index_at(self, order: int) -> int:
        """Return the number of the mission at this place of the order.  Raises IndexError."""
        return self._order[order]

    def order_of(self, index: int) -> int:
        """Return a mission's place in the order.  Raises IndexError."""
        return self._places[index]

    def in_order(self) -> Iterator[MissionPlan]:
        """Yield all missions in the order in which they run."""
        return map(self.mission, self._order)

    def blocks(self) -> tuple[range, ...]:
        """Return the numbers of each cell's missions for the first analysis."""
        ends = zip(self._starts, self._ends, strict=True)
        return tuple(range(start, end) for start, end in ends)[: len(self.cells)]

    # ------------------------------------------------------------- one mission

    def _locate(self, index: int) -> tuple[Cell, int]:
        """Return a mission's cell and its number in it."""
        if not 0 <= index < self.total:
            raise IndexError(f"mission {index}: the plan has {self.total}, numbered from 0")
        block = bisect_right(self._ends, index)
        number = index - self._starts[block] + self._offsets[block]
        return self.cells[block % len(self.cells)], number

    def cell_of(self, index: int) -> Cell:
        """Return the cell that a mission is planned for.  Raises IndexError."""
        return self._locate(index)[0]

    def mission(self, index: int) -> MissionPlan:
        """Return one mission.  Raises IndexError."""
        cell, number = self._locate(index)
        draws = Draws(self.seed, cell.name, number)
        workload = self.spec.workload
        own = draws.seed()
        alike: bool | None = None
        if cell.common_cause:
            hits = self._common_cause(cell, draws)
        elif cell.kind:
            hits = self._dose(cell, draws)
        else:
            hits, alike = self._stratum(cell, draws)
        return MissionPlan(
            index=index,
            order=self.order_of(index),
            stratum=cell.name,
            design=cell.design,
            repair=cell.repair,
            k=cell.k,
            voter_hit=cell.voter_hit,
            function_k=cell.function_k,
            host_function_hit=cell.host_function_hit,
            vote=cell.vote,
            seed=own if workload.seed is None else workload.seed,
            length=workload.length,
            injections=tuple(sorted(hits, key=lambda hit: hit.at)),
            alike=alike,
        )

    def _stratum(self, cell: Cell, draws: Draws) -> tuple[list[Injection], bool | None]:
        """Return faults that hit ``k`` random guests, and the f of ``function_k`` others.

        Each guest has its own fault from the mix.
        """
        length = self.spec.workload.length
        of = 1 if cell.design == "nv" else self.spec.guests_of(cell.vote)
        names = self.spec.guest_names[:of]
        hits = []
        for number, name in enumerate(draws.sample(names, cell.failing_guests)):
            mix = self._faults if number < cell.k else self._f_faults
            assert mix is not None  # checked with the spec
            kind = draws.pick(mix)
            hits.append(
                Injection(target=name, kind=kind, at=draws.below(length), seed=draws.seed())
            )
        alike: bool | None = None
        liars = [place for place, hit in enumerate(hits) if hit.kind in LIARS]
        if len(liars) > 1:
            # Only the same lie at the same time can win a vote, so all have the first one's.
            alike = draws.chance(self.spec.alike)
            for place in liars if alike else ():
                lie = hits[liars[0]]
                hits[place] = msgspec.structs.replace(lie, target=hits[place].target)
        for target, hit, mix in (
            ("voter", cell.voter_hit, self._voter_faults),
            ("function", cell.host_function_hit, self._host_f_faults),
        ):
            if hit:
                assert mix is not None  # checked with the spec
                kind = draws.pick(mix)
                hits.append(
                    Injection(target=target, kind=kind, at=draws.below(length), seed=draws.seed())
                )
        return hits, alike

    def _dose(self, cell: Cell, draws: Draws) -> list[Injection]:
        """Return ``dose`` flips in each guest at independent moments; one hit a moment."""
        length = self.spec.workload.length
        return [
            Injection(target=name, kind=cell.kind, at=at, seed=draws.seed(), dose=count)
            for name in self.spec.guest_names[: cell.k]
            for at, count in draws.spread(cell.dose, length)
        ]

    def _common_cause(self, cell: Cell, draws: Draws) -> list[Injection]:
        """Return one common cause: a fault that is shared, or one seed in all guests."""
        at, seed = draws.below(self.spec.workload.length), draws.seed()
        targets = CATALOGUE[cell.kind].targets
        if "guest" in targets:
            names: tuple[str, ...] = self.spec.guest_names[: cell.k]
        else:
            names = ("host",) if "host" in targets else ("client",)
        return [
            Injection(target=name, kind=cell.kind, at=at, seed=seed, dose=cell.dose)
            for name in names
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the cells, and of some missions of each.

        It shows whether another version of this code plans the same missions.
        """
        known = hashlib.sha256(_encode([self.seed, self.cells]))
        for start, end in zip(self._starts, self._ends, strict=True):
            for index in sorted({start, (start + end) // 2, end - 1} if end > start else ()):
                known.update(_encode(self.mission(index)))
        return known.hexdigest()


def _encode(what: object) -> bytes:
    """Return a value as JSON, without unused later fields: older fingerprints stay valid."""
    text = msgspec.json.encode(what)
    for unused in (b'"vote":"",', b'"function_k":0,', b'"host_function_hit":false,'):
        text = text.replace(unused, b"")
    return text


def plan(spec: Spec, seed: int, *, extended: bool = False) -> CampaignPlan:
    """Return the plan of a campaign.  Raises ValueError unless ``seed`` is 0 to 2^63 - 1."""
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed {seed}: 0 to 2^63 - 1")
    return CampaignPlan(spec, seed, extended=extended)
