"""Which process owns the machines of a directory, and which machines those are.

``machines.lock`` is locked by the owner for as long as it lives.  ``machines.json`` exists from
before the first QEMU starts until after the last has ended, so the next owner can prove which QEMUs
are the node's.  Without that record nothing in the directory is touched.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from deploy.errors import AlreadyUp, CannotRunHere, ForeignState
from deploy.host.files import temporary_name, write_json
from deploy.machine.spec import NodeSpec

__all__ = ["MachinesLock", "MachinesRecord", "read_record", "remove_record", "write_record"]

_FORMAT = 1
_RECORD = "machines.json"
_LOCK = "machines.lock"


class MachinesRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node, and which of its guests (by name) have their clean snapshot.

    `host`: processor, kernel and QEMU that made the snapshots; a new QEMU loads them on no other.
    `templates`: the SHA-256 of each template, by the name of its file.
    """

    format: int = _FORMAT
    spec: NodeSpec
    clean: tuple[str, ...] = ()
    host: str = ""
    templates: dict[str, str] = {}


class MachinesLock:
    """The owner's lock on a directory's machines; the kernel releases it when the process ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK
        self._fd = -1

    def take(self) -> None:
        """Lock.  Raises AlreadyUp if another process has it, CannotRunHere without a file."""
        while self._fd < 0:
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise CannotRunHere(
                    f"cannot write {self._path}: {error.strerror}",
                    remedy="choose a writable directory (--dir)",
                    error_code="TV0704",
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise AlreadyUp(
                    f"another process owns the guests in {self._path.parent}",
                    remedy="use that one, or choose another directory (--dir)",
                    error_code="TV0707",
                ) from error
            if self._is_current(fd):
                self._fd = fd
            else:
                os.close(fd)  # the former owner has just removed this file: lock the new one

    def release(self) -> None:
        """Unlock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Unlock and remove the file."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            self.release()

    @property
    def in_place(self) -> bool:
        """Whether the locked file is still at its path: the directory was not moved or deleted."""
        return self._fd >= 0 and self._is_current(self._fd)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except OSError:
            return False


def read_record(directory: Path) -> MachinesRecord | None:
    """Return a directory's record, or None if there is none.

    If the directory was moved or copied since, the paths are those of the directory now, and no
    guest is clean, as its QEMU has other paths.  Raises ForeignState if it cannot be read.
    """
    path = directory / _RECORD
    remedy = (
        "another version of trivisor wrote it, or it was damaged; once nothing of the node runs, "
        f"move it away: `mv {path} {path}.damaged`"
    )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ForeignState(
            f"cannot read {path}: {error.strerror}", remedy=remedy, error_code="TV0706"
        ) from error
    try:
        record = msgspec.json.decode(data, type=MachinesRecord)
    except msgspec.MsgspecError as error:
        raise ForeignState(
            f"{path} is not a node's record: {error}", remedy=remedy, error_code="TV0706"
        ) from error
    if record.format != _FORMAT:
        raise ForeignState(
            f"{path} has format {record.format}, not {_FORMAT}", remedy=remedy, error_code="TV0706"
        )
    return record if record.spec.directory == str(directory) else _relocated(record, directory)


def _relocated(record: MachinesRecord, directory: Path) -> MachinesRecord:
    """Return the record with the paths of another directory."""
    former = f"{record.spec.directory}/"

    def here(path: str) -> str:
        return f"{directory}/{path.removeprefix(former)}" if path.startswith(former) else path

    guests = tuple(
        msgspec.structs.replace(
            guest,
            disk=here(guest.disk),
            link_socket=here(guest.link_socket),
            console_socket=here(guest.console_socket),
        )
        for guest in record.spec.guests
    )
    spec = msgspec.structs.replace(record.spec, directory=str(directory), guests=guests)
    return MachinesRecord(spec=spec)


def write_record(record: MachinesRecord) -> None:
    """Replace the record in its directory atomically.  Raises OSError."""
    write_json(Path(record.spec.directory) / _RECORD, record, mode=0o600)


def remove_record(directory: Path) -> None:
    """Remove the record; nothing of the node may still run."""
    (directory / _RECORD).unlink(missing_ok=True)
    temporary_name(directory / _RECORD).unlink(missing_ok=True)
