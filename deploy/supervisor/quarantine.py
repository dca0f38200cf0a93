"""What is observed of a patched copy: its differences from the node, its crashes and its delays."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from deploy.node.records import Layout
from deploy.patching.differences import LATENCY_LIMIT, Difference, Source
from deploy.patching.judgement import Finding, Quarantine, classify, judge
from deploy.patching.record import PatchRecord
from deploy.patching.rules import RuleSet, read_rules
from deploy.patching.store import DifferenceStore
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterControl, VoterUnreachable

__all__ = ["QuarantineWatch", "rules_of"]

FOLLOW_PAUSE = 0.2
"""Seconds until the voter's differences are asked for again, when it ended the stream or no copy
is observed.  The voter keeps them meanwhile."""
LATE_SAMPLE = 20
"""Compared replies over which the copy's delay is averaged."""


class QuarantineWatch:
    """The observations of the last patch.

    ``observed`` returns the patch whose copy is observed now, or None.
    """

    def __init__(
        self,
        layout: Layout,
        observer: NodeObserver,
        control: VoterControl,
        storage: Storage,
        *,
        observed: Callable[[], PatchRecord | None],
        changed: Callable[[], object],
    ) -> None:
        self._file = layout.differences.name
        self._observer = observer
        self._control = control
        self._storage = storage
        self._observed = observed
        self._changed = changed
        self._store = DifferenceStore(layout.differences)
        self._rules = RuleSet()
        self.findings: list[Finding] = []
        """The differences, the oldest first."""
        self._compared: tuple[int, int, float] | None = None  # voter, compared, seconds behind
        self._ended: tuple[int, int] | None = None  # voter, incarnations of the copy that ended
        self._differed = (0, 0)  # voter, differences of the copy that it has counted

    def use(self, rules: RuleSet) -> None:
        """Judge all differences by these rules from now on."""
        self._rules = rules
        self.findings = classify(self._store.differences, rules)

    def clear(self, rules: RuleSet) -> None:
        """Forget all differences: another patch begins."""
        self._storage.write(self._file, self._store.clear)
        self._compared, self._ended, self._differed = None, None, (0, 0)
        self.use(rules)

    def verdict(self, record: PatchRecord) -> Quarantine:
        """Return the state of a patch's quarantine."""
        return judge(
            record,
            self.findings,
            now=record.ended or time.time(),
            lost=self._store.lost,
            pending=max(0, self._differed[1] - self._store.received(self._differed[0])),
        )

    def begin(self) -> None:
        """Count from now on: the quarantine begins."""
        self._compared = self._ended = None

    def count(self, record: PatchRecord, slot: str, voter: int) -> PatchRecord:
        """Return the record with what was compared since the last call; note crashes and delays.

        ``voter`` is the pid of the voter whose status was polled last.
        """
        replica = self._observer.replicas.get(slot, {})
        compared, behind = int(replica.get("compared", 0)), float(replica.get("behind_seconds", 0))
        ended = int(replica.get("incarnations_ended", 0))
        if self._ended is not None and self._ended[0] == voter and ended > self._ended[1]:
            self.note("crash", slot, reason=f"the copy's service ended: {replica.get('reason')}")
        self._ended = (voter, ended)
        self._differed = (voter, int(replica.get("differed", 0)))
        before, self._compared = self._compared, (voter, compared, behind)
        if before is None or before[0] != voter or compared <= before[1]:
            return record
        more = compared - before[1]
        delay = (behind - before[2]) / more
        if more >= LATE_SAMPLE and delay > LATENCY_LIMIT:
            self.note("late", slot, behind=delay, reason=f"on average over {more} replies")
        return msgspec.structs.replace(record, compared=record.compared + more)

    def note(self, kind: Source, slot: str, *, reason: str, behind: float = 0.0) -> None:
        """Keep a difference that the supervisor has noticed itself."""
        seq = int((self._observer.voter_status or {}).get("seq", 0))
        found = Difference(
            kind=kind, seq=seq, replica=slot, time=time.time(), reason=reason, behind=behind
        )
        self._storage.write(self._file, lambda: self._store.add(found))
        self.findings += classify([found], self._rules)

    async def follow(self) -> None:
        """Receive the differences of the copy from the voter, until cancelled."""
        while True:
            if self._observed() is not None:
                with contextlib.suppress(VoterUnreachable):
                    voter = int((await self._control.status()).get("pid") or 0)
                    async for document in self._control.differences(self._store.next_after(voter)):
                        if not self._receive(voter, document):
                            break
            await asyncio.sleep(FOLLOW_PAUSE)

    def _receive(self, voter: int, document: Mapping[str, Any]) -> bool:
        """Keep a difference; return False if no copy is observed any more."""
        record = self._observed()
        if record is None or record.slot is None:
            return False
        slot, began, kept = record.slot, record.began, len(self._store.differences)
        self._storage.write(self._file, lambda: self._store.receive(voter, document, slot, began))
        self.findings += classify(self._store.differences[kept:], self._rules)
        self._changed()
        return True


def rules_of(record: PatchRecord | None) -> RuleSet:
    """Return the rules of a record: they were checked before it was written."""
    if record is None or not record.rules:
        return RuleSet()
    return read_rules(record.rules, record.rules_name)
