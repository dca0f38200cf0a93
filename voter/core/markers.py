"""Markers: digests are compared, one replica's state is fetched, and the log is cut there."""

from __future__ import annotations

from collections import deque

from voter.core import events as ev
from voter.core.books import Marker, Poll
from voter.core.durable import Durable
from voter.core.order import Checkpoint
from voter.core.replica import Cause, Replica, State

__all__ = ["Markers"]


class Markers(Durable):
    """The part of the engine that makes checkpoints.

    A checkpoint is a state whose digest m replicas voted for at one place in the order.  Which
    replica keeps and gives it does not matter: it must hash to the voted digest.
    """

    def _is_marker_due(self) -> bool:
        """Whether so many requests call for one, and the last digest was not too long ago for what
        it took; or the log has grown.
        """
        enough = self._since_marker >= self.limits.marker_every and self._now >= self._mark_rest
        return enough or self.grown > self._mark_at

    def _place_marker(self, *, late: bool = False) -> None:
        """Order a checkpoint marker: all live replicas tell their digest, one may keep the
        state.

        None while a digest of the last one is still to come, unless that is ``late``: what is asked
        for here takes its place.
        """
        if not late and any(replica.markers for replica in self.members):
            return
        self._since_marker = 0
        self._marked = self._now
        self._mark_at = self.grown + self.limits.log_bytes // 4
        keeper = None
        worth = max(self.limits.checkpoint_bytes, len(self.log.checkpoint.state))
        if self.grown > min(worth, self.limits.log_bytes // 2):
            later = [i for i in self.members.active if i > self._last_keeper]
            keeper = (later or list(self.members.active))[0]
            self._last_keeper = keeper
        seq = self._take_place()
        self._mark = Marker(seq, self.log.history, keeper)
        poll = self._open[seq] = Poll(seq, None, None, None)
        self._unsettled += 1
        size = len(self.log.checkpoint.state) + self.log.bytes  # the state is hardly larger
        due = self._now + self.limits.digest + size / self.limits.restore_rate
        for index in self.members.live:
            self.members[index].markers.append((seq, due))
            poll.sent |= 1 << index
            poll.due += 1
        self._effects.append(ev.Mark(self.members.live, seq, keeper))

    def _tells(self, replica: Replica, seq: int) -> bool:
        """Whether a replica's digest at ``seq`` is one that it was asked for.

        It tells none of the earlier ones any more: the agent makes one at a time.
        """
        markers = replica.markers
        if all(asked != seq for asked, _ in markers):
            self._convict(replica, "told a digest that it was not asked for", seq)
            return False
        while (earlier := markers.popleft()[0]) != seq:
            poll = self._open.get(earlier)
            if poll is not None:
                poll.due -= 1
                if not poll.due and poll.value is not None:
                    del self._open[earlier]
        return True

    def _marker_voted(self, seq: int, digest: bytes, ballots: dict[int, bytes]) -> None:
        mark = self._mark
        if mark is None or mark.seq != seq:
            return
        mark.digest = digest
        took = self._now - self._marked
        self._mark_rest = self._marked + min(took / self.limits.digest_share, self.limits.digest)
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
        if event.digest != mark.digest:
            self._convict(replica, "the state it gave does not hash to the voted digest", mark.seq)
            return
        if self._first_unsettled() < mark.seq:
            return  # its vote may still be lost, and then it must be in the log
        self.log.truncate(Checkpoint(mark.seq, mark.history, mark.digest, event.state))
        self._noise = self._moves = 0
        self._mark_at = self.grown + self.limits.log_bytes // 4
        self._voids = [seq for seq in self._voids if seq > mark.seq]
        self._effects.append(ev.Checkpointed(self._base(mark), event.state))

    def _fetch_failed(self, event: ev.FetchFailed) -> None:
        if self._is_fetched(event.replica, event.epoch, event.seq):
            self._mark = None

    def _watch_marker(self, gap: float) -> None:
        """Give up on who is too slow with a digest or a state; place a marker if the log is
        filling up.

        A keeper that makes less than the least rate is gone.  One that is slow while the log
        is full (less than ``restore_rate``) is left alone, and the next one is asked, so that no
        replica can stop the writes by withholding its state, or its digest.
        """
        self._watch_digests(gap)
        limits, mark, now = self.limits, self._mark, self._now
        self._marked = self._marked or now
        full = self.grown > limits.log_bytes // 2
        if mark is not None and mark.keeper is not None and mark.fetching is not None:
            if gap > limits.hang / 2:
                mark.fetching += gap
            taken = now - mark.fetching
            if taken > limits.digest + mark.fetched / limits.fetch_rate:
                reason = "hang: does not give the state it kept"
                self._go(self.members[mark.keeper], Cause.GONE, reason, mark.seq)
            elif full and taken > limits.hang + mark.fetched / limits.restore_rate:
                self._mark = None
        if self._mark is not None or not self.members.can_vote:
            return
        if full and now > self._marked + 1:
            self._place_marker(late=now > self._marked + limits.hang)
        elif now > max(self._marked + limits.scrub, self._mark_rest) and self._has_place():
            self._place_marker()

    def _watch_digests(self, gap: float) -> None:
        """A replica whose digest takes longer than a transfer of the state at the least rate is
        gone.

        Its time begins when it has answered all that it was sent before the marker: a learner may
        have much to catch up with first.
        """
        for replica in self.members:
            if not replica.markers:
                continue
            outstanding = replica.outstanding
            behind = outstanding and outstanding[0][0] < replica.markers[0][0]
            if behind or gap > self.limits.hang / 2:
                replica.markers = deque((seq, due + gap) for seq, due in replica.markers)
            seq, due = replica.markers[0]
            if self._now > due:
                self._go(replica, Cause.GONE, "hang: does not tell its digest", seq)
