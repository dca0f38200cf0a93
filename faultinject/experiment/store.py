"""The file of an experiment's results: JSON lines, first the head, then one row for each trial.

Each row is on the disk before the next trial begins.  A torn last line, of a process that was
killed, is truncated when the experiment is resumed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

import msgspec

from faultinject.experiment.design import (
    Experiment,
    ExperimentError,
    Outcome,
    Trial,
    load_experiment,
    plan_trials,
)

__all__ = ["ROWS", "Head", "Row", "RowStore"]

ROWS = "rows.jsonl"
"""Name of the file in the experiment's directory."""


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Identity of a run: from it and the experiment's module the plan follows."""

    module: str
    name: str
    seed: int
    share: float
    arms: tuple[str, ...]
    created: float  # seconds since the epoch
    version: str  # of trivisor, with a digest of its sources


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One trial that has run: ``seconds`` it took, and the rig's ``facts``."""

    index: int
    arm: str
    seed: int
    worker: str
    seconds: float
    facts: Mapping[str, str]
    outcome: Outcome


class RowStore:
    """Head, plan and rows of one experiment; use ``create`` or ``open``, and ``close``."""

    def __init__(self, directory: Path, head: Head, rows: list[Row], file: IO[bytes] | None):
        self.directory = directory
        self.head = head
        self.rows = rows
        self.experiment: Experiment = load_experiment(head.module)
        self.plan: list[Trial] = plan_trials(
            self.experiment, head.seed, share=head.share, arms=head.arms
        )
        self._file = file

    @classmethod
    def create(cls, directory: Path, head: Head) -> Self:
        """Make the directory's file.  Raises ExperimentError if there is one, OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / ROWS
        try:
            file = path.open("xb")
        except FileExistsError:
            raise ExperimentError(
                f"{directory} holds an experiment already",
                remedy=f"`trivisor experiment resume {directory}`, or give another --out",
                error_code="TV0547",
            ) from None
        try:
            _lock(file, path)
            store = cls(directory, head, [], file)
            store._write(head)
        except BaseException:
            file.close()
            path.unlink()
            raise
        return store

    @classmethod
    def open(cls, directory: Path, *, write: bool) -> Self:
        """Read a directory's file; with ``write``, continue it.

        Raises ExperimentError if it is damaged or in use, OSError.
        """
        path = directory / ROWS
        file = path.open("r+b") if write else None
        try:
            if file is not None:
                _lock(file, path)
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            lines = data[:whole].splitlines()
            try:
                head = msgspec.json.decode(lines[0], type=Head)
                decode = msgspec.json.Decoder(Row).decode
                rows = [decode(line) for line in lines[1:]]
            except (IndexError, msgspec.MsgspecError) as error:
                raise ExperimentError(
                    f"{path} holds no experiment that this version can read: {error}",
                    remedy="run the experiment again with another --out",
                    error_code="TV0548",
                ) from error
            if file is not None:
                file.truncate(whole)
                file.seek(whole)
            return cls(directory, head, rows, file)
        except BaseException:
            if file is not None:
                file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; others may continue it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def pending(self) -> list[Trial]:
        """The trials of the plan without a row, in its order."""
        done = {row.index for row in self.rows}
        return [trial for trial in self.plan if trial.index not in done]

    def add(self, row: Row) -> None:
        """Store a row.  Raises OSError; the row is then not stored."""
        self._write(row)
        self.rows.append(row)

    def _write(self, line: msgspec.Struct) -> None:
        assert self._file is not None
        at = self._file.tell()
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), at)  # a part of a line would end the file for readers
            raise


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExperimentError(
            f"{path} is in use by another process",
            remedy="wait until it has ended",
            error_code="TV0549",
        ) from None


def new_head(
    module: str, name: str, *, seed: int, share: float, arms: tuple[str, ...], version: str
) -> Head:
    """Return the head of a run that begins now."""
    return Head(
        module=module, name=name, seed=seed, share=share, arms=arms,
        created=time.time(), version=version,
    )  # fmt: skip
