"""The record of a node's machines and its lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import AlreadyUp
from deploy.host.spawn import python_environment
from deploy.machine.ownership import (
    MachinesLock,
    MachinesRecord,
    read_record,
    remove_record,
    write_record,
)
from tests.deploy.machine.test_spec import planned
from tests.errors import raises

HOLDER = """
import sys
from pathlib import Path
from deploy.machine.ownership import MachinesLock
lock = MachinesLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
sys.stdin.read()
"""


def test_record_is_read_as_written(scratch: Path) -> None:
    assert read_record(scratch) is None
    record = MachinesRecord(spec=planned(directory=str(scratch)), clean=("g1",))
    write_record(record)
    assert read_record(scratch) == record
    assert [path.name for path in scratch.iterdir()] == ["machines.json"]
    remove_record(scratch)
    assert list(scratch.iterdir()) == []


def test_record_of_a_moved_directory_has_the_paths_of_the_present_one(scratch: Path) -> None:
    here, there = scratch / "here", scratch / "there"
    here.mkdir()
    there.mkdir()
    write_record(MachinesRecord(spec=planned(directory=str(here)), clean=("g1",)))
    (there / "machines.json").write_bytes((here / "machines.json").read_bytes())
    assert read_record(there) == MachinesRecord(spec=planned(directory=str(there)))


def test_lock_has_one_holder_and_is_released_when_its_process_is_killed(scratch: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(scratch)], env=python_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        lock = MachinesLock(scratch)
        with raises("TV0707", match="another process owns"):
            lock.take()
        holder.kill()
    lock.take()
    lock.remove()
    assert list(scratch.iterdir()) == []


def test_lock_is_taken_on_a_new_file_after_the_old_one_was_removed(scratch: Path) -> None:
    first, second = MachinesLock(scratch), MachinesLock(scratch)
    first.take()
    first.remove()
    second.take()
    with pytest.raises(AlreadyUp):
        MachinesLock(scratch).take()
    second.release()
