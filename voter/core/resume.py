"""Resume: how the engine continues from the journal of a voter that ran before.

The past is a checkpoint (its state, and the base: all else that must be known at its sequence
number), and the entries journaled since.  They are replayed in their order into the parts that they
concern: writes and voids into the log, requests that must be executed once into the deduplication
table, suspects and roles into the membership.  The order resumes after the last reserved sequence
number.

A write without a Settled entry may have been answered or not, so its poll is open again.  Replicas
that have applied it are asked to repeat their replies (Incarnations), and a client that retries it
joins its poll.  If the reply was released before, the vote has the same result: correct replicas
give the same reply again.
"""

from __future__ import annotations

import msgspec

from voter.core import entries
from voter.core.dedup import DedupTable
from voter.core.entries import Base, Entry
from voter.core.membership import Membership
from voter.core.order import Checkpoint, OrderLog
from voter.core.poll import Poll
from voter.core.polls import Polls

__all__ = ["Past", "resume"]


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a voter that ran before has left: a checkpoint, and what happened since."""

    base: Base = Base()
    state: bytes | bytearray = b""
    entries: list[Entry] = []


def resume(past: Past, log: OrderLog, dedup: DedupTable, polls: Polls, members: Membership) -> None:
    """Replay a past into the parts of an engine that has seen no event.

    Raises ValueError if its roles do not fit the replicas.
    """
    base = past.base
    log.begin_at(Checkpoint(base.seq, base.history, base.digest, past.state), base.time_ns)
    dedup.load(base.sessions)
    suspects, reserved = set(base.suspects), base.reserved
    version, roles = base.roles_version, base.roles
    for entry in past.entries:
        if isinstance(entry, entries.Record):
            log.add(entry)
            if entry.once is not None:
                dedup.record(entry.once, entry.caller, entry.seq, entry.time_ns)
        elif isinstance(entry, entries.Opened):
            log.advance(time_ns=entry.time_ns)
            # A session that is older than the base and not in it is over.  If it were opened again,
            # it would have forgotten what was executed in it.
            if int.from_bytes(entry.session[:8]) > base.seq:
                dedup.open(entry.session, entry.caller, entry.time_ns)
        elif isinstance(entry, entries.ClockStep):
            log.advance(time_ns=entry.time_ns)
            if entry.time_ns > base.time_ns:
                dedup.step(entry.step_ns)
        elif isinstance(entry, entries.SequenceReservation):
            reserved = max(reserved, entry.upto)
        elif isinstance(entry, entries.RoleChange):
            if entry.version > version:  # else the checkpoint holds it
                version, roles = entry.version, entry.roles
        elif isinstance(entry, entries.MembershipChange):
            (suspects.add if entry.suspect else suspects.discard)(entry.replica)
        elif (write := log.find(entry.seq)) is None:
            continue  # the checkpoint holds it
        elif isinstance(entry, entries.Settled):
            write.tag = entry.tag
            if write.record.once is not None:
                dedup.settle(write.record.once, entry.reply, entry.seq)
        else:
            log.void(write)
    log.advance(seq=reserved)
    for write in log:
        if write.tag is None:
            record = write.record
            polls.add(Poll(record.seq, record, write, size=len(record.request)))
    if version:
        members.load_roles(version, roles)
    for replica in members:
        replica.suspect = replica.journaled_suspect = replica.name in suspects
