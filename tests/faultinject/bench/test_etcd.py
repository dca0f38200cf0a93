"""etcd as a peer: what is read out of its answers, and where it is installed, a cluster of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.bench import etcd
from faultinject.bench.grpc import encode_bytes
from faultinject.bench.rig import ChildProcesses
from faultinject.load import pipelined


def header(member: int, revision: int) -> bytes:
    return encode_bytes(1, b"\x08\x01\x10%c\x18%c" % (member, revision))


def test_the_leader_names_itself_as_leader() -> None:
    assert etcd.is_leader(header(7, 1) + b"\x20\x07")
    assert not etcd.is_leader(header(7, 1) + b"\x20\x05")
    assert not etcd.is_leader(b"")
    assert not etcd.is_leader(header(0, 1) + b"\x20\x00")  # no leader yet


def test_the_revision_is_the_headers() -> None:
    assert etcd.revision(header(7, 100)) == 100
    with pytest.raises(ValueError, match="no revision"):
        etcd.revision(b"")


@pytest.mark.vm
async def test_each_put_is_one_revision_of_a_cluster_of_three(scratch: Path) -> None:
    program = etcd.program()
    if program is None:
        pytest.skip("etcd is not installed (apt-get install etcd-server)")
    children = ChildProcesses()
    try:
        cluster = await etcd.start_cluster(children, scratch, program)
        assert len(cluster.pids) == 3
        writers = await etcd.Writers.open(cluster.leader, 3, [b"a", b"b"], b"value")
        first = etcd.revision(await writers.start())
        assert await pipelined(writers.start, 200, 16) > 0
        assert etcd.revision(await writers.start()) - first == 201 == writers.started - 1
        writers.close()
        assert {path.name for path in scratch.iterdir()} == {"m0", "m1", "m2"}
    finally:
        await children.stop()
