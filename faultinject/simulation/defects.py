"""Planted defects for mutation testing.  Each is a small change of the product's source, as data.

An edit is (module, old text, new text).  The old text must occur exactly once.  At least one of
``promises`` must be seen to break when the defect is planted.
"""

from __future__ import annotations

from faultinject.simulation.defect import Defect
from faultinject.simulation.plan import BURSTS, HISTORY, ROLES, SWARM
from faultinject.simulation.role_defects import ROLE_DEFECTS

__all__ = ["DEFECTS", "Defect"]


_ALL = (
    Defect(
        "vote-with-one",
        "one ballot is enough",
        ("Agreement", "Linearizability"),
        (("voter.core.vote", "if votes >= need:", "if votes >= 1:"),),
    ),
    Defect(
        "one-replica-twice",
        "the first replica's ballot counts twice",
        ("Agreement", "Linearizability"),
        (
            (
                "voter.core.vote",
                "votes = tally.get(value, 0) + 1",
                "votes = tally.get(value, 0) + (2 if elector == 0 else 1)",
            ),
        ),
    ),
    Defect(
        "expelled-counts",
        "the ballot of an ended incarnation still counts",
        ("Agreement",),
        (
            ("voter.core.polls", "poll.ballots.pop(replica.index, None)", "poll.ballots"),
            ("voter.core.polls", "poll.sent &= ~(1 << replica.index)", "poll.sent"),
            (
                "voter.core.engine",
                "electors = [index for index in members.active if sent >> index & 1]",
                "electors = sorted({*members.active, *poll.ballots})",
            ),
        ),
    ),
    Defect(
        "release-before-fsync",
        "a reply is released before its write is durable",
        ("Durability",),
        (
            (
                "voter.core.release_gate",
                "if poll.needed_position > self.journal.synced and",
                "if False and",
            ),
        ),
    ),
    Defect(
        "reads-do-not-wait",
        "a read is released before the writes that it saw are durable",
        ("Durability",),
        (
            (
                "voter.core.intake",
                "poll = Poll(record.seq, record, entry, [event.ticket], journal.last_write, size)",
                "poll = Poll(record.seq, record, entry, [event.ticket], "
                "journal.last_write if entry is not None else 0, size)",
            ),
        ),
    ),
    Defect(
        "send-before-write",
        "a request is sent to the guests before it is in the journal",
        ("Durability",),
        (
            (
                "voter.runner",
                "sinks, self._to_flush = self._to_flush, []\n",
                "sinks, self._to_flush = self._to_flush, []\n"
                "        for sink in sinks:\n            sink.flush()\n",
            ),
        ),
    ),
    Defect(
        "no-fsync",
        "the journal reports a sync that it did not make",
        ("Durability",),
        (("voter.journal.journal", "await each.sync()", "await asyncio.sleep(0)"),),
    ),
    Defect(
        "last-write-forgotten",
        "a restart drops the last entry of the journal",
        ("Durability", "Order", "Exactly once"),
        (
            (
                "voter.core.resume",
                "for entry in past.entries:",
                "for entry in past.entries[:-1]:",
            ),
        ),
    ),
    Defect(
        "places-given-again",
        "a restart assigns places again that reads and markers took",
        ("Order", "Exactly once", "Linearizability", "Agreement"),
        (("voter.core.resume", "reserved = max(reserved, entry.upto)", "reserved = 0"),),
    ),
    Defect(
        "skip-the-dedupe",
        "a retry of an ordered request is ordered again",
        ("Exactly once",),
        (("voter.core.intake", "if found.finding is not Finding.NEW:", "if found is None:"),),
    ),
    Defect(
        "retry-after-restart",
        "a restart forgets the deduplication table",
        ("Exactly once",),
        (
            (
                "voter.core.resume",
                "if entry.once is not None:\n                dedup.record(",
                "if False:\n                dedup.record(",
            ),
        ),
    ),
    Defect(
        "table-not-in-checkpoint",
        "the checkpoint does not contain the deduplication table",
        ("Exactly once", "Liveness"),
        (("voter.core.checkpoints", "sessions=self.dedup.export()", "sessions=[]"),),
    ),
    Defect(
        "unsettled-reported-not-executed",
        "a write whose vote fails is reported as not executed",
        ("Fail-safe",),
        (
            (
                "voter.core.engine",
                "self.gate.fail(poll, Failure.OUTCOME_UNKNOWN, detail)",
                "self.gate.fail(poll, Failure.NOT_EXECUTED, detail)",
            ),
        ),
    ),
    Defect(
        "time-goes-back",
        "agreed time follows the wall clock backwards",
        ("Order",),
        (
            ("voter.core.order", "max(now_ns, self.time_ns)", "now_ns"),
            (
                "voter.core.engine_time",
                "passed + max(-(passed // LOSS), min(ahead, passed // GAIN))",
                "passed + ahead",
            ),
        ),
    ),
    Defect(
        "time-stands-still",
        "agreed time waits for a wall clock that was set back",
        ("Order",),
        (
            (
                "voter.core.engine_time",
                "max(-(passed // LOSS), min(ahead, passed // GAIN))",
                "max(-passed, min(ahead, passed // GAIN))",
            ),
        ),
    ),
    Defect(
        "step-ages-keys",
        "a step of the wall clock makes keys and sessions older",
        ("Exactly once", "Liveness"),
        (("voter.core.dedup", "self._stepped_ns += step_ns", "self._stepped_ns += 0"),),
    ),
    Defect(
        "deadly-read-again",
        "a read that ended a majority is sent to all replicas again",
        ("Liveness",),
        (("voter.core.engine", "if poll.killed:", "if False:"),),
    ),
    Defect(
        "out-of-order",
        "the agent applies requests of one delivery in the wrong order",
        ("Order",),
        (
            (
                "guests.agent.incarnation",
                "for frame in self._decoder.feed(data):",
                "for frame in sorted(self._decoder.feed(data), key=lambda f: (f.kind, -f.seq)):",
            ),
            ("guests.agent.incarnation", "if prev != self._history or ", "if "),
        ),
    ),
    Defect(
        "applied-again",
        "the agent applies a request again that it has applied",
        ("Order", "Exactly once"),
        (
            (
                "guests.agent.incarnation",
                "if not read_only and seq <= self._last_seq and",
                "if False and",
            ),
            ("guests.agent.incarnation", "if prev != self._history or ", "if "),
        ),
    ),
    Defect(
        "replay-skips-one",
        "a learner does not get the first write after its checkpoint, and applies the next one",
        ("Order",),
        (
            ("guests.agent.incarnation", "if prev != self._history or ", "if "),
            (
                "voter.core.incarnations",
                "replica.cursor = point.seq\n",
                "replica.cursor = min(point.seq + 1, self.log.last_write)\n",
            ),
            ("voter.core.incarnations", "if event.seq != replica.cursor or", "if"),
        ),
    ),
    Defect(
        "snapshot-off-by-one",
        "a checkpoint claims to contain one write more than it does",
        ("Order", "Liveness"),
        (
            (
                "voter.core.order",
                "keep = self._index_after(checkpoint.seq)",
                "keep = self._index_after(checkpoint.seq) + 1",
            ),
        ),
    ),
    Defect(
        "digest-not-checked",
        "a fetched state is not compared with the voted digest",
        ("Order", "Liveness", "Linearizability"),
        (
            ("voter.core.checkpoints", "if event.digest != marker.digest:", "if False:"),
            (
                "voter.core.incarnations",
                "or replica.restored not in (None, event.digest)",
                "",
            ),
        ),
    ),
    Defect(
        "hang-not-seen",
        "the voter waits forever for a silent replica",
        ("Liveness",),
        (("voter.core.incarnations", "if waits and silent > patience:", "if False:"),),
    ),
    Defect(
        "vote-waits-for-all",
        "a vote is counted only when all replicas have replied",
        ("Liveness",),
        (
            (
                "voter.core.engine",
                "if replica.state is State.ACTIVE or not poll.unanswered:",
                "if not poll.unanswered:",
            ),
        ),
    ),
    Defect(
        "journal-only-grows",
        "segments that no checkpoint needs are not removed",
        ("Bounded",),
        (("voter.journal.history", "if number < first_segment:", "if number < 0:"),),
    ),
    Defect(
        "one-trial-suffices",
        "a read is void as soon as one replica is lost with it",
        ("Linearizability",),
        (
            (
                "voter.core.suspects",
                "guilty = killed and suspect.lost is not None",
                "guilty = killed",
            ),
        ),
    ),
    Defect(
        "full-disk-refuses-reads",
        "while the disk is full reads are refused, as writes are",
        ("Liveness",),
        (("voter.core.intake", "if journal.full and not read_only:", "if journal.full:"),),
    ),
    Defect(
        "stale-epoch",
        "a link accepts replies to an earlier handshake",
        ("Agreement", "Order", "Liveness"),
        (
            (
                "voter.link",
                "elif frame.kind == FrameKind.WELCOME and frame.epoch == self.epoch:",
                "elif frame.kind == FrameKind.WELCOME:",
            ),
            ("voter.link", "if frame.epoch == self.epoch and self.up:", "if self.up:"),
        ),
    ),
    Defect(
        "torn-frame-accepted",
        "the journal accepts a frame with a wrong checksum",
        ("Durability", "Order", "Liveness"),
        (
            (
                "voter.journal.format",
                "if len(payload) < length or crc32(payload, seed) != head.crc:",
                "if len(payload) < length:",
            ),
        ),
    ),
    Defect(
        "batch-compares-one-reply",
        "only the first reply of a batch is compared",
        ("Agreement", "Linearizability"),
        (
            (
                "voter.core.polls",
                "        batch.ballots[index] = payload\n",
                "        first = (batch.replies(payload) or [b''])[0]\n"
                "        batch.ballots[index] = next((p for p in batch.ballots.values()"
                " if (batch.replies(p) or [0])[0] == first), payload)\n",
            ),
        ),
    ),
    Defect(
        "batch-replies-shifted",
        "each request of a batch gets the reply to the next one",
        ("Agreement", "Linearizability"),
        (
            (
                "voter.core.release_gate",
                "batch.tickets, batch.records, self.replies, strict=True",
                "batch.tickets, batch.records, self.replies[1:] + self.replies[:1], strict=True",
            ),
        ),
    ),
    Defect(
        "batch-tickets-crossed",
        "the clients of a batch get each other's replies",
        ("Linearizability", "Exactly once", "Durability"),
        (
            (
                "voter.core.intake",
                "batch.tickets.append(event.ticket)",
                "batch.tickets.insert(0, event.ticket)",
            ),
        ),
    ),
    Defect(
        "batch-released-before-durable",
        "a batch that begins with a read is released before its writes are durable",
        ("Durability",),
        (
            (
                "voter.core.intake",
                "batch.needed_position = records[0].seq, position",
                "batch.needed_position = records[0].seq, position * (not records[0].read_only)",
            ),
        ),
    ),
    Defect(
        "batch-split-crosses-clients",
        "clients of a batch that is taken apart wait for each other's requests",
        ("Linearizability", "Exactly once", "Durability", "Liveness"),
        (
            (
                "voter.core.batch",
                "zip(self.records, self.entries, self.tickets, strict=True)",
                "zip(self.records, self.entries, self.tickets[::-1], strict=True)",
            ),
        ),
    ),
    Defect(
        "batch-sent-again",
        "a replica that joins is sent the open batches twice",
        ("Order", "Liveness", "Exactly once"),
        (
            (
                "voter.core.membership",
                "SendAll(self.live, batch.records, followers.later)",
                "SendAll((*self.live, *self.live[:1]), batch.records, followers.later)",
            ),
        ),
    ),
    Defect(
        "batch-history-of-the-first",
        "all requests of a batch are sent as if they followed what is before the first one",
        ("Order", "Liveness"),
        (
            (
                "guests.agent.incarnation",
                "            if not flags & FLAG_READ_ONLY:\n                prev = history",
                "            if False:\n                prev = history",
            ),
        ),
    ),
    Defect(
        "history-is-not-trimmed",
        "the journal's history grows without a bound",
        ("Bounded",),
        (("voter.journal.history", "while self._bound and", "while False and"),),
    ),
    Defect(
        "history-keeps-no-segments",
        "segments are removed where they should be kept",
        ("Durability",),
        (
            (
                "voter.journal.history",
                "await self._keep(segment_name(number))",
                "await self._files.remove(segment_name(number))",
            ),
        ),
    ),
    *ROLE_DEFECTS,
)

_FIRST = {"batch": BURSTS, "history": HISTORY, "roles": ROLES}
"""The first seeds of defects by the part of their names before the first hyphen."""
DEFECTS: dict[str, Defect] = {
    defect.name: defect._replace(first=_FIRST.get(defect.name.partition("-")[0], SWARM))
    for defect in _ALL
}
"""All planted defects by name."""
