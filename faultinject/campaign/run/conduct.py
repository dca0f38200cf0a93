"""A run from the command: workers here or on a cluster, signals, the screen, the end in words."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog
from rich.console import Console

from deploy.machine.debug_stub import why_no_stub
from deploy.node.records import cache_directory
from faultinject.campaign.planning.rates import Rates
from faultinject.campaign.planning.spec import Spec
from faultinject.campaign.run.running import InterimResults, look_at
from faultinject.campaign.run.screen import CampaignScreen, cells_table, duration
from faultinject.campaign.store.store import Store
from faultinject.campaign.workers.runner import Ending, Stop, run_missions
from faultinject.campaign.workers.scratch import ScratchDirectories, sweep_abandoned
from faultinject.campaign.workers.tasks import STATION, Worker
from faultinject.campaign.workers.worker_process import WorkerProcess
from faultinject.campaign.workers.worker_thread import MissionSource
from faultinject.faults import CATALOGUE
from voter.commands.terminal import CommandError, ExitCode

__all__ = [
    "RunOptions",
    "conduct",
    "default_workers",
    "keep_rates",
    "known_rates",
    "look_into",
    "refuse_impossible",
    "show_ending",
    "usual_rates",
    "versions",
]

_log = structlog.get_logger(__name__)

TELLING = 50
"""Missions from which on their mean duration tells something of those to come."""
USUAL = Path(__file__).with_name("usual-rates.json")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a campaign is to be run.

    ``workers``: None, as its file says, or as many as processors.  ``scheduler``: of a cluster, ""
    for this host.  ``first``: only so many of the plan's order.  ``station``: see ``tasks``.
    """

    workers: int | None = None
    scheduler: str = ""
    first: int | None = None
    station: str = STATION


def conduct(store: Store, wish: RunOptions, console: Console) -> Ending:
    """Run what is pending of a campaign, as far as it gets, and leave nothing running.

    Raises CommandError (a cluster that is not there), StoreError, OSError.
    """
    if not wish.scheduler and wish.station == STATION:
        refuse_impossible(store.spec)
    stop = Stop()
    goal = store.total if wish.first is None else min(store.total, wish.first)
    screen = CampaignScreen(
        console,
        done=store.done,
        total=store.total,
        goal=max(goal, store.done),
        look=lambda: look_into(store),
        voted=lambda index: store.plan.cell_of(index).design == "voted",
    )
    with screen, _signals(stop, screen), _crew(store, wish, screen.step) as workers:
        ending = run_missions(
            store, workers, screen, stop, first=wish.first, scheduler=wish.scheduler
        )
    if ending.missions and wish.station == STATION:
        keep_rates(store)
    return ending


def refuse_impossible(spec: Spec) -> None:
    """Raise CommandError if a fault of the campaign cannot be had of this host's QEMU."""
    stubbed = sorted(kind for kind in spec.kinds if "gdb" in CATALOGUE[kind].needs)
    if stubbed and (why := why_no_stub()):
        raise CommandError(
            f"{', '.join(stubbed)} cannot be done here: QEMU has no debug stub ({why})",
            remedy="take it out of the campaign's file, or install Debian's qemu-system-x86",
            code=ExitCode.CANNOT_RUN_HERE,
        )


def show_ending(store: Store, ending: Ending, console: Console) -> None:
    """Print what there is now, and what to do next."""
    running = look_into(store)
    console.print(cells_table(running.cells))
    for words in running.words:
        console.print(words, markup=False)
    rate = f", {ending.missions / ending.seconds * 3600:,.0f} an hour" if ending.seconds else ""
    console.print(
        f"{store.done:,} of {store.total:,} missions are stored, {ending.missions:,} by this run "
        f"in {duration(ending.seconds)}{rate}"
    )
    if store.partial:
        console.print(
            f"[yellow]partial[/] ({ending.why}): `trivisor campaign resume {store.directory}` goes "
            "on with the same plan"
        )
    images = {(each.image, each.build, each.accel) for each in store.meta().facts.values()}
    if len(images) > 1:
        console.print("[yellow]its workers did not run the same image, build and accelerator[/]")


def look_into(store: Store) -> InterimResults:
    """Return what a store's rows show."""
    return look_at(store.spec, store.plan.cells, store.by_stratum())


@contextlib.contextmanager
def _crew(
    store: Store, wish: RunOptions, progress: Callable[[str], None]
) -> Iterator[Sequence[MissionSource]]:
    """Give the workers; they, and all that they started, have ended afterwards."""
    worker = Worker(station=wish.station, spec=store.spec.node)
    if wish.scheduler:
        from faultinject.campaign.workers.dask import DaskCluster  # noqa: PLC0415 - an extra

        cluster = DaskCluster(wish.scheduler, worker, expected=wish.workers)
        try:
            progress(f"{len(cluster.addresses)} workers at {wish.scheduler}")
            yield cluster.slots
        finally:
            cluster.close()
        return
    sweep_abandoned(progress)
    berths = ScratchDirectories()
    try:
        yield [
            WorkerProcess(f"w{number}", worker, berths, progress)
            for number in range(1, (wish.workers or default_workers(store.spec)) + 1)
        ]
    finally:
        berths.close()


def default_workers(spec: Spec) -> int:
    """Return how many workers there are if the command does not say."""
    return spec.workers or len(os.sched_getaffinity(0))


# ------------------------------------------------------------------ what this host has learnt


def keep_rates(store: Store) -> None:
    """Keep how long missions took here, so that the next plan can tell how long it will take."""
    rates = store.rates()
    if rates is None or rates.missions < TELLING:
        return
    rates = (known_rates() or Rates()).updated(rates)
    path = _rates_path()
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(msgspec.json.encode(rates))
        aside.replace(path)
    except OSError as error:
        _log.warning("how long missions take is not kept", error=str(error))


def usual_rates() -> Rates:
    """Return how long missions took on two cores without KVM, for hosts that have learnt nothing.

    Made of the campaigns in docs/results.
    """
    return msgspec.json.decode(USUAL.read_bytes(), type=Rates)


def known_rates() -> Rates | None:
    """Return how long missions took on this host, None if none was run yet."""
    try:
        return msgspec.json.decode(_rates_path().read_bytes(), type=Rates)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # of another version: the next run writes it anew


def _rates_path() -> Path:
    return cache_directory() / "mission-times.json"


def versions() -> dict[str, str]:
    """Return the versions that a campaign's planning depends on."""
    try:
        own = importlib.metadata.version("trivisor")
    except importlib.metadata.PackageNotFoundError:
        own = "from its sources"
    return {"trivisor": own, "python": platform.python_version()}


@contextlib.contextmanager
def _signals(stop: Stop, screen: CampaignScreen) -> Iterator[None]:
    """Have Ctrl-C, and whoever ends us gently, stop the run; twice: at once."""

    def ask(*_: object) -> None:
        stop.ask()
        screen.stopping = (
            "its workers are killed" if stop.now.is_set()
            else "the workers end their guests; Ctrl-C again: at once"
        )  # fmt: skip

    former = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
