"""Runs a campaign for the command: workers here or on a cluster, signals, the screen."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from deploy.machine.debug_stub import why_no_stub
from faultinject.campaign.planning.kept_durations import keep_durations
from faultinject.campaign.planning.spec import Spec
from faultinject.campaign.run.dispatch import Ending, MissionSource, Stop, run_missions
from faultinject.campaign.run.interim import InterimResults, interim_results
from faultinject.campaign.run.posting import DashboardPoster
from faultinject.campaign.run.screen import CampaignScreen, duration, results_table
from faultinject.campaign.store.store import Store
from faultinject.campaign.workers.messages import WORKER_MODULE, Worker
from faultinject.campaign.workers.worker_process import WorkerProcess
from faultinject.faults import CATALOGUE
from voter.commands.terminal import CommandError, ExitCode

__all__ = [
    "RunOptions",
    "check_host",
    "default_workers",
    "run_campaign",
    "show_ending",
    "versions",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a campaign.

    ``workers``: None: as its file says, or one a processor.  ``scheduler``: of a Dask cluster; "":
    run on this host.  ``first``: only so many missions of the plan's order.  ``worker_module``: the
    program of a worker.  ``dashboard``: the directory of the node that shows it; None: the default
    node, if it runs.
    """

    workers: int | None = None
    scheduler: str = ""
    first: int | None = None
    worker_module: str = WORKER_MODULE
    dashboard: Path | None = None


def run_campaign(store: Store, options: RunOptions, console: Console) -> Ending:
    """Run the pending missions of a campaign, and leave no process behind.

    Raises CommandError (no such cluster, a fault that this host cannot apply), StoreError, OSError.
    """
    real = options.worker_module == WORKER_MODULE
    if real and not options.scheduler:
        check_host(store.spec)
    stop = Stop()
    poster = DashboardPoster(store.meta().title, store.directory, options.dashboard)
    poster.begin()

    def publish(found: InterimResults, done: int, goal: int, rate: float, state: str = "") -> None:
        poster.post(
            found, state=state or "running", done=done,
            total=store.total, rate=rate, goal=goal,
        )  # fmt: skip

    goal = store.total if options.first is None else min(store.total, options.first)
    screen = CampaignScreen(
        console,
        done=store.done,
        total=store.total,
        goal=max(goal, store.done),
        results=lambda: interim_results(store),
        assess=store.assess,
        voted=lambda index: store.plan.cell_of(index).design == "voted",
        publish=publish,
    )
    # Ctrl-C while a cluster is waited for ends the command at once.
    with screen, _workers(store, options, screen.step) as workers, _signals(stop, screen):
        ending = run_missions(
            store, workers, screen, stop, first=options.first, scheduler=options.scheduler
        )
    publish(interim_results(store), store.done, goal, 0.0, f"ended: {ending.why}")
    if ending.missions and real:
        keep_durations(store.durations())
    return ending


def check_host(spec: Spec) -> None:
    """Raise CommandError if this host's QEMU cannot apply a fault of the campaign."""
    stubbed = sorted(kind for kind in spec.kinds if "gdb" in CATALOGUE[kind].needs)
    if stubbed and (why := why_no_stub()):
        raise CommandError(
            f"{', '.join(stubbed)} cannot be applied here: QEMU has no debug stub ({why})",
            remedy="remove it from the campaign's file, or install Debian's qemu-system-x86",
            code=ExitCode.CANNOT_RUN_HERE,
            error_code="TV0534",
        )


def show_ending(store: Store, ending: Ending, console: Console) -> None:
    """Print the results so far, and what to do next."""
    interim = interim_results(store)
    console.print(results_table(interim.cells))
    for estimate in interim.estimates:
        console.print(estimate, markup=False)
    rate = f", {ending.missions / ending.seconds * 3600:,.0f} an hour" if ending.seconds else ""
    console.print(
        f"{store.done:,} of {store.total:,} missions are stored, {ending.missions:,} by this run "
        f"in {duration(ending.seconds)}{rate}"
    )
    if store.partial:
        where = shlex.quote(str(store.directory))
        console.print(
            f"[yellow]partial[/] ({ending.why}): `trivisor campaign resume {escape(where)}` "
            "continues with the same plan"
        )
    images = {(each.image, each.build, each.accel) for each in store.meta().facts.values()}
    if len(images) > 1:
        console.print("[yellow]the workers had different images, builds or accelerators[/]")


@contextlib.contextmanager
def _workers(
    store: Store, options: RunOptions, progress: Callable[[str], None]
) -> Iterator[Sequence[MissionSource]]:
    """Yield the workers; afterwards they, and all that they started, have ended."""
    worker = Worker(module=options.worker_module, spec=store.spec.node)
    if options.scheduler:
        from faultinject.campaign.workers.dask import DaskCluster  # noqa: PLC0415 - slow to load

        cluster = DaskCluster(options.scheduler, worker, expected=options.workers)
        try:
            progress(f"{len(cluster.addresses)} workers at {options.scheduler}")
            yield cluster.slots
        finally:
            cluster.close()
        return
    sweep_abandoned(progress)
    scratch = ScratchDirectory("c")
    try:
        yield [
            WorkerProcess(f"w{number}", worker, scratch, progress)
            for number in range(1, (options.workers or default_workers(store.spec)) + 1)
        ]
    finally:
        scratch.close()


def default_workers(spec: Spec) -> int:
    """Return the number of workers if the command gives none."""
    return spec.workers or len(os.sched_getaffinity(0))


def versions() -> dict[str, str]:
    """Return the versions that the planning of a campaign depends on."""
    try:
        own = importlib.metadata.version("trivisor")
    except importlib.metadata.PackageNotFoundError:
        own = "from its sources"
    return {"trivisor": own, "python": platform.python_version()}


@contextlib.contextmanager
def _signals(stop: Stop, screen: CampaignScreen) -> Iterator[None]:
    """Have Ctrl-C and signals that ask us to end stop the run; the second one stops it now."""

    def request(*_: object) -> None:
        stop.request()
        screen.stopping = (
            "killing the workers" if stop.now.is_set()
            else "the workers are ending their guests; Ctrl-C again kills them"
        )  # fmt: skip

    former = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
