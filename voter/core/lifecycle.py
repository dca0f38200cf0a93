"""How replicas come, catch up, are admitted, and are found to be gone.

The half of the engine that is not the hot path; ``engine.Engine`` builds on it.  Every recovery
uses only the last voted checkpoint and the log since, never one replica's word.
"""

from __future__ import annotations

from math import inf

from voter.core import events as ev
from voter.core.markers import Markers
from voter.core.order import tag
from voter.core.replica import Cause, Replica, State

__all__ = ["Lifecycle"]

LOOK = 0.01
"""Seconds of engine time between looks at who hangs or lags."""


class Lifecycle(Markers):
    """Everything about replicas that is not the vote itself."""

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
        start = self._where_to_go_on(replica, event)
        if start is None:
            self._restore(replica)
        else:
            self._move(replica, Cause.BEHIND, "catches up from the log", event.last_seq)
            replica.cursor = max(start, self.log.checkpoint.seq)
            self._teach(replica)

    def _where_to_go_on(self, replica: Replica, event: ev.Greeted) -> int | None:
        """Return the place after which the log continues a replica; None if it does not.

        What it has applied and no vote was won for (a voter that ended did not hear of it) must be
        voted on: it goes on from there if it still has its replies, which it then gives again.
        """
        if replica.suspect or not self.log.continues(event.last_seq, event.history):
            return None
        if event.last_seq >= min(self._voids, default=inf):
            return None
        first = self._first_unsettled()
        if event.last_seq < first:
            return event.last_seq
        return int(first) - 1 if 0 < event.replies_from <= first else None

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
        seq = self._take_place()
        if replica.observer:
            self._move(replica, Cause.OBSERVING, "observes", seq)
        else:
            self._move(replica, Cause.ADMITTED, "votes", seq)
            self._dirty = True
        self.members.refresh()

    def _fetched(self, event: ev.Fetched) -> None:
        """A state has arrived; learners whose next writes went with the old log start anew."""
        super()._fetched(event)
        for replica in self.members:
            if replica.state is State.LEARNER and not replica.live:
                self._teach(replica)

    def _check_replayed(self, replica: Replica, seq: int, value: bytes) -> None:
        """A learner's reply to a request that was settled long ago must be the released one."""
        entry = self.log.find(seq)
        if entry is not None and entry.tag is not None and tag(value) != entry.tag:
            self._dissented(replica, seq)

    # ------------------------------------------------------------- going

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
            # Without a digest nobody knows what state it is in.
            replica.suspect |= any(seq == event.seq for seq, _ in replica.markers)
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
        self._now, self._wall_ns = event.now, event.wall_ns
        limits, gap = self.limits, event.now - self._looked
        if 0 < gap < LOOK:
            return
        self._looked = event.now
        self._watch_marker(gap)
        gaps: dict[int, int] = {}
        for replica in self.members:
            if not replica.epoch:
                continue
            if replica.state is State.LEARNER:
                behind = replica.outstanding[0][0] - 1 if replica.outstanding else replica.cursor
                gaps[replica.index] = self.log.count_after(behind)
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
        self._throttle.look(event.now, gaps)
