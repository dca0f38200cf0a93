"""The result of ``trivisor bench``: what was measured, and the values of its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from faultinject.bench import rig
from faultinject.bench.build_driver import Sample
from faultinject.bench.disturbance import Disturbance, RecoveryTimes
from faultinject.bench.figures import FIGURES, GOALS, Value, evaluate
from faultinject.bench.idle import IdleCost
from faultinject.bench.rounds import ratios
from faultinject.bench.transfer import TransferReport
from faultinject.host_facts import DiskFacts, Host

__all__ = [
    "BenchPlan",
    "BenchReport",
    "CampaignRate",
    "Measured",
    "Round",
    "VoterMode",
    "evaluate_all",
]

QUICK_MINUTES = 4.0

Round = dict[str, dict[str, Sample]]
"""The samples of one round, by target and load."""


class BenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: the options of ``trivisor bench``."""

    minutes: float
    quick: bool
    only: tuple[str, ...]  # figures; all of them if empty
    seed: int
    accel: rig.Requested

    @property
    def figures(self) -> frozenset[str]:
        """The figures to measure."""
        return frozenset(self.only or FIGURES)

    @property
    def seconds(self) -> float:
        """How long the run is meant to take."""
        return 60 * min(self.minutes, QUICK_MINUTES if self.quick else self.minutes)

    @property
    def pairs(self) -> int:
        """Pairs of windows for each kind of failure: ten, more in a long run."""
        return 2 if self.quick else max(10, round(10 * self.minutes / 15))


class CampaignRate(msgspec.Struct, frozen=True, kw_only=True):
    """Missions of a campaign, and the seconds from the start of the first to that of the last."""

    missions: int
    seconds: float

    @property
    def per_hour(self) -> float:
        """Missions per hour of all workers together."""
        return 3600 * (self.missions - 1) / self.seconds


class Measured(msgspec.Struct, kw_only=True):
    """What a run has measured so far, as it was measured: times in seconds, sizes in bytes."""

    processes: list[Round] = []
    guests: list[Round] = []
    arrivals: float = 0.0  # requests a second that unpipelined arrivals sustain
    disturbances: list[Disturbance] = []
    recoveries: list[RecoveryTimes] = []
    transfer: TransferReport | None = None
    campaign: CampaignRate | None = None
    idle: IdleCost | None = None


