"""Evidence that needs no oracle: counters, and what each client saw one after the other.

Every client adds one to a counter of its own, alone: the sums must be 1, 2, 3, ...  All add one
to a shared counter: no sum may come twice.  What a client reads of the shared counter never goes
back.  Pure.
"""

from __future__ import annotations

__all__ = ["Evidence"]

TOLD = 20


class Evidence:
    """Takes the sums that were answered; counts what cannot be."""

    def __init__(self) -> None:
        self._own: dict[str, int] = {}
        self._own_lost: dict[str, int] = {}  # increments of unknown outcome since the last answer
        self._sums: set[int] = set()
        self._seen: dict[str, int] = {}
        self.shared_lost = 0
        """Increments of the shared counter whose outcome is unknown."""
        self.lost = 0
        """Acknowledged increments that a later answer does not hold."""
        self.twice = 0
        """Increments that an answer holds more often than they were made."""
        self.back = 0
        """Reads that went back."""
        self.complaints: list[str] = []

    @property
    def increments(self) -> int:
        """Acknowledged increments, of all counters."""
        return sum(self._own.values()) + len(self._sums)

    @property
    def shared(self) -> int:
        """Acknowledged increments of the shared counter."""
        return len(self._sums)

    def own(self, client: str, total: int) -> None:
        """A client's increment of its own counter was answered with this sum."""
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
        """A client's increment of its own counter got no answer."""
        self._own_lost[client] = self._own_lost.get(client, 0) + 1

    def added(self, client: str, total: int) -> None:
        """A client's increment of the shared counter was answered with this sum."""
        if total in self._sums:
            self.lost += 1
            self._complain(f"{client}: the shared counter came to {total} a second time")
        self._sums.add(total)
        self.read(client, total)

    def read(self, client: str, total: int) -> None:
        """A client saw the shared counter at this sum."""
        before = self._seen.get(client, 0)
        if total < before:
            self.back += 1
            self._complain(f"{client}: the shared counter is {total}, and was {before}")
        self._seen[client] = max(total, before)

    def finish(self, shared: int, own: dict[str, int]) -> None:
        """These are the counters after all clients have ended."""
        if shared < len(self._sums):
            self.lost += len(self._sums) - shared
            self._complain(f"the shared counter ends at {shared}, {len(self._sums)} were told")
        if shared > len(self._sums) + self.shared_lost:
            self.twice += shared - len(self._sums) - self.shared_lost
            self._complain(
                f"the shared counter ends at {shared}: {len(self._sums)} increments were told, "
                f"{self.shared_lost} are unknown"
            )
        for client, told in self._own.items():
            total = own.get(client, 0)
            if total < told:
                self.lost += told - total
                self._complain(f"{client}: its own counter ends at {total}, and was {told}")
            if total > told + self._own_lost.get(client, 0):
                self.twice += 1
                self._complain(f"{client}: its own counter ends at {total}, {told} were told")

    def _complain(self, text: str) -> None:
        if len(self.complaints) < TOLD:
            self.complaints.append(text)
