"""Listening sockets: made here, or inherited."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from voter.config import Listen
from voter.errors import AddressError
from voter.sockets import inherited, listen_tcp, listen_unix, listening

ROOT = Path(__file__).resolve().parents[2]


def test_tcp_listens_on_a_free_port() -> None:
    with listen_tcp("127.0.0.1:0") as sock:
        port = sock.getsockname()[1]
        assert not sock.getblocking()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(AddressError, match=f"127.0.0.1:{port}: .*in use; choose another port"):
            listen_tcp(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["127.0.0.1", "no.such.host.invalid:80", "192.0.2.1:80", "x:y"])
def test_failed_listen_names_the_address(address: str) -> None:
    with pytest.raises(AddressError, match=address.replace(".", r"\.")):
        listen_tcp(address)


def test_a_unix_socket_is_its_owners_alone(scratch: Path) -> None:
    path = str(scratch / "s")
    with listen_unix(path) as sock:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert not sock.getblocking()
        with pytest.raises(AddressError, match="somebody already listens"):
            listen_unix(path)
    with listen_unix(path):  # what is left of one that has ended is replaced
        pass


def test_file_that_is_not_a_socket_is_kept(scratch: Path) -> None:
    path = scratch / "file"
    path.write_text("mine")
    with pytest.raises(AddressError, match="is not a socket"):
        listen_unix(str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["missing/s", "file/s", "x" * 120])
def test_impossible_socket_path_is_named(scratch: Path, name: str) -> None:
    (scratch / "file").write_text("")
    with pytest.raises(AddressError, match=name[:20]):
        listen_unix(str(scratch / name))


def test_all_that_the_configuration_names_are_made(scratch: Path) -> None:
    listen = Listen(http="127.0.0.1:0", native_unix=str(scratch / "n"), control=str(scratch / "c"))
    sockets = listening(listen, {})
    assert sorted(sockets) == ["control", "http", "native-unix"]
    for sock in sockets.values():
        sock.close()


def test_sockets_are_closed_if_one_fails(scratch: Path) -> None:
    listen = Listen(http="127.0.0.1:0", control=str(scratch / "missing" / "c"))
    with pytest.raises(AddressError):
        listening(listen, {})  # a socket left open would be a ResourceWarning, which fails here


def test_sockets_of_another_process_are_not_taken() -> None:
    assert inherited({}) == {}
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}) == {}


@pytest.mark.parametrize("count", ["x", "-1", ""])
def test_malformed_listen_fds_is_named(count: str) -> None:
    with pytest.raises(AddressError, match="LISTEN_FDS"):
        inherited({"LISTEN_FDS": count, "LISTEN_FDNAMES": "http"})


def test_inherited_sockets_come_before_the_configuration(scratch: Path) -> None:
    """In a process of its own, whose descriptor 3 is the socket."""
    script = (
        "import os, sys; os.dup2(FD, 3)\n"
        "from voter.config import Listen\n"
        "from voter.sockets import listening\n"
        "sockets = listening(Listen(http='127.0.0.1:1'), os.environ)\n"
        "print(sorted(sockets), sockets['http'].getsockname()[1])\n"
    )
    with listen_tcp("127.0.0.1:0") as sock:
        port = sock.getsockname()[1]
        environment = dict(os.environ, LISTEN_FDS="1", LISTEN_FDNAMES="http", PYTHONPATH=str(ROOT))
        environment.pop("LISTEN_PID", None)
        done = subprocess.run(
            [sys.executable, "-c", script.replace("FD", str(sock.fileno()), 1)],
            pass_fds=[sock.fileno()], env=environment, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert done.stdout == f"['http'] {port}\n", done.stderr
