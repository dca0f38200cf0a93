"""Taking a journal back to a checkpoint, while no voter uses it: for `trivisor monitor`.

The past is not rewritten.  A new checkpoint is written whose state is that of the older one, at a
sequence number above all that were used.  A voter that starts takes the newest checkpoint, so this
one file is the whole step: with it the journal is reverted, without it nothing has happened.

- *No sequence number is used twice*, and agreed time does not go back.
- *Exactly once.*  Idempotency-Keys of the checkpoint are kept, so what it holds is not executed
  again.  All native sessions end: their clients get "session-expired" instead of a silent loss.
- *Roles* stay as they are: which guests run does not go back.
- *Suspects* are forgotten: whoever reverts restores all guests.
- The new checkpoint begins a new segment, because what follows does not continue the records
  before it.  What was undone is moved to the history, where `trivisor replay` finds it.

The voter does not load this module.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from voter.core.entries import FORMAT, Base, Opened, Record, RoleChange, SequenceReservation
from voter.errors import JournalError
from voter.journal.files import Files
from voter.journal.format import CheckpointHead, checkpoint_pieces
from voter.journal.history import HISTORY
from voter.journal.reader import JournalReader, KeptCheckpoint
from voter.journal.recovery import (
    IDENTITY,
    checkpoint_name,
    create_segment,
    numbers_of,
    parse_identity,
    recover,
    segment_name,
)

__all__ = ["RevertPlan", "apply_revert", "plan_revert"]

_KEYS = b"k"
"""How the scopes of Idempotency-Keys begin (``voter.core.entries.Once``)."""


class RevertPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a revert does.  Numbers are sequence numbers; 0: there is none."""

    checkpoint: int  # whose state comes back; 0: the empty state at the start
    seq: int  # of the new checkpoint, above all that were used
    time_ns: int  # last agreed time
    lost: int  # writes after the checkpoint
    first_lost: int
    last_lost: int
    roles_version: int = 0  # the last change of roles; 0: there was none
    roles: dict[str, str] = {}


def plan_revert(directory: Path, before: int) -> RevertPlan:
    """Plan to undo all from the request ``before`` on, and what came before it since a checkpoint.

    Reads only.  Raises JournalError if no checkpoint from before it is kept.
    """
    reader = JournalReader(directory)
    kept = reader.checkpoints()
    older = [each for each in kept if each.seq < before]
    start = max(older, key=lambda each: each.seq, default=None)
    if start is None:
        oldest = f"the oldest one is at {kept[0].seq}" if kept else "none is kept"
        raise JournalError(
            f"journal {directory}: no checkpoint from before sequence number {before} is kept "
            f"({oldest}): keep more with `trivisor up --keep-history MIB`",
            error_code="TV0251",
        )
    base, _ = reader.load(start)
    seq, time_ns, lost = max(base.seq, base.reserved), base.time_ns, []
    roles_version, roles = base.roles_version, base.roles
    for entry in reader.entries(start):
        if isinstance(entry, Record):
            lost.append(entry.seq)
            seq = max(seq, entry.seq)
        elif isinstance(entry, SequenceReservation):
            seq = max(seq, entry.upto)
        elif isinstance(entry, RoleChange):
            roles_version, roles = entry.version, entry.roles
        if isinstance(entry, Record | Opened):
            time_ns = max(time_ns, entry.time_ns)
    return RevertPlan(
        checkpoint=start.seq,
        seq=seq + 1,
        time_ns=time_ns,
        lost=len(lost),
        first_lost=lost[0] if lost else 0,
        last_lost=lost[-1] if lost else 0,
        roles_version=roles_version,
        roles=roles,
    )


async def apply_revert(files: Files, directory: Path, plan: RevertPlan) -> None:
    """Carry out a plan; if it was carried out before, in part or wholly, complete it.

    ``directory`` is that of ``files``, which lock it.  Raises JournalError, OSError.
    """
    identity = parse_identity(files.read(IDENTITY), files.where)
    found = await recover(files, identity, lambda _: None, keep=True)
    if found.base.seq != plan.seq:
        if found.base.seq > plan.seq:
            raise JournalError(
                f"journal {files.where}: a voter has used it since the revert was planned",
                error_code="TV0251",
            )
        last, frames = found.segments[-1], found.frames
        number = last.number + 1
        if found.spare is not None:
            spare = files.reopen(segment_name(number), found.spare.at, 0)
        else:
            spare, _ = await create_segment(files, identity, number, last.size)
        await spare.sync()
        spare.close()
        base, state = _load(JournalReader(directory), plan.checkpoint)
        head = CheckpointHead(
            format=FORMAT,
            node=identity.owner.node,
            journal=identity.owner.journal,
            segment=number,
            first=frames + 1,
            synced=frames,
            size=len(state),
            keep=number,
        )
        pieces = checkpoint_pieces(head, _reverted(base, plan), state)
        await files.write_whole(checkpoint_name(plan.seq), pieces)
    else:
        number = found.segments[0].number
    for name in files.names():
        if any(seq < plan.seq for seq in numbers_of([name], "checkpoint")) or any(
            other < number for other in numbers_of([name], "segment")
        ):
            await files.rename(name, HISTORY + name)


def _load(reader: JournalReader, seq: int) -> tuple[Base, bytes]:
    kept: dict[int, KeptCheckpoint] = {each.seq: each for each in reader.checkpoints()}
    if seq not in kept:
        raise JournalError(
            f"journal {reader.directory}: the checkpoint at {seq} is not kept any more",
            error_code="TV0251",
        )
    return reader.load(kept[seq])


def _reverted(base: Base, plan: RevertPlan) -> Base:
    """Return the base of the new checkpoint."""
    return msgspec.structs.replace(
        base,
        seq=plan.seq,
        reserved=plan.seq,
        time_ns=max(base.time_ns, plan.time_ns),
        suspects=[],
        roles_version=plan.roles_version,
        roles=plan.roles,
        sessions=[scope for scope in base.sessions if scope.scope.startswith(_KEYS)],
    )
