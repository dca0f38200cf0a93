"""``trivisor replay``: execute the journal again in a guest of its own, compare and search it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from deploy.commands.options import (
    StepPrinter,
    directory_option,
    find_service,
    json_option,
    layout_of,
)
from deploy.node.records import Layout, NodeRecord
from voter.commands.parameters import Integer, existing_file
from voter.commands.terminal import CommandError, ExitCode, console, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from deploy.replay.run import Replay, ReplayReport
    from voter.journal.reader import JournalReader, KeptCheckpoint

__all__ = ["replay"]

SEQ = Integer(0, (1 << 63) - 1)
_SHOWN = 20
"""Differences and matches that are printed; --json has them all."""


@click.command()
@directory_option
@click.option("--from", "start", type=SEQ, metavar="SEQ",
              help="Start at the last checkpoint up to SEQ  [default: the oldest]")  # fmt: skip
@click.option("--until", type=SEQ, metavar="SEQ",
              help="Last sequence number  [default: the end of the journal]")  # fmt: skip
@click.option("--predicate", type=existing_file(),
              help="Python file: which requests, replies or states to report.")  # fmt: skip
@click.option("--state-every", type=Integer(1, 1 << 40), metavar="N",
              help="Ask the predicate state after every N writes too.")  # fmt: skip
@click.option("--service", help="kv, static, or a Python file  [default: the node's own]")
@click.option("--stand-in", is_flag=True,
              help="Execute in a process of this host instead of a guest.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List the checkpoints that are kept.")
@json_option
def replay(  # noqa: PLR0913 - one for each option
    directory: Path | None,
    start: int | None,
    until: int | None,
    predicate: Path | None,
    state_every: int | None,
    service: str | None,
    stand_in: bool,
    listing: bool,
    as_json: bool,
) -> int:
    """Execute the journal again in a guest of its own; compare each reply with the released one.

    The node may run or not; it is not touched.  The guest gets a checkpoint and then each write
    with its agreed time, caller and random seed.  Its digest is compared at later checkpoints.
    Reads are not in the journal: they are neither executed nor searched.

    Exits with 1 if a reply or a digest differs, or if a predicate matches.
    """
    from voter.journal.reader import JournalReader  # noqa: PLC0415 - heavy

    layout = layout_of(directory)
    quiet_logs()
    reader = JournalReader(layout.journal)
    kept = reader.checkpoints()
    if listing:
        _list(kept, reader, as_json=as_json)
        return ExitCode.OK
    if until is not None and start is not None and until < start:
        raise click.UsageError(f"--until {until} is before --from {start}")
    if state_every is not None and predicate is None:
        raise click.UsageError("--state-every needs --predicate, a file with a function state")
    chosen = _choose(kept, layout, start, until)
    record = layout.read_node()
    named = find_service(service) if service is not None else None
    progress = StepPrinter(quiet=as_json)
    job = _prepare(reader, chosen, until, predicate, state_every, progress)
    progress(f"from checkpoint {chosen.seq} ({_when(chosen.time_ns / 1e9)})")
    report = asyncio.run(_run(job, reader, record, named, stand_in=stand_in, progress=progress))
    facts = {
        "service": reader.identity.service,
        "executed_by": "a process of this host (stand-in)" if stand_in else "a guest",
        "image": None if stand_in or named is not None else record.image,
        "replayed_service": named or record.settings.service,
    }
    if as_json:
        changes = [
            {"seq": each.seq, "version": each.version, "roles": each.roles, "reason": each.reason}
            for each in report.role_changes
        ]
        more = {"rate": report.rate, "role_changes": changes}
        print_json(facts | msgspec.to_builtins(report) | more)
    else:
        _show(report, facts)
    return ExitCode.OK if report.agrees and not report.matching else ExitCode.FAILED


def _choose(
    kept: list[KeptCheckpoint], layout: Layout, start: int | None, until: int | None
) -> KeptCheckpoint:
    """Return the checkpoint to start at.  Raises CommandError if there is none."""
    before = [each for each in kept if start is None or each.seq <= start]
    chosen = before[0] if start is None and before else before[-1] if before else None
    if chosen is None or (until is not None and until <= chosen.seq):
        first = f"kept from {kept[0].seq} on" if kept else "nothing is kept"
        asked = start if chosen is None else until
        raise CommandError(
            f"the journal in {layout.journal} is not kept up to sequence number {asked} ({first})",
            remedy=f"use a later one (`{layout.command('replay --list')}`); to keep more, start "
            f"the node with {layout.option('keep-history', 'MIB')}",
            error_code="TV0256",
        )
    return chosen


def _prepare(
    reader: JournalReader,
    chosen: KeptCheckpoint,
    until: int | None,
    predicate: Path | None,
    state_every: int | None,
    progress: StepPrinter,
) -> Replay:
    """Return the replay; its predicates are loaded.  Raises DeployError."""
    from deploy.replay.predicates import Predicates  # noqa: PLC0415 - heavy
    from deploy.replay.run import Replay  # noqa: PLC0415

    return Replay(
        reader,
        chosen,
        until,
        predicates=Predicates(predicate) if predicate is not None else None,
        state_every=state_every,
        progress=progress,
    )


async def _run(
    job: Replay,
    reader: JournalReader,
    record: NodeRecord,
    service: str | None,
    *,
    stand_in: bool,
    progress: StepPrinter,
) -> ReplayReport:
    from deploy.replay.replica import Replica  # noqa: PLC0415 - heavy

    identity = reader.identity
    expected = None
    if identity.service is not None and identity.state_format is not None:
        expected = identity.service, identity.state_format
    async with (
        _executor(record, service, stand_in=stand_in, progress=progress) as address,
        Replica(address, expected, silence=60.0 * record.settings.slowness) as replica,
    ):
        try:
            return await job.run(replica)
        except asyncio.CancelledError:
            last = job.report.last
            warn(f"interrupted after sequence number {last}; `--from {last}` continues there")
            raise


@contextlib.asynccontextmanager
async def _executor(
    record: NodeRecord, service: str | None, *, stand_in: bool, progress: StepPrinter
) -> AsyncIterator[str]:
    """Yield the address of what executes the requests."""
    from deploy.replay import guest  # noqa: PLC0415 - needs libvirt

    if stand_in:
        progress("a process of this host stands in for the guest")
        yield guest.stand_in(record, service)
    else:
        async with guest.replay_guest(record, progress, service=service) as address:
            yield address


def _when(seconds: float) -> str:
    if not seconds:
        return "the empty state"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + " UTC"


def _list(kept: list[KeptCheckpoint], reader: JournalReader, *, as_json: bool) -> None:
    """Print the checkpoints that a replay can start at."""
    if as_json:
        print_json(
            {
                "directory": str(reader.directory),
                "service": reader.identity.service,
                "checkpoints": [
                    {"seq": each.seq, "time": each.time_ns / 1e9, "state_bytes": each.size}
                    for each in kept
                ],
            }
        )
        return
    out = console()
    for each in kept:
        size = f"{each.size} bytes of state" if each.seq else ""
        out.print(f"{each.seq:12}  {_when(each.time_ns / 1e9):24} {size}".rstrip(), markup=False)
    if not kept:
        out.print("nothing is kept yet", markup=False)


def _show(report: ReplayReport, facts: dict[str, Any]) -> None:
    """Print a report for a person."""
    out = console()

    def line(text: str) -> None:
        out.print(text, markup=False)

    line(
        f"{report.writes} writes after {report.start} up to {report.last}, executed by"
        f" {facts['executed_by']}: {report.rate:.0f} a second; live they took"
        f" {report.live_seconds:.0f} s, at most {report.live_peak} in one second"
    )
    equal = report.compared - sum(each.kind == "reply" for each in report.differences)
    line(
        f"replies: {equal} of {report.compared} are the released ones; {report.voided} writes were"
        f" void, {report.unsettled} have no result in the journal"
    )
    same = sum(each.same for each in report.digests)
    line(f"digests: {same} of {len(report.digests)} are the voted ones")
    for change in report.role_changes[:_SHOWN]:
        voters = ", ".join(name for name, role in change.roles.items() if role == "voter")
        line(f"from {change.seq} on {voters} vote ({change.reason})")
    if report.reverts:
        line(f"the node was reverted at {', '.join(map(str, report.reverts))}")
    for each in [digest for digest in report.digests if not digest.same][:_SHOWN]:
        line(f"  the state at {each.seq} differs")
    for difference in report.differences[:_SHOWN]:
        line(
            f"  {difference.seq} {_when(difference.time)} {difference.caller}: {difference.request}"
        )
        line(f"      released {difference.released}")
        line(f"      replayed {difference.replayed}")
    if report.differing > _SHOWN:
        line(f"  ... {report.differing} differences in all (--json lists them)")
    if report.matching:
        callers = ", ".join(f"{name or '?'} ({count})" for name, count in report.callers.items())
        line(f"matches: {report.matching}{f' by {callers}' if callers else ''}")
    for match in report.matches[:_SHOWN]:
        who = f" {match.caller}: {match.request}" if match.caller or match.request else ""
        line(f"  {match.seq} {_when(match.time)}{who}  [{match.predicate}] {match.text}")
    if report.matching > _SHOWN:
        line(f"  ... {report.matching} matches in all (--json lists them)")
    line("reads are not in the journal, so they were not executed")
