"""Control sockets by peer credentials: only root, the owner and a group that could connect."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from tests.other_user import CALL, OTHER, run_as
from tests.voter.conftest import Nodes
from tests.voter.test_control import call
from voter.sockets import Peer, Trusted, listen_unix, origin_of, peer_of


async def ask_as_other(path: Path, method: str, target: str, gid: int = OTHER) -> str:
    """Ask as another user; the event loop goes on."""
    return await asyncio.to_thread(run_as, CALL, path, method, target, gid=gid)


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/status"), ("POST", "/stop"), ("POST", "/replicas/g1/expel"), ("GET", "/metrics")],
)
async def test_another_user_is_refused_although_the_file_lets_everybody_in(
    nodes: Nodes, scratch: Path, method: str, target: str
) -> None:
    node = await nodes.make()
    for directory in (scratch, node.control_path.parent):
        directory.chmod(0o755)
    node.control_path.chmod(0o666)
    assert " 403 " in await ask_as_other(node.control_path, method, target)
    assert node.state("g1") == "active"
    assert (await call(node, "GET", "/status")).json["status"] == "ready"


async def test_group_of_the_file_may_use_it_and_others_may_not(scratch: Path) -> None:
    path = scratch / "s"
    with listen_unix(str(path)) as sock:
        assert Trusted.of(sock) == Trusted(frozenset({0, os.geteuid()}), None)
        path.chmod(0o660)
        trusted = Trusted.of(sock)
    gid = os.stat(scratch).st_gid if os.geteuid() else os.getegid()
    assert trusted.group in (gid, os.getegid())
    assert trusted.admits(Peer(1, OTHER, frozenset({OTHER, trusted.group or 0})))
    assert not trusted.admits(Peer(1, OTHER, frozenset({OTHER})))
    assert not Trusted(frozenset({0}), None).admits(Peer(1, OTHER, frozenset({OTHER})))


def test_peer_is_this_process(scratch: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert peer.groups == {os.getegid(), *os.getgroups()}
        assert origin_of(ours) == f"uid:{os.geteuid()}"


@pytest.mark.parametrize(
    ("family", "host", "origin"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::"),
    ],
)
def test_origin_is_an_address_or_a_network(
    family: socket.AddressFamily, host: str, origin: str
) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError as error:
            pytest.skip(f"no {host}: {error}")
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as client:
            accepted, _ = server.accept()
            with accepted:
                assert origin_of(accepted) == origin
            assert client.getpeername()[1] == server.getsockname()[1]
