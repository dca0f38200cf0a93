"""``trivisor bench rejuvenation``: what clients notice while a guest is replaced.

A real node, started as users start it, serves requests at fixed times.  A pair is a quiet window,
and next to it a window in which `trivisor rejuvenate` replaces a guest.  Latencies are compared
within a pair, so whatever slows the machine for minutes does not count.  The settings are the
shares of a processor that a boot gets, the lowest weight, a clone, and the restore in place.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import msgspec

from deploy.commands.control_client import ask
from deploy.host.install import require_libraries
from deploy.node.records import Layout
from faultinject.bench import rig
from faultinject.bench.usage import HostShare
from faultinject.host_facts import Host, describe_host
from faultinject.load import Arrivals, LatencySummary, percentile, summarize, window
from faultinject.node_command import run_trivisor
from faultinject.plotting import FAINT, INK, MEASURED, PLAIN, draw, new_figure, soften
from voter.client import Client

__all__ = [
    "SETTINGS", "Pair", "RejuvenationPlan", "RejuvenationReport", "plot_rejuvenation",
    "run_rejuvenation",
]  # fmt: skip

SETTINGS: dict[str, dict[str, Any]] = {
    "100 %": {"by": "boot", "share": 100},
    "50 %": {"by": "boot", "share": 50},
    "25 %": {"by": "boot", "share": 25},
    "10 %": {"by": "boot", "share": 10},
    "lowest weight": {"by": "boot", "share": 0},
    "clone": {"by": "clone", "share": None},
    "in place": {"by": "in-place", "share": None},
}
"""What each setting orders.  Those with a percentage boot a guest with that part of a processor."""

FULL = "100 %"
TIMEOUT = 1200.0
"""Seconds for one replacement; then the run fails."""
WARM_UP = 200
"""Requests before the first window."""


class RejuvenationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: rounds of one pair for each setting, seconds of a window."""

    rounds: int
    window: float
    rate: float  # requests a second
    settings: tuple[str, ...]
    accel: rig.Requested
    seed: int


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A quiet window, and one in which a guest was replaced.

    ``during`` lasts until the replacement is over, but at least as long as the quiet window.
    ``seconds``: from the order until the new guest votes and the old one has ended.  ``ready``:
    until the new virtual machine was ready, None in place.  ``bounded``: by what its boot was.
    """

    setting: str
    quiet: LatencySummary
    during: LatencySummary
    requests: int  # in both windows
    failed: int
    seconds: float
    ready: float | None
    how: str
    bounded: str

    def ratio(self, figure: str) -> float:
        """Return p50 or p99 during the replacement, divided by that of the quiet window."""
        return float(getattr(self.during, figure) / getattr(self.quiet, figure))


class RejuvenationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one run.  ``others``: share of the processors that other programs used."""

    plan: RejuvenationPlan
    seconds: float
    host: Host
    pairs: list[Pair]
    others: float

    def of(self, setting: str) -> list[Pair]:
        """Return the pairs of a setting."""
        return [pair for pair in self.pairs if pair.setting == setting]

    def quartiles(self, setting: str, figure: str) -> tuple[float, float, float]:
        """Return lower quartile, median and upper quartile.

        ``figure``: p50 or p99, of their ratios; or seconds.
        """
        found = [
            pair.seconds if figure == "seconds" else pair.ratio(figure) for pair in self.of(setting)
        ]
        return percentile(found, 0.25), median(found), percentile(found, 0.75)

    @property
    def failed(self) -> int:
        """The requests that failed in all windows."""
        return sum(pair.failed for pair in self.pairs)

    @property
    def clone_to_boot(self) -> float | None:
        """How long a clone takes, divided by a boot with a whole processor; None without both."""
        if not self.of("clone") or not self.of(FULL):
            return None
        return self.quartiles("clone", "seconds")[1] / self.quartiles(FULL, "seconds")[1]


def run_rejuvenation(
    plan: RejuvenationPlan, progress: Callable[[str], None], scratch: Path | None = None
) -> RejuvenationReport:
    """Start a node, measure, stop it.  Raises CommandError if a step fails."""
    return rig.run_in_scratch(lambda directory: _run(plan, directory, progress), "r", scratch)


