"""How replicas come, catch up, are admitted, are checked at markers, and go.

The half of the engine that is not the hot path; ``engine.Engine`` builds on it.  Every recovery
uses only the last voted checkpoint and the log since, never one replica's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import inf

import msgspec

from voter.core import events as ev
from voter.core.events import Effect, Record
from voter.core.membership import Membership
from voter.core.order import Checkpoint, Entry, Log, tag
from voter.core.replica import Cause, Replica, State
from voter.core.vote import Policy

__all__ = ["Lifecycle", "Limits", "Marker", "Poll"]

KIB, MIB = 1 << 10, 1 << 20


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what clients and replicas can make the voter hold, and how long it waits.

    Counts are requests, sizes bytes, times seconds.
    """

    pending: int = 4096  # requests ordered and not settled
    pending_bytes: int = 64 * MIB
    log_bytes: int = 64 * MIB  # writes since the last checkpoint
    lag: int = 16384  # requests settled without a replica that it has not answered
    lag_bytes: int = 32 * MIB
    ballot_bytes: int = 32 * MIB  # long replies to requests that are not settled
    window: int = 4096  # requests under way to a learner
    window_bytes: int = 8 * MIB
    marker_every: int = 1000  # requests between checkpoint markers
    checkpoint_bytes: int = 64 * KIB  # smallest log that a checkpoint is worth
    state_bytes: int = 256 * MIB  # largest state that is fetched
    hang: float = 2.0  # no sign of life for this long: gone
    ping: float = 0.5  # ask an idle replica for a sign of life
    restore_rate: int = MIB  # bytes a second that a restore or a fetch must at least make

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} must be more than 0, and finite")


class Poll:
    """One vote under way: on a request, or (``record`` None) on the digest at a marker.

    ``ballots`` holds the tag of what each replica answered, ``kept`` the long replies themselves
    as far as there is room.  ``value`` is None until it is won, then the winning tag.  ``sent``
    is a bit mask of the replicas it was sent to, ``due`` counts those that have not answered.
    """

    __slots__ = (
        "ballots", "due", "entry", "kept", "record", "sent", "seq", "size", "ticket", "value",
    )  # fmt: skip

    def __init__(
        self, seq: int, ticket: int | None, record: Record | None, entry: Entry | None
    ) -> None:
        self.seq = seq
        self.ticket = ticket
        self.record = record
        self.entry = entry
        self.ballots: dict[int, bytes] = {}
        self.kept: dict[bytes, bytes] | None = None
        self.value: bytes | None = None
        self.sent = 0
        self.due = 0
        self.size = 0


class Marker:
    """The checkpoint marker under way: where it stands, who keeps the state, the voted digest."""

    __slots__ = ("digest", "fetched", "fetching", "history", "keeper", "seq")

    def __init__(self, seq: int, history: bytes, keeper: int | None) -> None:
        self.seq = seq
        self.history = history
        self.keeper = keeper
        self.digest: bytes | None = None
        self.fetching: float | None = None  # engine time at which the fetch began
        self.fetched = 0  # bytes of the state that are here


