"""An audit of the checkpoints in the voter's journal: each must hold the state of the oracle.

The auditor replays the acknowledged writes in a service of its own, up to the checkpoint's place.
It then compares that service's state with the file's, byte for byte, and its digest with the
digest that was voted.  It shares only the reader of the file format with the voter.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from pathlib import Path

import msgspec

from guests.service import Context, answer, load
from voter.errors import JournalError
from voter.journal.format import DamagedError, Owner, read_checkpoint
from voter.journal.recovery import IDENTITY, VoterIdentity, checkpoint_name, numbers_of

__all__ = ["CheckpointAudit", "StateReplay"]

COMPLAINTS = 20
"""How many findings are kept in words; all are counted."""


class StateReplay:
    """The key-value service as it was at a place of the order; it only moves forward."""

    def __init__(self, service: str = "kv") -> None:
        self._service = load(service)()
        self._writes: deque[tuple[int, bytes]] = deque()
        self.at = 0
        """The last place whose write was applied."""

    def execute(self, place: int, request: bytes, read_only: bool) -> None:
        """Record a request that was executed at this place; calls come in the order's order."""
        if not read_only:
            self._writes.append((place, request))

    def state_at(self, place: int) -> bytes:
        """Return the state after the last write up to ``place``.

        Raises ValueError if the replay is past that place.
        """
        if place < self.at:
            raise ValueError(f"the replay is at place {self.at}, past {place}")
        while self._writes and self._writes[0][0] <= place:
            self.at, request = self._writes.popleft()
            answer(self._service, request, Context(self.at, 0, bytes(8), "audit", False))
        return b"".join(self._service.snapshot())


class CheckpointAudit:
    """Reads each new checkpoint of one journal, and compares it once the oracle knows enough."""

    def __init__(self, journal: Path) -> None:
        self.replay = StateReplay()
        self.compared = 0
        """Checkpoints whose state is the oracle's, or is not."""
        self.wrong = 0
        """Checkpoints that hold another state than the oracle, or that cannot be read."""
        self.complaints: list[str] = []
        self.newest = 0
        """Place of the newest checkpoint that was compared."""
        self._journal = journal
        self._owner: Owner | None = None
        self._seen = 0
        self._pending: deque[tuple[int, bytes]] = deque()

    def collect(self) -> None:
        """Read checkpoints that are new.  The voter removes a file after two newer ones."""
        if not self._journal.is_dir():
            return
        names = [path.name for path in self._journal.iterdir()]
        for place in numbers_of(names, "checkpoint"):
            if place <= self._seen:
                continue
            try:
                data = (self._journal / checkpoint_name(place)).read_bytes()
            except FileNotFoundError:
                continue  # the voter removed it since
            self._seen = place
            self._pending.append((place, data))

    def compare(self, known: int) -> None:
        """Compare what was collected, up to place ``known``: all before it were replayed."""
        while self._pending and self._pending[0][0] < known:
            place, data = self._pending.popleft()
            self.compared += 1
            self.newest = place
            problem = self._problem(place, data)
            if problem:
                self.wrong += 1
                if len(self.complaints) < COMPLAINTS:
                    self.complaints.append(f"{checkpoint_name(place)}: {problem}")

    def _problem(self, place: int, data: bytes) -> str:
        """Say what is wrong with a checkpoint; empty if nothing is."""
        try:
            _, base, state = read_checkpoint(data, self._identify(), checkpoint_name(place))
        except (DamagedError, JournalError, OSError, msgspec.MsgspecError) as error:
            return f"it cannot be read: {error}"
        expected = self.replay.state_at(place)
        digest = blake2b(expected, digest_size=32).digest()
        if base.seq != place:
            return f"it names place {base.seq}"
        if base.digest != digest:
            return f"the voted digest is {_hex(base.digest)}, the oracle's {_hex(digest)}"
        if bytes(state) != expected:
            return f"its state of {len(state)} bytes is not the oracle's of {len(expected)}"
        return ""

    def _identify(self) -> Owner:
        if self._owner is None:
            data = (self._journal / IDENTITY).read_bytes()
            self._owner = msgspec.json.decode(data, type=VoterIdentity).owner
        return self._owner


def _hex(digest: bytes | None) -> str:
    return digest.hex()[:16] if digest else "none"
