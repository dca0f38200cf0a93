"""One mission again, with everything shown; and two runs of one plan beside each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape
from rich.table import Table

from faultinject.campaign.records import MissionPlan, MissionRow, StationFacts, StationSpec
from faultinject.campaign.run.agree import Agreed, compare
from faultinject.campaign.store.store import Store
from faultinject.campaign.workers.scratch import ScratchDirectories, sweep_abandoned
from faultinject.campaign.workers.tasks import Task, Worker
from faultinject.campaign.workers.worker_process import WorkerLost, WorkerProcess
from voter.commands.terminal import CommandError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Replay", "compare_stores", "play", "show_agreed", "show_play"]


_USED = {None: "nobody knows whether it was met", True: "met", False: "not met"}


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A mission that was run again.  ``stored``: the row of the campaign, if it has one."""

    plan: MissionPlan
    row: MissionRow
    stored: MissionRow | None
    same: bool | None
    facts: StationFacts


def play(
    plan: MissionPlan,
    stored: MissionRow | None,
    spec: StationSpec,
    station: str,
    progress: Callable[[str], None],
) -> Replay:
    """Run one mission on a station of its own.  Raises CommandError."""
    sweep_abandoned(progress)
    berths = ScratchDirectories()
    hand = WorkerProcess("replay", Worker(station=station, spec=spec), berths, progress, log=False)
    try:
        ran = hand.run(Task(plan=plan))
    except WorkerLost as error:
        raise CommandError(
            f"mission {plan.index} could not be run: {error}",
            remedy=error.remedy,
            code=ExitCode.CANNOT_RUN_HERE if error.how == "refused" else ExitCode.FAILED,
        ) from error
    finally:
        hand.end()
        hand.wait()
        berths.close()
    same = None if stored is None else stored.outcome is ran.row.outcome
    return Replay(plan=plan, row=ran.row, stored=stored, same=same, facts=ran.facts)


def show_play(played: Replay, out: Console) -> None:
    """Print all of it."""
    plan, row = played.plan, played.row
    who = "one guest, past the voter" if plan.design == "nv" else "voted"
    repair = "on" if plan.repair else "off"
    out.print(
        f"[bold]mission {plan.index}[/], stratum {plan.stratum}: {who}, repair {repair}, "
        f"{plan.length} requests from seed {plan.seed}"
    )
    _show_hits(plan, row, out)
    _show_guests(row, out)
    out.print(
        f"requests: {row.correct} correct, {row.wrong} wrong, {row.refused} refused, "
        f"{row.unanswered} unanswered; {row.masked} released although a replica dissented"
    )
    shown = " ".join("-" if each < 0 else f"{each * 1e3:.1f}" for each in row.latencies)
    out.print(f"latencies, ms: {shown}")
    if row.timings is not None:
        times = msgspec.structs.asdict(row.timings)
        out.print(", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items()))
    outcome = f"no trial: {row.void}" if row.outcome is None else str(row.outcome)
    out.print(f"[bold]{escape(outcome)}[/] {escape(row.words)}")
    if played.stored is not None:
        before = str(played.stored.outcome or f"no trial ({played.stored.void})")
        out.print(
            f"the campaign has it as {escape(before)}: "
            + ("the same" if played.same else "[yellow]another outcome[/]")
        )
    facts = msgspec.structs.asdict(played.facts)
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    out.print(f"[dim]{escape(words)}[/]")


def _show_hits(plan: MissionPlan, row: MissionRow, out: Console) -> None:
    if not plan.hits:
        out.print("nothing is hit")
        return
    results = list(row.hits)
    for hit in plan.hits:
        dose = f", dose {hit.dose}" if hit.dose != 1 else ""
        out.print(
            f"before request {hit.at}: [bold]{hit.kind}[/] on {hit.target}{dose}, "
            f"seed {hit.seed:016x}"
        )
        found = next(
            (each for each in results if (each.target, each.kind) == (hit.target, hit.kind)), None
        )
        if found is None:
            out.print("    the mission did not come to it")
            continue
        results.remove(found)
        applied = "applied" if found.applied else "[bold red]not applied[/]"
        out.print(
            f"    {applied} in {found.seconds:.3f} s, {_USED[found.used]}: {escape(found.proof)}"
        )
    if plan.alike is not None:
        out.print(f"the liars lie {'alike' if plan.alike else 'apart'}")


def _show_guests(row: MissionRow, out: Console) -> None:
    for guest in row.guests:
        reason = f", {guest.reason}" if guest.reason else ""
        failed = " [red]failed[/]" if guest.failed else ""
        out.print(
            f"{guest.name}: {escape(guest.state)}{escape(reason)}, {guest.dissents} dissents"
            + failed
        )


def compare_stores(first: Store, second: Store) -> Agreed:
    """Compare two runs of one plan.  Raises CommandError where they are of two plans."""
    for what, one, two in (
        ("specs", first.spec.hash, second.spec.hash),
        ("seeds", first.seed, second.seed),
        ("plans", first.plan.fingerprint, second.plan.fingerprint),
    ):
        if one != two:
            raise CommandError(
                f"{first.directory} and {second.directory} have two {what}: {str(one)[:16]} and "
                f"{str(two)[:16]}",
                remedy="compare two runs of one file with one seed",
                code=ExitCode.USAGE,
            )
    rows = {row.index: row.outcome for row in second.rows()}
    return compare(
        (
            (row.index, first.plan.cell_of(row.index).name, row.outcome, rows[row.index])
            for row in first.rows()
            if row.index in rows
        ),
        first.spec.alpha,
    )


def show_agreed(agreed: Agreed, out: Console) -> None:
    """Print it."""
    table = Table("first run", "second run", "missions")
    for one, two, count in agreed.pairs:
        colour = "" if one == two else "[yellow]"
        table.add_row(f"{colour}{one}", f"{colour}{two}", f"{colour}{count:,}")
    out.print(table)
    strata = Table("stratum", "missions", "another outcome", "one failed, one did not")
    for each in agreed.strata:
        strata.add_row(
            each.stratum, f"{each.missions:,}", f"{each.other_outcome:,}", f"{each.other_verdict:,}"
        )
    out.print(strata)
    share = "" if agreed.share is None else (
        f": {agreed.share:.2%} [{agreed.low:.2%}, {agreed.high:.2%}] of them failed in one run only"
    )  # fmt: skip
    out.print(
        f"{agreed.both:,} missions were run by both, {agreed.trials:,} are trials in both{share}; "
        f"{agreed.other_outcome:,} had another outcome; McNemar p = {agreed.p_value:.3g}",
        markup=False,
    )