class Lifecycle:
    """State of the engine, and everything about replicas that is not the vote itself."""

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        *,
        secret: bytes,
        limits: Limits | None = None,
        observers: frozenset[str] = frozenset(),
    ) -> None:
        """``secret``: up to 64 bytes that key the hash of the history (and so the seeds).

        Raises ValueError if the number of replicas that vote is not the policy's n.
        """
        if len(names) - len(observers) != policy.of or len(set(names)) != len(names):
            raise ValueError(f"vote {policy} needs {policy.of} replicas with different names")
        self.limits = limits or Limits()
        self.members = Membership(
            policy,
            [Replica(i, name, observer=name in observers) for i, name in enumerate(names)],
        )
        self.log = Log(secret)
        self._now = 0.0
        self._wall_ns = 0
        self._effects: list[Effect] = []
        self._open: dict[int, Poll] = {}  # not settled, or settled and not answered by all
        self._tickets: dict[int, Poll] = {}
        self._unsettled = 0
        self._pending_bytes = 0
        self._kept_bytes = 0
        self._dirty = False
        self._draining = False
        self._mark: Marker | None = None
        self._since_marker = 0
        self._marked = 0.0  # engine time of the last marker
        self._mark_at = self.limits.log_bytes // 4  # size of the log that calls for the next one
        self._last_keeper = -1
        self._voids: list[int] = []  # places of voided writes in the log

    @property
    def pending(self) -> int:
        """Polls that are not settled."""
        return self._unsettled

    @property
    def standing(self) -> str:
        """``ready``, ``degraded``, ``refusing`` or ``draining``."""
        return "draining" if self._draining else self.members.standing

    # ------------------------------------------------------------ coming

    def _greeted(self, event: ev.Greeted) -> None:
        """A handshake is complete: continue from the log, or from the checkpoint."""
        replica = self.members[event.replica]
        if replica.epoch:
            self._go(replica, Cause.GONE, "started anew", replica.cursor, disconnect=False)
        if replica.state is State.EXPELLED and not event.fresh:
            self._effects.append(ev.Disconnect(replica.index, "expelled, and not a fresh start"))
            return
        replica.forget()
        replica.epoch, replica.incarnation = event.epoch, event.incarnation
        replica.heard = self._now
        replica.suspect = replica.suspect and not event.fresh
        if (
            not replica.suspect
            and self.log.continues(event.last_seq, event.history)
            and event.last_seq < min(self._first_unsettled(), *self._voids, inf)
        ):
            self._move(replica, Cause.BEHIND, "catches up from the log", event.last_seq)
            replica.cursor = max(event.last_seq, self.log.checkpoint.seq)
            self._teach(replica)
        else:
            self._restore(replica)

    def _first_unsettled(self) -> float:
        """Place of the first write whose vote is not won (infinite if there is none).

        A replica that has applied it cannot vote on it again unless it is built anew.
        """
        return next((p.seq for p in self._open.values() if p.entry and p.value is None), inf)

    def _restore(self, replica: Replica) -> None:
        self._move(replica, Cause.FOREIGN, "gets the last checkpoint", self.log.checkpoint.seq)
        replica.heard = self._now
        point = self.log.checkpoint
        replica.cursor = point.seq
        replica.restored = point.digest
        self._effects.append(
            ev.Restore(replica.index, point.seq, point.history, point.digest or b"", point.state)
        )

    def _restored(self, event: ev.Restored) -> None:
        replica = self.members[event.replica]
        if event.epoch != replica.epoch or replica.state is not State.RESTORING:
            return
        replica.heard = self._now
        if event.seq != replica.cursor or replica.restored not in (None, event.digest):
            self._convict(replica, "its state is not the checkpoint it was given", event.seq)
            return
        replica.suspect = False
        self._move(replica, Cause.RESTORED, "catches up from the log", event.seq)
        self._teach(replica)

    def _teach(self, replica: Replica) -> None:
        """Send a learner the next writes of the log; admit it once it has caught up."""
        limits = self.limits
        if not replica.live:
            if replica.cursor < self.log.checkpoint.seq:
                if not replica.outstanding:
                    self._restore(replica)
                return
            room = limits.window - len(replica.outstanding)
            for entry in self.log.after(replica.cursor, room):
                if replica.outstanding_bytes > limits.window_bytes:
                    return
                record, poll = entry.record, self._open.get(entry.record.seq)
                # What may have killed replicas is sent alone, so that there is no doubt about it.
                alone = entry.killed and not record.void and poll is not None and poll.value is None
                if alone and replica.outstanding:
                    return
                self._expect(replica, poll, len(record.request), record.seq)
                replica.cursor = record.seq
                self._effects.append(ev.Send((replica.index,), record))
                if alone:
                    return
            if replica.cursor != self.log.last_write:
                return
            replica.live = True
            replica.join_seq = replica.cursor
            self.members.refresh()
        if not replica.outstanding or replica.outstanding[0][0] > replica.join_seq:
            self._admit(replica)

    def _admit(self, replica: Replica) -> None:
        seq = self.log.take_place()
        if replica.observer:
            self._move(replica, Cause.OBSERVING, "observes", seq)
        else:
            self._move(replica, Cause.ADMITTED, "votes", seq)
            self._dirty = True
        self.members.refresh()

    def _check_replayed(self, replica: Replica, seq: int, value: bytes) -> None:
        """A learner's reply to a request that was settled long ago must be the released one."""
        entry = self.log.find(seq)
        if entry is not None and entry.tag is not None and tag(value) != entry.tag:
            self._dissented(replica, seq)

    def _expect(self, replica: Replica, poll: Poll | None, size: int, seq: int = 0) -> None:
        """Note that something is sent to a replica, which must answer it in this order."""
        if not replica.outstanding:
            replica.heard = self._now
        if poll is not None:
            poll.sent |= 1 << replica.index
            poll.due += 1
            seq = poll.seq
        replica.outstanding.append((seq, size))
        replica.outstanding_bytes += size

    # ----------------------------------------------------------- markers

    def _place_marker(self) -> None:
        """Order a checkpoint marker: all live replicas tell their digest, one may keep the
        state.
        """
        self._since_marker = 0
        self._marked = self._now
        self._mark_at = self.log.bytes + self.limits.log_bytes // 4
        keeper = None
        worth = max(self.limits.checkpoint_bytes, len(self.log.checkpoint.state))
        if self.log.bytes > min(worth, self.limits.log_bytes // 2):
            later = [i for i in self.members.active if i > self._last_keeper]
            keeper = (later or list(self.members.active))[0]
            self._last_keeper = keeper
        seq = self.log.take_place()
        self._mark = Marker(seq, self.log.history, keeper)
        poll = self._open[seq] = Poll(seq, None, None, None)
        self._unsettled += 1
        for index in self.members.live:
            self._expect(self.members[index], poll, 0)
        self._effects.append(ev.Mark(self.members.live, seq, keeper))

    def _marker_voted(self, seq: int, digest: bytes, ballots: dict[int, bytes]) -> None:
        mark = self._mark
        if mark is None or mark.seq != seq:
            return
        mark.digest = digest
        if mark.keeper is None:
            self._mark = None
        elif mark.keeper in ballots:
            told = ballots[mark.keeper]
            self._keeper_told(self.members[mark.keeper], seq, agrees=told == digest)

    def _keeper_told(self, replica: Replica, seq: int, *, agrees: bool) -> None:
        """If it was the keeper's digest, and the voted one: fetch the state that it kept."""
        mark = self._mark
        if mark is None or mark.seq != seq or mark.keeper != replica.index:
            return
        if agrees and replica.state is State.ACTIVE:
            mark.fetching = self._now
            self._effects.append(ev.Fetch(replica.index, replica.epoch, seq))
        else:
            self._mark = None

    def _is_fetched(self, index: int, epoch: int, seq: int) -> bool:
        """Whether this is about the fetch that is under way."""
        mark = self._mark
        return (
            mark is not None
            and mark.fetching is not None
            and (mark.keeper, mark.seq) == (index, seq)
            and epoch == self.members[index].epoch
        )

    def _piece(self, event: ev.Piece) -> None:
        if self._mark is not None and self._is_fetched(event.replica, event.epoch, event.seq):
            self._mark.fetched = event.size

    def _fetched(self, event: ev.Fetched) -> None:
        mark, replica = self._mark, self.members[event.replica]
        if mark is None or not self._is_fetched(event.replica, event.epoch, event.seq):
            return
        self._mark = None
        if mark.digest is None or blake2b(event.state, digest_size=32).digest() != mark.digest:
            self._convict(replica, "the state it gave does not hash to the voted digest", mark.seq)
            return
        if self._first_unsettled() < mark.seq:
            return  # its vote may still be lost, and then it must be in the log
        self.log.truncate(Checkpoint(mark.seq, mark.history, mark.digest, event.state))
        self._mark_at = self.log.bytes + self.limits.log_bytes // 4
        self._voids = [seq for seq in self._voids if seq > mark.seq]
        self._effects.append(ev.Checkpointed(mark.seq, len(event.state), mark.digest))
        for learner in self.members:
            if learner.state is State.LEARNER and not learner.live:
                self._teach(learner)

    def _fetch_failed(self, event: ev.FetchFailed) -> None:
        if self._is_fetched(event.replica, event.epoch, event.seq):
            self._mark = None

    def _watch_marker(self, gap: float) -> None:
        """Give up on a keeper that is too slow; place a marker if the log is filling up.

        A keeper that makes less than the least rate is gone.  One that is slow while the log
        fills up is left alone, and the next one is asked, so that no replica can stop the writes
        by withholding its state.
        """
        limits, mark, now = self.limits, self._mark, self._now
        full = self.log.bytes > limits.log_bytes // 2
        if mark is not None and mark.keeper is not None and mark.fetching is not None:
            if gap > limits.hang / 2:
                mark.fetching += gap
            taken = now - mark.fetching
            if taken > 3 * limits.hang + mark.fetched / limits.restore_rate:
                reason = "hang: does not give the state it kept"
                self._go(self.members[mark.keeper], Cause.GONE, reason, mark.seq)
            elif taken > limits.hang and full:
                self._mark = None
        if full and self._mark is None and now > self._marked + 1 and self.members.can_vote:
            self._place_marker()

    # ------------------------------------------------------------- going

    def _dissented(self, replica: Replica, seq: int) -> None:
        """A replica said something other than the majority."""
        replica.dissents += 1
        if self.members.policy.compares and not replica.observer:
            self._convict(replica, "dissent", seq)
        else:
            state = str(replica.state)
            self._effects.append(ev.Changed(replica.index, state, state, "dissent", seq))

    def _convict(self, replica: Replica, reason: str, seq: int) -> None:
        self._go(replica, Cause.CONVICTED, reason, seq)

    def _go(
        self, replica: Replica, cause: Cause, reason: str, seq: int, *, disconnect: bool = True
    ) -> None:
        """End a replica's incarnation: its votes are void, its link is dropped."""
        if not replica.epoch:
            return
        replica.expulsions += 1
        replica.suspect = replica.suspect or cause is Cause.CONVICTED
        self._move(replica, cause, reason, seq)
        for sent, _ in replica.outstanding:
            poll = self._open.get(sent)
            if poll is not None:
                poll.due -= 1
                if not poll.due and poll.value is not None:
                    del self._open[sent]
        for poll in self._open.values():
            poll.ballots.pop(replica.index, None)
            poll.sent &= ~(1 << replica.index)
        under_way = [seq for seq, _ in replica.outstanding] if cause is Cause.GONE else []
        replica.forget()
        mark = self._mark
        if mark is not None and mark.keeper == replica.index:
            mark.keeper = None
            if mark.digest is not None:
                self._mark = None
        self.members.refresh()
        if disconnect:
            self._effects.append(ev.Disconnect(replica.index, reason))
        self._dirty = True
        self._blame(replica, under_way)

    def _blame(self, replica: Replica, under_way: list[int]) -> None:
        """A replica was lost: note which unsettled writes it was at, and void one that kills.

        The first time it may have been any of them.  When they are replayed each is sent alone; one
        with which m replicas are lost again is voided, or it would kill them for ever.
        """
        bit = 1 << replica.index
        for seq in under_way:
            poll = self._open.get(seq)
            if poll is not None and poll.entry is not None and poll.value is None:
                entry = poll.entry
                if entry.killed & bit and len(under_way) == 1:
                    entry.killed_again |= bit
                entry.killed |= bit
                if entry.killed_again.bit_count() >= self.members.policy.need:
                    self._void(poll, entry)

    def _void(self, poll: Poll, entry: Entry) -> None:
        """Let all skip a write from now on; whoever may have applied it is built anew."""
        if entry.record.void:
            return
        entry.record = poll.record = msgspec.structs.replace(entry.record, void=True)
        self._voids.append(poll.seq)
        self._effects.append(ev.Voided(poll.seq))
        for replica in self.members:
            if poll.sent >> replica.index & 1:
                replica.suspect = True
                self._go(replica, Cause.GONE, "may have applied a write that was voided", poll.seq)

    def _drop(self, poll: Poll) -> None:
        """Forget a poll that has no effect on the state (a read, a marker)."""
        del self._open[poll.seq]
        self._unsettled -= 1
        self._pending_bytes -= poll.size
        self._forget_kept(poll)
        if self._mark is not None and self._mark.seq == poll.seq:
            self._mark = None

    def _forget_kept(self, poll: Poll) -> None:
        """Drop the long replies that were kept for a poll."""
        self._kept_bytes -= sum(map(len, (poll.kept or {}).values()))
        poll.kept = None

    def _lost(self, event: ev.Lost) -> None:
        replica = self.members[event.replica]
        if event.epoch == replica.epoch:
            self._go(replica, Cause.GONE, event.reason, 0)

    def _misbehaved(self, event: ev.Misbehaved) -> None:
        replica = self.members[event.replica]
        if event.epoch == replica.epoch:
            self._convict(replica, event.reason, 0)

    def _refused_order(self, event: ev.RefusedOrder) -> None:
        replica = self.members[event.replica]
        if event.epoch == replica.epoch:
            self._go(replica, Cause.GONE, f"refused: {event.reason}", event.seq)

    def _pardon(self, event: ev.Admit) -> None:
        """An operator vouches for a replica: it may come back from the checkpoint as it is."""
        replica = self.members[event.replica]
        if replica.state in (State.EXPELLED, State.ABSENT):
            self._move(replica, Cause.PARDONED, "may come back", 0)

    def _expel(self, event: ev.Expel) -> None:
        replica = self.members[event.replica]
        if replica.epoch:
            self._convict(replica, event.reason, 0)
        elif replica.state is State.ABSENT:
            replica.suspect = True
            self._move(replica, Cause.CONVICTED, event.reason, 0)

    def _drain(self, event: ev.Drain) -> None:
        self._draining = True

    def _move(self, replica: Replica, cause: Cause, reason: str, seq: int) -> None:
        before = replica.state
        replica.move(cause, reason)
        self._effects.append(ev.Changed(replica.index, before, replica.state, reason, seq))

    # -------------------------------------------------------------- time

    def _heard(self, event: ev.Heard) -> None:
        replica = self.members[event.replica]
        if event.epoch != replica.epoch:
            return
        if not replica.pinged:
            self._convict(replica, "sent a sign of life that nobody asked for", 0)
            return
        replica.heard = self._now
        replica.pinged = False

    def _tick(self, event: ev.Tick) -> None:
        """Look for replicas that hang or lag.

        If the voter itself was held up (a gap of more than half the hang limit), nobody is blamed
        for the silence: the replies may lie unread in the sockets.
        """
        limits, gap = self.limits, event.now - self._now
        self._now, self._wall_ns = event.now, event.wall_ns
        if self._mark is not None or self.log.bytes > limits.log_bytes // 2:
            self._watch_marker(gap)
        for replica in self.members:
            if not replica.epoch:
                continue
            if gap > limits.hang / 2:
                replica.heard += gap
            silent = event.now - replica.heard
            patience = limits.hang
            if replica.state is State.RESTORING:
                patience += len(self.log.checkpoint.state) / limits.restore_rate
            waits = replica.outstanding or replica.pinged or replica.state is State.RESTORING
            if waits and silent > patience:
                self._go(replica, Cause.GONE, f"hang: silent for {silent:.1f} s", 0)
            elif (
                len(replica.outstanding) - self._unsettled > limits.lag
                or replica.outstanding_bytes - self._pending_bytes > limits.lag_bytes
            ):
                self._go(replica, Cause.GONE, f"lag: {len(replica.outstanding)} behind", 0)
            elif not waits and silent > limits.ping:
                replica.pinged = True
                self._effects.append(ev.Ping(replica.index))
