"""Checkpoints: markers in the order, the vote on digests, the fetch of one state.

A checkpoint is a state whose digest m replicas voted for at one sequence number.  It goes in
three steps, at most one checkpoint at a time (Marker):

1. A marker takes a sequence number.  All live replicas send the digest of their state at it.  If
   the log is worth it, one voter, the *keeper*, keeps that state.  The digests are voted on like
   replies, so a replica with a damaged state is found even if no reply shows the damage.
2. Once the digest is voted, and the keeper has sent the same one, its state is fetched piece by
   piece.  Which replica gives it does not matter: the state must hash to the voted digest.
3. The checkpoint replaces all writes before it in the log (OrderLog.truncate), and the runner
   stores it.  If a write before it is not settled, that write must stay in the log: the state is
   ignored.

A marker is due after ``marker_every`` requests, when the log has grown by a quarter of its limit,
and on an idle node every ``scrub`` seconds.  Digests of a large state take long: the pause between
markers is at least the last digest's time divided by ``digest_share``.

No replica can stop the writes by withholding something.  A digest or a state that is overdue ends
the replica's incarnation.  While the log is filling up, a slow keeper is passed over (the next
active replica is asked) before it is overdue.  If the voter itself was delayed, all deadlines move.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from voter.core.dedup import DedupTable
from voter.core.engine_time import EngineTime
from voter.core.entries import Base
from voter.core.events import Checkpointed, Effect, Fetch, Fetched, FetchFailed, Mark, Piece
from voter.core.journal_state import JournalState
from voter.core.limits import Limits
from voter.core.membership import Membership
from voter.core.order import Checkpoint, OrderLog
from voter.core.poll import Poll
from voter.core.polls import Polls
from voter.core.replica import Replica, Role, State

__all__ = ["Checkpoints", "Marker"]

FIRST_REST = 0.05
"""Seconds of the first pause after a marker whose vote was lost, before it is doubled."""


@dataclass(slots=True)
class Marker:
    """The marker under way: its sequence number, its keeper, and the progress of vote and fetch."""

    seq: int
    history: bytes
    keeper: int | None
    digest: bytes | None = None  # once it is voted
    fetching_since: float | None = None  # engine time
    fetched: int = 0  # bytes of the state that have arrived


@dataclass
class Checkpoints:
    """The marker under way, and when the next one is due."""

    limits: Limits
    time: EngineTime
    log: OrderLog
    journal: JournalState
    members: Membership
    polls: Polls
    dedup: DedupTable
    effects: list[Effect]
    marker: Marker | None = None
    requests: int = 0  # ordered since the last marker
    last: float = 0.0  # engine time of the last marker (at first, of the first tick)
    rest_until: float = 0.0  # engine time before which requests call for no other
    last_size: int = 0  # reclaimable bytes at the last marker or checkpoint
    last_keeper: int = -1
    lost: int = 0  # consecutive markers whose vote was lost
    wanted: bool = False  # the supervisor waits for a checkpoint

    # --------------------------------------------------------------- markers

    @property
    def votes_wait(self) -> bool:
        """Whether requests wait for their votes; a marker's may take long."""
        marker = self.marker
        return self.polls.unsettled > (marker is not None and marker.digest is None)

    def count_requests(self, requests: int) -> None:
        """Note that requests were ordered; place a marker if one is due."""
        self.requests += requests
        if self.marker is None and (
            (self.requests >= self.limits.marker_every and self.time.now >= self.rest_until)
            or self.journal.reclaimable > self.last_size + self.limits.log_bytes // 4
        ):
            self._place()

    def _place(self, *, late: bool = False) -> None:
        """Place a marker, unless digests of the last one are still to come.

        A replica makes one digest at a time.  If the last one is ``late``, the new one replaces it.
        A replica that is no voter delays no marker: while it makes a digest, it gets no other one.
        """
        members = self.members
        busy = [replica for replica in members if replica.markers]
        if not late and any(replica.role is Role.VOTER for replica in busy):
            return
        free = tuple(
            i for i in members.live if members[i].role is Role.VOTER or not members[i].markers
        )
        self.requests = 0
        self.last = self.time.now
        self.last_size = self.journal.reclaimable
        keeper = None
        worth = max(self.limits.checkpoint_bytes, len(self.log.checkpoint.state))
        if self.wanted or self.journal.reclaimable > min(worth, self.limits.log_bytes // 2):
            self.wanted = False
            later = [index for index in self.members.active if index > self.last_keeper]
            keeper = self.last_keeper = (later or self.members.active)[0]
        seq = self.journal.take_seq()
        self.marker = Marker(seq, self.log.history, keeper)
        poll = Poll(seq)
        self.polls.add(poll)
        size = len(self.log.checkpoint.state) + self.log.bytes  # the state is hardly larger
        deadline = self.time.now + self.limits.digest + size / self.limits.restore_rate
        for index in free:
            members[index].markers.append((seq, deadline))
        poll.expect(sum(1 << index for index in free), len(free))
        members.followers.push()
        self.effects.append(Mark(free, seq, keeper))

    def drop(self, poll: Poll) -> None:
        """Abandon a marker whose vote is lost; make another one due after a pause.

        The digest itself may have ended the replicas.  So the pause doubles, up to a minute.
        """
        if self.marker is not None and self.marker.seq == poll.seq:
            self.marker = None
        self.requests = self.limits.marker_every
        self.lost += 1
        self.rest_until = self.time.now + min(FIRST_REST * 2**self.lost, self.limits.digest)

    # --------------------------------------------------------------- digests

    def accept_digest(self, replica: Replica, seq: int) -> bool:
        """Return whether a replica was asked for its digest at ``seq``.

        If so, it will not send the earlier ones any more, for it makes one digest at a time.
        """
        if all(asked != seq for asked, _ in replica.markers):
            return False
        while (earlier := replica.markers.popleft()[0]) != seq:
            self.polls.expect_one_less(earlier)
        replica.digest_seq = seq
        return True

    def request(self) -> None:
        """Make a checkpoint due, also if the log is short."""
        self.wanted = True

    def digest_voted(self, seq: int, digest: bytes, ballots: dict[int, bytes]) -> None:
        """Note the voted digest of the marker at ``seq``; fetch the state if the keeper has it."""
        marker = self.marker
        if marker is None or marker.seq != seq:
            return
        marker.digest, self.lost = digest, 0
        took = self.time.now - self.last
        self.rest_until = self.last + min(took / self.limits.digest_share, self.limits.digest)
        if marker.keeper is None:
            self.marker = None
        elif marker.keeper in ballots:
            agrees = ballots[marker.keeper] == digest
            self.keeper_voted(self.members[marker.keeper], seq, agrees=agrees)

    def keeper_voted(self, replica: Replica, seq: int, *, agrees: bool) -> None:
        """Fetch the kept state if this replica is the keeper and sent the voted digest."""
        marker = self.marker
        if marker is None or marker.seq != seq or marker.keeper != replica.index:
            return
        if agrees and replica.state is State.ACTIVE:
            marker.fetching_since = self.time.now
            self.effects.append(Fetch(replica.index, replica.epoch, seq))
        else:
            self.marker = None

    def keeper_lost(self, replica: Replica) -> None:
        """Do without the state if the keeper's incarnation has ended; the vote may continue."""
        if self.marker is not None and self.marker.keeper == replica.index:
            self.marker.keeper = None
            if self.marker.digest is not None:
                self.marker = None

    # ----------------------------------------------------------------- fetch

    def _find_fetch(self, event: Piece | Fetched | FetchFailed) -> Marker | None:
        """Return the marker if the event is about the fetch under way."""
        marker = self.marker
        if (
            marker is not None
            and marker.fetching_since is not None
            and (marker.keeper, marker.seq) == (event.replica, event.seq)
            and event.epoch == self.members[event.replica].epoch
        ):
            return marker
        return None

    def piece(self, event: Piece) -> None:
        """Note how much of the state has arrived."""
        if (marker := self._find_fetch(event)) is not None:
            marker.fetched = event.size

    def fetch_failed(self, event: FetchFailed) -> None:
        """Abandon the marker: its keeper cannot give the state, which is no fault."""
        if self._find_fetch(event) is not None:
            self.marker = None

    def take_state(self, event: Fetched) -> bool:
        """Make a state that has arrived the checkpoint.

        Return False if it is not the voted one.
        """
        if (marker := self._find_fetch(event)) is None:
            return True
        self.marker = None
        if event.digest != marker.digest:
            return False
        if self.polls.first_unsettled() < marker.seq:
            return True
        self.log.truncate(Checkpoint(marker.seq, marker.history, marker.digest, event.state))
        self.journal.checkpointed()
        self.members.checkpointed()
        self.last_size = self.journal.reclaimable
        base = Base(
            seq=marker.seq,
            history=marker.history,
            digest=marker.digest,
            time_ns=self.log.time_ns,
            reserved=max(self.journal.reserved, marker.seq),
            suspects=[replica.name for replica in self.members if replica.suspect],
            sessions=self.dedup.export(),
            roles_version=self.members.roles_version,
            roles=self.members.roles if self.members.roles_version else {},
        )
        self.effects.append(Checkpointed(base, event.state))
        return True

    # -------------------------------------------------------------- deadlines

    def is_digest_overdue(self, replica: Replica, gap: float) -> bool:
        """Whether a digest takes longer than a transfer of the state at the least rate.

        Its time begins when the replica has answered all that it was sent before the marker: a
        learner may have much to catch up with first.  ``gap``: seconds since the last check.
        """
        if not replica.markers:
            return False
        outstanding = replica.outstanding
        behind = outstanding and outstanding[0][0] < replica.markers[0][0]
        if behind or gap > self.limits.hang / 2:
            replica.markers = deque((seq, deadline + gap) for seq, deadline in replica.markers)
        return self.time.now > replica.markers[0][1]

    def is_keeper_overdue(self, gap: float) -> bool:
        """Whether the fetch makes less than the least rate.

        While the log is half full, a keeper that is slower than ``restore_rate`` is passed over.
        """
        limits, marker, now = self.limits, self.marker, self.time.now
        self.last = self.last or now
        if marker is None or marker.keeper is None or marker.fetching_since is None:
            return False
        if gap > limits.hang / 2:
            marker.fetching_since += gap
        taken = now - marker.fetching_since
        if taken > limits.digest + marker.fetched / limits.fetch_rate:
            return True
        if self._is_half_full and taken > limits.hang + marker.fetched / limits.restore_rate:
            self.marker = None
        return False

    @property
    def _is_half_full(self) -> bool:
        return self.journal.reclaimable > self.limits.log_bytes // 2

    def place_if_due(self) -> None:
        """Place a marker if one is wanted, the log is filling up, or none was placed for long."""
        if self.marker is not None or not self.members.can_vote:
            return
        limits, now = self.limits, self.time.now
        if self._is_half_full and now > self.last + 1:
            self._place(late=now > self.last + limits.hang)
        elif self.journal.has_reserved_seq() and (
            self.wanted or now > max(self.last + limits.scrub, self.rest_until)
        ):
            self._place()