class VoterMode(msgspec.Struct, frozen=True, kw_only=True):
    """How a voter ran: None where it does not report it."""

    compiled: bool | None  # the voter's modules
    replicas_compiled: list[bool | None]
    follow: bool | None  # whether some replicas get their orders later

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> VoterMode:
        """Return the mode in a voter's answer to GET /status."""
        return cls(
            compiled=status.get("compiled"),
            replicas_compiled=[each.get("compiled") for each in status["replicas"]],
            follow=status.get("follow", {}).get("on"),
        )

    def __str__(self) -> str:
        words = {True: "compiled", False: "pure Python", None: "not known"}
        replicas = " and ".join(sorted({words[each] for each in self.replicas_compiled}))
        follow = {True: "on", False: "off", None: "not known"}[self.follow]
        return f"voter {words[self.compiled]}, replicas {replicas}, follow {follow}"


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run.

    ``build`` and ``old``: the commits compared, ``old`` empty without ``--compare``.  ``modes``: by
    stage.  ``others``: by stage, the share of the host's processors that other programs used.
    ``missing``: by figure or stage, why it was not measured.
    """

    plan: BenchPlan
    seconds: float
    interrupted: bool
    build: str
    old: str
    host: Host
    disk: DiskFacts
    etcd: str  # its version
    modes: dict[str, VoterMode]
    others: dict[str, float]
    values: list[Value]
    missing: dict[str, str]
    measured: Measured


def _rate(load: str) -> Callable[[dict[str, Sample]], float]:
    return lambda loads: loads[load].rate


def _p50(load: str) -> Callable[[dict[str, Sample]], float]:
    return lambda loads: loads[load].p50


def _cost(loads: dict[str, Sample]) -> float:
    """Return the processor seconds of a request, of all processes together."""
    return sum(loads["many"].processor.values())


def _costs(rounds: list[Round], target: str, role: str) -> list[float]:
    found = [each[target]["many"].processor for each in rounds if target in each]
    return [1e6 * (each[role] if role else sum(each.values())) for each in found]


def evaluate_all(measured: Measured, figures: frozenset[str]) -> list[Value]:
    """Return the values of all figures that were measured."""
    processes, guests = measured.processes, measured.guests
    many, one, paused = _rate("many"), _p50("one"), _p50("paused")
    of_processes, of_guests = partial(ratios, processes), partial(ratios, guests)
    found: list[Value | None] = []

    def add(figure: str, name: str, values: list[float]) -> None:
        if figure in figures:
            found.append(evaluate(figure, name, values))

    pair = ("exec", "old exec")
    for peer in ("HAProxy", "aiohttp proxy"):
        add("haproxy", f"exec: / {peer}, /s at 64", of_processes(many, "exec", peer))
    add("haproxy", "exec: / old exec:, /s at 64", of_processes(many, *pair))
    add("haproxy", "exec: / old exec:, p50", of_processes(one, *pair))
    add("processor", "exec: / old exec:", of_processes(_cost, *pair))

    for connections, of in (("1 connection", ""), ("64 connections", ", 64 connections")):
        name = f"fsync / etcd, /s at 64, {connections}"
        add("durable", name, of_processes(many, f"durable{of}", f"etcd{of}"))
    add("durable", "fsync / etcd, p50", of_processes(one, "durable", "etcd"))
    pair = ("durable", "old durable")
    add("durable", "fsync / old fsync, /s at 64", of_processes(many, *pair))
    add("durable", "fsync / old fsync, p50", of_processes(one, *pair))
    add("durable", "os / none, /s at 64", of_processes(many, "os", "exec"))
    add("durable", "fsync / none, /s at 64", of_processes(many, "durable", "exec"))
    session = of_processes(many, "durable, in a session", "durable")
    add("durable", "fsync in a session / without, /s at 64", session)

    pair, bare = ("guests", "old guests"), ("guests", "bare link")
    add("guests", "voted / old voted, /s at 64", of_guests(many, *pair))
    add("guests", "voted / bare link, /s at 64", of_guests(many, *bare))
    http = of_guests(many, "guests, HTTP", "guests")
    add("guests", "voted, HTTP / native, /s at 64", http)
    for figure, pauses in ((one, ""), (paused, ", 8 ms pauses")):
        add("latency", f"voted / bare link, p50{pauses}", of_guests(figure, *bare))
        add("latency", f"voted / old voted, p50{pauses}", of_guests(figure, *pair))
    add("processor", "guests / old guests", of_guests(_cost, *pair))

    for role, name in (("voter", "voter"), ("replicas", "three agents"), ("driver", "driver")):
        add("processor", f"{name}, exec:", _costs(processes, "exec", role))
    add("processor", "voter, agents and driver, exec:", _costs(processes, "exec", ""))
    for role, name in (
        ("voter", "voter, guests"),
        ("guests", "three guests"),
        ("", "voter, guests and driver"),
    ):
        add("processor", name, _costs(guests, "guests", role))

    for disturbance in measured.disturbances:
        pairs = zip(disturbance.quiet, disturbance.faulty, strict=True)
        added = [1e3 * (faulty - quiet) for quiet, faulty in pairs]
        add("failure", f"{disturbance.kind}: added p99.9", added)
    if measured.disturbances:
        failed = sum(each.failed for each in measured.disturbances)
        add("failure", "failed requests", [float(failed)])
    for done in measured.recoveries:
        qemu = "killed" if done.kind == "kill" else "alive"
        add("recovery", f"QEMU {qemu}, 1,000 keys", done.seconds)
    if measured.transfer is not None:
        passages = measured.transfer.passages
        add("transfer", "p99 of the others, during / before", [each.ratio for each in passages])
        add("transfer", "voting again after", [each.seconds for each in passages])
        failed = sum(chain.from_iterable(each.failures.values() for each in passages))
        add("transfer", "failed requests", [float(failed)])
    if measured.campaign is not None:
        add("campaign", "one guest hit, QEMU alive", [measured.campaign.per_hour])
    if measured.idle is not None:
        add("idle", "each connection", [measured.idle.each / 1024])
    order = list(GOALS)
    values = [each for each in found if each is not None]
    return sorted(values, key=lambda each: order.index(f"{each.figure}: {each.name}"))
