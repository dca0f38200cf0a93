"""The differences of the node's patch, kept on disk: the voter has the last ones only, in memory.

The file has a line of JSON for each.  A line that was cut off, by a crash or a full disk, is left
out when it is read.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from deploy.patching.differences import Difference

__all__ = ["DifferenceStore", "difference_of", "show"]

MOST = 1000
"""Differences that are kept; further ones are counted only.  Nobody reads more of them."""
MOST_BYTES = 16 << 20
"""Bytes of the file."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A difference with its number and the pid of the voter that numbered it (0: none)."""

    voter: int
    id: int
    difference: Difference


def difference_of(document: Mapping[str, Any]) -> Difference:
    """Return a difference as the voter describes it (``voter.reports.Difference``).

    Raises ValueError if the document is none.
    """
    try:
        parts = {
            key: b64decode(document[key], validate=True) if document[key] is not None else None
            for key in ("request", "released", "other")
        }
        cut = any(
            part is not None and (size or 0) > len(part)
            for part, size in zip(parts.values(), document["sizes"], strict=True)
        )
        return msgspec.convert(
            {
                **{key: document[key] for key in ("kind", "seq", "replica", "time", "behind")},
                **parts,
                "request": parts["request"] or b"",
                "cut": cut,
            },
            Difference,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no difference: {error}") from error


class DifferenceStore:
    """The kept differences of one patch.  Methods that write raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[_Line] = []
        self._bytes = 0
        self.lost = 0
        """Differences that were dropped by the voter, or are beyond MOST or MOST_BYTES."""
        self._source: tuple[int, int] = (0, 0)  # the voter, and the last number that was seen
        self._read()

    @property
    def differences(self) -> list[Difference]:
        """All kept differences, the oldest first."""
        return [line.difference for line in self._lines]

    def received(self, voter: int) -> int:
        """Return how many differences of this voter were kept or lost."""
        return sum(line.voter == voter for line in self._lines) + self.lost

    def next_after(self, voter: int) -> int:
        """Return the number of the last difference that was seen of this voter, or 0."""
        return self._source[1] if self._source[0] == voter else 0

    def clear(self) -> None:
        """Forget all: another patch begins."""
        self._path.unlink(missing_ok=True)
        self._lines, self._bytes, self.lost, self._source = [], 0, 0, (0, 0)

    def receive(
        self, voter: int, document: Mapping[str, Any], replica: str, since: float
    ) -> Difference | None:
        """Keep a difference as the voter describes it; return it, or None if it is of no interest.

        It is if it is new, of ``replica`` and not before ``since`` (seconds since 1970).  A gap in
        the voter's numbers counts as lost differences.  Raises ValueError, OSError.
        """
        number, before = int(document["id"]), self.next_after(voter)
        if number <= before:
            return None
        difference = difference_of(document)
        known = self._source[0] == voter
        self._source = (voter, number)
        self.lost += number - before - 1 if known or before else 0
        if difference.replica != replica or difference.time < since:
            return None
        self._append(_Line(voter=voter, id=number, difference=difference))
        return difference

    def add(self, difference: Difference) -> None:
        """Keep a difference that the supervisor has noticed itself."""
        self._append(_Line(voter=0, id=0, difference=difference))

    def _append(self, line: _Line) -> None:
        data = msgspec.json.encode(line) + b"\n"
        if len(self._lines) >= MOST or self._bytes + len(data) > MOST_BYTES:
            self.lost += 1
            return
        self._lines.append(line)
        self._bytes += len(data)
        with self._path.open("ab") as file:
            file.write(data)

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        for text in data.splitlines():
            try:
                line = msgspec.json.decode(text, type=_Line)
            except msgspec.MsgspecError:
                continue
            self._lines.append(line)
            if line.voter:
                self._source = (line.voter, line.id)
        self._bytes = len(data)
        if data and not data.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")


def show(difference: Difference) -> dict[str, Any]:
    """Return a difference as plain data: texts instead of bytes, for JSON."""
    document: dict[str, Any] = json.loads(msgspec.json.encode(difference))
    for key in ("request", "released", "other"):
        part = getattr(difference, key)
        document[key] = None if part is None else part.decode("latin-1")
    return document
