"""Socket paths that are too long are refused before anything starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy.errors import CannotRunHere, PathTooLong
from deploy.host.paths import SOCKET_PATH_LIMIT, check_socket_paths
from deploy.machine.node import NodeMachines
from deploy.machine.spec import socket_paths
from tests.deploy.machine.test_spec import planned


def test_the_limit_is_the_kernels(scratch: Path) -> None:
    longest = str(scratch / "s").ljust(SOCKET_PATH_LIMIT, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(longest)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(longest + "s")
    check_socket_paths([longest])
    with pytest.raises(PathTooLong) as caught:
        check_socket_paths([longest, longest + "sss"])
    assert caught.value.excess == 3
    assert "3 bytes too long" in str(caught.value)
    assert "--dir" in str(caught.value)
    assert isinstance(caught.value, CannotRunHere)


def test_bytes_count_not_letters() -> None:
    with pytest.raises(PathTooLong):
        check_socket_paths(["/" + "ä" * 60])


async def test_a_node_in_too_long_a_directory_starts_nothing(scratch: Path) -> None:
    directory = scratch / ("d" * 80)
    spec = planned(directory=str(directory))
    # It is libvirt's own socket that is the longest.
    assert max(socket_paths(spec), key=len).endswith("monitor.sock")
    with pytest.raises(PathTooLong, match=r"monitor\.sock"):
        await NodeMachines(spec).up()
    assert not directory.exists()
