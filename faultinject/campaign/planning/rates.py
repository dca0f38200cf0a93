"""How long missions take: learned from missions that ran, used to estimate plans.

All times are seconds of one worker.  A single fault is known by its kind.  Several faults do not
add up, because most of their time is waiting for the same deadline; and the time of bit flips
depends on their number.  So such missions are known by their stratum.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from deploy.node.records import cache_directory
from faultinject.campaign.records import MissionPlan

__all__ = ["MissionShape", "Rates", "keep_rates", "known_rates", "learn", "usual_rates"]

ENOUGH = 50
"""Missions from which the mean duration is kept for estimates; fewer are not kept."""
USUAL = Path(__file__).with_name("usual-rates.json")

_log = structlog.get_logger(__name__)


class MissionShape(msgspec.Struct, frozen=True, kw_only=True):
    """A mission that ran.

    ``kinds``: one for each target hit.  ``forced``: it is of a stratum, not of a dose or a shot.
    """

    stratum: str
    kinds: tuple[str, ...]
    forced: bool
    seconds: float


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mean seconds of missions.

    ``clean``: without a fault; None if there was none.  ``kinds``: with one fault, by its kind.
    ``strata``: by stratum, dose or shot.  ``missions``: how many these means are from.
    """

    clean: float | None = None
    kinds: dict[str, float] = {}
    strata: dict[str, float] = {}
    missions: int = 0

    def mission(self, plan: MissionPlan) -> float:
        """Return the seconds that a mission is expected to take.

        In an unknown stratum that is the time of its longest fault; for unknown kinds, the mean of
        the known kinds.
        """
        if plan.stratum in self.strata:
            return self.strata[plan.stratum]
        kinds = {hit.kind for hit in plan.hits}
        times = [self.kinds[kind] for kind in kinds if kind in self.kinds]
        if times:
            return max(times)
        if self.kinds and (kinds or self.clean is None):
            return _mean(self.kinds.values())
        return self.clean or 0.0

    def updated(self, newer: Rates) -> Rates:
        """Return these rates, replaced by those of ``newer`` where it has any."""
        return Rates(
            clean=self.clean if newer.clean is None else newer.clean,
            kinds=self.kinds | newer.kinds,
            strata=self.strata | newer.strata,
            missions=newer.missions,
        )


def _mean(times: Iterable[float]) -> float:
    known = list(times)
    return sum(known) / len(known) if known else 0.0


def _means(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: _mean(each) for name, each in sorted(times.items())}


def learn(missions: Iterable[MissionShape]) -> Rates | None:
    """Return the rates of missions that ran; None without one."""
    clean: list[float] = []
    kinds: dict[str, list[float]] = {}
    strata: dict[str, list[float]] = {}
    count = 0
    for each in missions:
        count += 1
        strata.setdefault(each.stratum, []).append(each.seconds)
        if not each.kinds:
            clean.append(each.seconds)
        elif each.forced and len(each.kinds) == 1:
            kinds.setdefault(each.kinds[0], []).append(each.seconds)
    if not count:
        return None
    return Rates(
        clean=_mean(clean) if clean else None, kinds=_means(kinds), strata=_means(strata),
        missions=count,
    )  # fmt: skip


def keep_rates(rates: Rates | None) -> None:
    """Keep how long missions took on this host, for estimates of later plans."""
    if rates is None or rates.missions < ENOUGH:
        return
    rates = (known_rates() or Rates()).updated(rates)
    path = _path()
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(rates))
        new.replace(path)
    except OSError as error:
        _log.warning("mission durations were not saved", error=str(error))


def known_rates() -> Rates | None:
    """Return how long missions took on this host; None if that is not known."""
    try:
        return msgspec.json.decode(_path().read_bytes(), type=Rates)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # written by another version: the next run replaces it


def usual_rates() -> Rates:
    """Return how long missions took on two cores without KVM, in the campaigns of docs/results."""
    return msgspec.json.decode(USUAL.read_bytes(), type=Rates)


def _path() -> Path:
    return cache_directory() / "mission-times.json"
