"""Planted defects (mutation testing).  Each is a small change of the source, as data.

An edit is (module, old text, new text); the old text must be there exactly once.  ``promises``
are those of which one is expected to be seen broken, in what clients saw or replicas hold.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEFECTS", "Defect"]


class Defect(NamedTuple):
    """One planted defect."""

    name: str
    what: str
    promises: tuple[str, ...]
    edits: tuple[tuple[str, str, str], ...]


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
        "the ballot of an incarnation that is gone still counts",
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
        "a reply is let out before its write is on the disk",
        ("Durability",),
        (("voter.core.durability", "if poll.needs > self.journal.synced and", "if False and"),),
    ),
    Defect(
        "reads-do-not-wait",
        "a read is let out before the writes that it saw are on the disk",
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
        "a request goes out to the guests before it is in the journal",
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
        "the journal says that it is synced, and is not",
        ("Durability",),
        (("voter.journal.journal", "await each.sync()", "await asyncio.sleep(0)"),),
    ),
    Defect(
        "last-write-forgotten",
        "the last entry of the journal is dropped at the start",
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
        "places that only reads and markers took are given again after a restart",
        ("Order", "Exactly once", "Linearizability", "Agreement"),
        (("voter.core.resume", "reserved = max(reserved, entry.upto)", "reserved = 0"),),
    ),
    Defect(
        "skip-the-dedupe",
        "a request that was ordered before is ordered again",
        ("Exactly once",),
        (("voter.core.intake", "if found.finding is not Finding.NEW:", "if found is None:"),),
    ),
    Defect(
        "retry-after-restart",
        "what was ordered before a restart is forgotten by the table",
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
        "the table of requests is no part of the checkpoint",
        ("Exactly once", "Liveness"),
        (("voter.core.checkpoints", "sessions=self.dedup.export()", "sessions=[]"),),
    ),
    Defect(
        "unsettled-told-refused",
        "a write whose vote cannot be met is told as not executed",
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
        (("voter.core.order", "max(wall_ns, self.time_ns)", "wall_ns"),),
    ),
    Defect(
        "out-of-order",
        "the agent applies what came together in the wrong order",
        ("Order",),
        (
            (
                "guests.agent.incarnation",
                "for frame in self._decoder.feed(data):",
                "for frame in sorted(self._decoder.feed(data), key=lambda f: (f.kind, -f.seq)):",
            ),
            ("guests.agent.incarnation", "if order.prev != self._history or ", "if "),
        ),
    ),
    Defect(
        "applied-again",
        "the agent applies once more what it has applied",
        ("Order", "Exactly once"),
        (
            (
                "guests.agent.incarnation",
                "if not read_only and frame.seq <= self._last_seq and",
                "if False and",
            ),
            ("guests.agent.incarnation", "if order.prev != self._history or ", "if "),
        ),
    ),
    Defect(
        "replay-skips-one",
        "a learner is not sent the first write after its checkpoint, and takes the next one",
        ("Order",),
        (
            ("guests.agent.incarnation", "if order.prev != self._history or ", "if "),
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
        "the checkpoint is said to hold one write more than it does",
        ("Order", "Liveness"),
        (
            (
                "voter.core.order",
                "keep = self._position(checkpoint.seq)",
                "keep = self._position(checkpoint.seq) + 1",
            ),
        ),
    ),
    Defect(
        "digest-not-checked",
        "the state that a replica gives is not compared with the voted digest",
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
        "a replica that says nothing any more is waited for",
        ("Liveness",),
        (("voter.core.incarnations", "if waits and silent > patience:", "if False:"),),
    ),
    Defect(
        "dissent-waits",
        "a vote is counted only when all replicas have answered",
        ("Liveness",),
        (
            (
                "voter.core.engine",
                "if replica.state is State.ACTIVE or not poll.due:",
                "if not poll.due:",
            ),
        ),
    ),
    Defect(
        "journal-only-grows",
        "segments that no checkpoint needs any more stay",
        ("Bounded",),
        (("voter.journal.journal", "if number < before[1]:", "if number < 0:"),),
    ),
    Defect(
        "stale-epoch",
        "a link takes answers to an earlier handshake",
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
        "torn-frame-believed",
        "a frame of the journal is believed although its checksum is wrong",
        ("Durability", "Order", "Liveness"),
        (
            (
                "voter.journal.format",
                "if len(payload) < length or crc32(payload, seed) != head.crc:",
                "if len(payload) < length:",
            ),
        ),
    ),
)

DEFECTS: dict[str, Defect] = {defect.name: defect for defect in _ALL}
"""All planted defects by name."""
