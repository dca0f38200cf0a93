"""Runs one mission of a campaign again, and prints all its observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape

from deploy.host.scratch import ScratchDirectory, sweep_abandoned
from faultinject.campaign.assessment import AssessedMission, assess
from faultinject.campaign.records import MissionPlan
from faultinject.campaign.store.store import Store
from faultinject.campaign.workers.messages import Task, Worker
from faultinject.campaign.workers.worker_process import WorkerLost, WorkerProcess
from faultinject.results.outcome import NodeFacts
from voter.commands.terminal import CommandError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Replay", "replay_mission", "show_replay"]

_USED = {None: "not known whether it was met", True: "met", False: "not met"}


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A mission that was run again.  ``stored``: the campaign's own mission, if it has run."""

    plan: MissionPlan
    row: AssessedMission
    stored: AssessedMission | None
    same: bool | None
    facts: NodeFacts


def replay_mission(
    store: Store, index: int, module: str, progress: Callable[[str], None]
) -> Replay:
    """Run one mission on a node of its own; store nothing.  Raises CommandError."""
    plan, stored = store.plan.mission(index), store.row(index)
    sweep_abandoned(progress)
    scratch = ScratchDirectory("c")
    worker = WorkerProcess(
        "replay", Worker(module=module, spec=store.spec.node), scratch, progress, log=False
    )
    try:
        result = worker.run(Task(plan=plan))
    except WorkerLost as error:
        raise CommandError(
            f"mission {plan.index} could not be run: {error}",
            remedy=error.remedy,
            code=ExitCode.CANNOT_RUN_HERE if error.how == "refused" else ExitCode.FAILED,
            error_code=error.error_code,
        ) from error
    finally:
        worker.end()
        worker.wait()
        scratch.close()
    row = assess(plan, result.row, store.plan.cells)
    same = None if stored is None else stored.outcome is row.outcome
    return Replay(plan=plan, row=row, stored=stored, same=same, facts=result.facts)


def show_replay(replay: Replay, out: Console) -> None:
    """Print a mission's plan and observations."""
    plan, row = replay.plan, replay.row
    who = "one guest, without the voter" if plan.design == "nv" else "voted"
    repair = "on" if plan.repair else "off"
    out.print(
        f"[bold]mission {plan.index}[/], stratum {plan.stratum}: {who}, repair {repair}, "
        f"{plan.length} requests from seed {plan.seed}"
    )
    _show_hits(plan, row, out)
    _show_guests(row, out)
    out.print(
        f"requests: {row.correct} correct, {row.wrong} wrong ({row.believed} of them believed), "
        f"{row.failed_visibly} failed visibly, "
        f"{row.unanswered} unanswered; {row.masked} released although a replica dissented"
    )
    for number, each in enumerate(row.requests):
        if each.code == "wrong":
            reply = escape(repr(each.reply.encode("latin-1")))
            out.print(f"    request {number}, {escape(each.problem)}: a wrong reply: {reply}")
    shown = " ".join("-" if each < 0 else f"{each * 1e3:.1f}" for each in row.latencies)
    out.print(f"latencies, ms: {shown}")
    if row.timings is not None:
        times = msgspec.structs.asdict(row.timings)
        out.print(", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items()))
    outcome = f"no trial: {row.excluded}" if row.outcome is None else str(row.outcome)
    out.print(f"[bold]{escape(outcome)}[/] {escape(row.problem)}")
    if replay.stored is not None:
        before = str(replay.stored.outcome or f"no trial ({replay.stored.excluded})")
        out.print(
            f"the campaign stored {escape(before)}: "
            + ("the same" if replay.same else "[yellow]another outcome[/]")
        )
    facts = msgspec.structs.asdict(replay.facts)
    text = ", ".join(f"{name} {value}" for name, value in facts.items())
    out.print(f"[dim]{escape(text)}[/]")


def _show_hits(plan: MissionPlan, row: AssessedMission, out: Console) -> None:
    if not plan.injections:
        out.print("nothing is hit")
        return
    results = list(row.injections)
    for hit in plan.injections:
        dose = f", dose {hit.dose}" if hit.dose != 1 else ""
        out.print(
            f"before request {hit.at}: [bold]{hit.kind}[/] on {hit.target}{dose}, "
            f"seed {hit.seed:016x}"
        )
        found = next(
            (each for each in results if (each.target, each.kind) == (hit.target, hit.kind)), None
        )
        if found is None:
            out.print("    the mission ended before it")
            continue
        results.remove(found)
        applied = "applied" if found.applied else "[bold red]not applied[/]"
        out.print(
            f"    {applied} in {found.seconds:.3f} s, {_USED[found.used]}: {escape(found.proof)}"
        )
    if plan.alike is not None:
        which = "the same" if plan.alike else "different"
        out.print(f"the lying guests return {which} wrong bytes")


def _show_guests(row: AssessedMission, out: Console) -> None:
    for guest in row.guests:
        reason = f", {guest.reason}" if guest.reason else ""
        failed = " [red]failed[/]" if guest.failed else ""
        out.print(
            f"{guest.name}: {escape(guest.state)}{escape(reason)}, {guest.dissents} dissents"
            + failed
        )
