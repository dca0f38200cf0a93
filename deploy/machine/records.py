"""What is written down of a node's machines, so that the next owner can prove what is its own.

`machines.json` stands in the node's directory from before the first QEMU starts until after the
last has ended. Without it, nothing there is touched.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from deploy.errors import AlreadyUp, CannotRunHere, ForeignState
from deploy.host.atomic_file import aside_of, write_json
from deploy.machine.spec import NodeSpec

__all__ = ["MachinesLock", "MachinesRecord", "forget", "read_record", "write_record"]

_FORMAT = 1
_RECORD = "machines.json"
_LOCK = "machines.lock"


class MachinesRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node, and which of its guests (by name) have their clean snapshot."""

    format: int = _FORMAT
    spec: NodeSpec
    clean: tuple[str, ...] = ()


class MachinesLock:
    """One process at a time owns the machines of a directory; a process that dies owns nothing."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK
        self._fd = -1

    def take(self) -> None:
        """Take it. Raises AlreadyUp if another has it, CannotRunHere if the file cannot be made."""
        while self._fd < 0:
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise CannotRunHere(
                    f"cannot write {self._path}: {error.strerror}",
                    remedy="choose a directory (--dir) that you may write to",
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise AlreadyUp(
                    f"another process owns the guests in {self._path.parent}",
                    remedy="use that one, or choose another directory (--dir)",
                ) from error
            if self._is_current(fd):
                self._fd = fd
            else:
                os.close(fd)  # its former owner has just removed it: lock the one there is now

    def release(self) -> None:
        """Let it go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Let it go and remove the file."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            self.release()

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False


def read_record(directory: Path) -> MachinesRecord | None:
    """Return what is written down in a directory, None where nothing is.

    Raises ForeignState if it cannot be read, or tells of another directory (a copy).
    """
    path = directory / _RECORD
    remedy = f"see what it is; if nothing of it runs, remove {directory}"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ForeignState(f"cannot read {path}: {error.strerror}", remedy=remedy) from error
    try:
        record = msgspec.json.decode(data, type=MachinesRecord)
    except msgspec.MsgspecError as error:
        raise ForeignState(f"{path} is no record of a node: {error}", remedy=remedy) from error
    if record.format != _FORMAT:
        raise ForeignState(f"{path} has format {record.format}, not {_FORMAT}", remedy=remedy)
    if record.spec.directory != str(directory):
        raise ForeignState(f"{path} tells of {record.spec.directory}", remedy=remedy)
    return record


def write_record(record: MachinesRecord) -> None:
    """Write it down in its directory, whole or not at all. Raises OSError."""
    write_json(Path(record.spec.directory) / _RECORD, record, mode=0o600)


def forget(directory: Path) -> None:
    """Remove the record; nothing of the node must be left."""
    (directory / _RECORD).unlink(missing_ok=True)
    aside_of(directory / _RECORD).unlink(missing_ok=True)
