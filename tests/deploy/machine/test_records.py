"""The record of a node's machines, its lock, and what happens where the state is not a node's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import AlreadyUp, CannotRunHere, ForeignState
from deploy.machine.node import NodeMachines
from deploy.machine.records import MachinesLock, MachinesRecord, forget, read_record, write_record
from tests.deploy.machine.test_spec import planned

HOLDER = """
import sys
from pathlib import Path
from deploy.machine.records import MachinesLock
lock = MachinesLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_record_is_read_as_written(scratch: Path) -> None:
    assert read_record(scratch) is None
    record = MachinesRecord(spec=planned(directory=str(scratch)), clean=("g1",))
    write_record(record)
    assert read_record(scratch) == record
    assert [path.name for path in scratch.iterdir()] == ["machines.json"]
    forget(scratch)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 9}', b"\xff\xfe"])
async def test_an_unreadable_record_is_foreign_and_nothing_is_touched(
    scratch: Path, content: bytes
) -> None:
    file = scratch / "machines.json"
    file.write_bytes(content)
    node = NodeMachines(planned(directory=str(scratch)))
    with pytest.raises(ForeignState, match=r"machines\.json"):
        await node.up()
    with pytest.raises(ForeignState):
        await node.down()
    assert file.read_bytes() == content
    assert not (scratch / "r").exists()


def test_a_record_copied_from_elsewhere_is_foreign(scratch: Path) -> None:
    here, there = scratch / "here", scratch / "there"
    here.mkdir()
    there.mkdir()
    write_record(MachinesRecord(spec=planned(directory=str(here))))
    (there / "machines.json").write_bytes((here / "machines.json").read_bytes())
    with pytest.raises(ForeignState, match="tells of"):
        read_record(there)


async def test_files_without_a_record_are_foreign(scratch: Path) -> None:
    disk = scratch / "g1.qcow2"
    disk.write_bytes(b"somebody's")
    with pytest.raises(ForeignState, match=r"g1\.qcow2 exists"):
        await NodeMachines(planned(directory=str(scratch))).up()
    assert disk.read_bytes() == b"somebody's"


def test_one_process_owns_a_directory_and_a_killed_one_owns_nothing(scratch: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        lock = MachinesLock(scratch)
        with pytest.raises(AlreadyUp, match="another process owns"):
            lock.take()
        holder.kill()
    lock.take()
    lock.remove()
    assert list(scratch.iterdir()) == []


def test_a_lock_file_that_was_just_removed_is_not_what_gets_locked(scratch: Path) -> None:
    first, second = MachinesLock(scratch), MachinesLock(scratch)
    first.take()
    first.remove()
    second.take()
    with pytest.raises(AlreadyUp):
        MachinesLock(scratch).take()
    second.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_cannot_be_made_is_named(scratch: Path) -> None:
    scratch.chmod(0o500)
    with pytest.raises(CannotRunHere, match="--dir"):
        await NodeMachines(planned(directory=str(scratch / "n"))).up()


async def test_a_directory_below_a_file_is_named(scratch: Path) -> None:
    (scratch / "file").write_bytes(b"")
    with pytest.raises(CannotRunHere, match="cannot make the directory"):
        await NodeMachines(planned(directory=str(scratch / "file" / "n"))).up()


async def test_down_where_nothing_is_does_nothing(scratch: Path) -> None:
    await NodeMachines(planned(directory=str(scratch / "n"))).down()
    assert list(scratch.iterdir()) == []
    await NodeMachines(planned(directory=str(scratch))).down()
    assert list(scratch.iterdir()) == []