async def _run(
    plan: RejuvenationPlan, directory: Path, progress: Callable[[str], None]
) -> RejuvenationReport:
    began, load = time.monotonic(), os.getloadavg()[0]
    place = directory / "n"
    progress("starting a node")
    pairs: list[Pair] = []
    try:
        status = json.loads(
            await run_trivisor(
                place, "up", "--json", "--http", "127.0.0.1:0", "--dashboard", "off", "--accel",
                plan.accel,
            )
        )  # fmt: skip
        share = HostShare()
        layout, random = Layout(place), Random(plan.seed)
        async with await Client.connect(f"unix:{place}/native.sock") as client:
            requests = rig.puts(100)

            def start() -> asyncio.Future[Any]:
                return client.start(next(requests))

            await window(start, plan.rate, WARM_UP / plan.rate)
            for number in range(plan.rounds):
                for setting in random.sample(plan.settings, len(plan.settings)):
                    pair = await _measure(plan, layout, setting, start)
                    pairs.append(pair)
                    progress(
                        f"round {number + 1}: {setting}: {pair.seconds:.1f} s, p50 "
                        f"{pair.ratio('p50'):.2f} and p99 {pair.ratio('p99'):.2f} times"
                    )
    finally:
        await run_trivisor(place, "down")
    return RejuvenationReport(
        plan=plan, seconds=time.monotonic() - began,
        host=describe_host(accel=str(status["accel"]), load_before=load), pairs=pairs,
        others=share.others(),
    )  # fmt: skip


async def _measure(
    plan: RejuvenationPlan, layout: Layout, setting: str, start: Callable[[], Any]
) -> Pair:
    quiet = await window(start, plan.rate, plan.window)
    async with Arrivals(start, plan.rate) as during:
        least = asyncio.create_task(asyncio.sleep(plan.window))
        done = await asyncio.to_thread(_replace, layout, setting)
        await least
    return Pair(
        setting=setting,
        quiet=summarize(quiet.latencies),
        during=summarize(during.latencies),
        requests=len(quiet.latencies) + len(during.latencies),
        failed=len(quiet.failed) + len(during.failed),
        seconds=done["seconds"],
        ready=done.get("ready_seconds"),
        how=done.get("how", "in place"),
        bounded=done.get("bounded", "none"),
    )


def _replace(layout: Layout, setting: str) -> dict[str, Any]:
    """Replace the guest that has run longest.  Raises CommandError."""
    guests = [each for each in ask(layout, "GET", "/status")["guests"] if each["role"] == "voter"]
    oldest = min(guests, key=lambda each: each["since"] or 0.0)["name"]
    return ask(
        layout, "POST", "/rejuvenate", {"guest": oldest} | SETTINGS[setting], timeout=TIMEOUT
    )


def plot_rejuvenation(report: RejuvenationReport, path: Path) -> None:
    """Draw the seconds of a replacement, and the ratios of latencies, over the settings."""
    require_libraries("matplotlib", purpose="pictures")
    names = [name for name in SETTINGS if report.of(name)]
    places = range(len(names))
    with draw():
        figure = new_figure(9.6, 4.4)
        left, right = figure.subplots(1, 2)
        series = ((left, "seconds", MEASURED, "", 0.0), (right, "p50", MEASURED, "p50", -0.1),
                  (right, "p99", PLAIN, "p99", 0.1))  # fmt: skip
        for axes, key, color, label, shift in series:
            for place, name in zip(places, names, strict=True):
                low, middle, high = report.quartiles(name, key)
                axes.plot(
                    [place + shift] * 2, [low, high], color=FAINT, linewidth=4,
                    solid_capstyle="round",
                )  # fmt: skip
                axes.plot(
                    place + shift, middle, "o", color=color, markersize=7,
                    label=label if label and place == 0 else None,
                )  # fmt: skip
        right.axhline(1, color=INK, linewidth=0.8)
        right.axhline(2, color=FAINT, linewidth=0.8, linestyle="--")
        left.set_title("Seconds until the new guest votes")
        right.set_title("Latency, times that of the quiet window")
        right.legend(loc="best")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xticks(list(places), names, rotation=30, ha="right")
            soften(axes, "y")
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else {})
