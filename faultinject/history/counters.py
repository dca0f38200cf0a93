"""An independent check of long histories, by counters.  It needs no model and no order.  Pure.

Every client increments a counter of its own, alone: the totals must be 1, 2, 3, ...  All clients
increment a shared counter: no total may occur twice.  The totals of the shared counter that one
client sees never decrease.  So a lost or doubled increment shows even if the service, and with it
the model, is wrong.
"""

from __future__ import annotations

__all__ = ["CounterCheck"]

MAX_COMPLAINTS = 20
"""Most findings that are described.  All are counted."""


class CounterCheck:
    """Checks the totals that increments and reads of counters returned."""

    def __init__(self) -> None:
        self._own: dict[str, int] = {}
        self._own_lost: dict[str, int] = {}  # of unknown outcome since the last reply
        self._sums: set[int] = set()
        self._seen: dict[str, int] = {}
        self.shared_lost = 0
        """Increments of the shared counter with an unknown outcome."""
        self.lost = 0
        """Acknowledged increments that a later total does not include."""
        self.twice = 0
        """Increments that a total includes more often than they were made."""
        self.back = 0
        """Totals lower than one that the same client saw before."""
        self.complaints: list[str] = []

    @property
    def increments(self) -> int:
        """Number of acknowledged increments, of all counters."""
        return sum(self._own.values()) + len(self._sums)

    def own(self, client: str, total: int) -> None:
        """Check the total that a client's increment of its own counter returned."""
        expected = self._own.get(client, 0) + 1
        allowed = expected + self._own_lost.pop(client, 0)
        if total < expected:
            self.lost += 1
            self._complain(f"{client}: its own counter is {total}, and was {expected - 1}")
        elif total > allowed:
            self.twice += 1
            self._complain(f"{client}: its own counter is {total}, {allowed} at most is right")
        self._own[client] = total

    def own_lost(self, client: str) -> None:
        """Record that a client's increment of its own counter got no reply."""
        self._own_lost[client] = self._own_lost.get(client, 0) + 1

    def added(self, client: str, total: int) -> None:
        """Check the total that a client's increment of the shared counter returned."""
        if total in self._sums:
            self.lost += 1
            self._complain(f"{client}: the shared counter came to {total} a second time")
        self._sums.add(total)
        self.read(client, total)

    def read(self, client: str, total: int) -> None:
        """Check a total of the shared counter that a client saw."""
        before = self._seen.get(client, 0)
        if total < before:
            self.back += 1
            self._complain(f"{client}: the shared counter is {total}, and was {before}")
        self._seen[client] = max(total, before)

    def finish(self, shared: int, own: dict[str, int]) -> None:
        """Check the counters' values after all clients have ended."""
        if shared < len(self._sums):
            self.lost += len(self._sums) - shared
            self._complain(
                f"the shared counter ends at {shared}, {len(self._sums)} were acknowledged"
            )
        if shared > len(self._sums) + self.shared_lost:
            self.twice += shared - len(self._sums) - self.shared_lost
            self._complain(
                f"the shared counter ends at {shared}: {len(self._sums)} increments were "
                f"acknowledged, {self.shared_lost} are unknown"
            )
        for client, last in self._own.items():
            total = own.get(client, 0)
            if total < last:
                self.lost += last - total
                self._complain(f"{client}: its own counter ends at {total}, and was {last}")
            if total > last + self._own_lost.get(client, 0):
                self.twice += 1
                self._complain(f"{client}: its own counter ends at {total}, last reply {last}")

    def _complain(self, text: str) -> None:
        if len(self.complaints) < MAX_COMPLAINTS:
            self.complaints.append(text)
