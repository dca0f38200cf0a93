"""An audit of the checkpoints in the voter's journal: each must hold the state of the model.

The audit replays the acknowledged writes up to the checkpoint's place.  It compares that state with
the file's, byte for byte, and its digest with the digest that was voted.  It shares only the reader
of the file format with the voter.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from pathlib import Path

import msgspec

from faultinject.history.model import ServiceModel
from voter.errors import JournalError
from voter.journal.format import DamagedError, Owner, read_checkpoint
from voter.journal.recovery import IDENTITY, VoterIdentity, checkpoint_name, numbers_of

__all__ = ["CheckpointAudit"]

MAX_COMPLAINTS = 20
"""Most findings that are described.  All are counted."""


class CheckpointAudit:
    """The audit of one journal.  It compares a checkpoint once the order up to it is known."""

    def __init__(self, journal: Path) -> None:
        self.compared = 0
        """Number of checkpoints that were compared."""
        self.wrong = 0
        """Number of checkpoints with another state than the model's, or that cannot be read."""
        self.complaints: list[str] = []
        self._journal = journal
        self._model = ServiceModel()
        self._writes: deque[tuple[int, bytes]] = deque()  # not applied yet
        self._owner: Owner | None = None
        self._newest = 0  # place of the newest checkpoint that was read
        self._pending: deque[tuple[int, bytes]] = deque()

    def execute(self, place: int, request: bytes, read_only: bool) -> None:
        """Record a request that was executed at this place.  Calls must come in order."""
        if not read_only:
            self._writes.append((place, request))

    def collect(self) -> None:
        """Read new checkpoints.  The voter removes a file after two newer ones."""
        if not self._journal.is_dir():
            return
        names = [path.name for path in self._journal.iterdir()]
        for place in numbers_of(names, "checkpoint"):
            if place <= self._newest:
                continue
            try:
                data = (self._journal / checkpoint_name(place)).read_bytes()
            except FileNotFoundError:
                continue  # removed meanwhile
            self._newest = place
            self._pending.append((place, data))

    def compare(self, known: int) -> None:
        """Compare the collected checkpoints before place ``known``, up to which all is executed."""
        while self._pending and self._pending[0][0] < known:
            place, data = self._pending.popleft()
            self.compared += 1
            problem = self._problem(place, data)
            if problem:
                self.wrong += 1
                if len(self.complaints) < MAX_COMPLAINTS:
                    self.complaints.append(f"{checkpoint_name(place)}: {problem}")

    def _problem(self, place: int, data: bytes) -> str:
        """Describe what is wrong with a checkpoint; empty if nothing is."""
        try:
            _, base, state = read_checkpoint(data, self._identify(), checkpoint_name(place))
        except (DamagedError, JournalError, OSError, msgspec.MsgspecError) as error:
            return f"it cannot be read: {error}"
        expected = self._state_at(place)
        digest = blake2b(expected, digest_size=32).digest()
        if base.seq != place:
            return f"it names place {base.seq}"
        if base.digest != digest:
            return f"the voted digest is {_hex(base.digest)}, the model's {_hex(digest)}"
        if bytes(state) != expected:
            return f"its state of {len(state)} bytes is not the model's of {len(expected)}"
        return ""

    def _state_at(self, place: int) -> bytes:
        """Return the model's state after the last write up to ``place``."""
        while self._writes and self._writes[0][0] <= place:
            at, request = self._writes.popleft()
            self._model.apply(request, at)
        return self._model.state()

    def _identify(self) -> Owner:
        if self._owner is None:
            data = (self._journal / IDENTITY).read_bytes()
            self._owner = msgspec.json.decode(data, type=VoterIdentity).owner
        return self._owner


def _hex(digest: bytes | None) -> str:
    return digest.hex()[:16] if digest else "none"
