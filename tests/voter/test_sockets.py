"""Listening sockets: made here, or inherited."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.errors import raises
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
    with raises("TV0204", match="is not a socket"):
        listen_unix(str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["missing/s", "file/s", "x" * 120])
def test_impossible_socket_path_is_named(scratch: Path, name: str) -> None:
    (scratch / "file").write_text("")
    with pytest.raises(AddressError, match=name[:20]):
        listen_unix(str(scratch / name))


def test_all_that_the_configuration_names_are_made(scratch: Path) -> None:
    listen = Listen(http="127.0.0.1:0", native_unix=str(scratch / "n"), control=str(scratch / "c"))
    sockets, made = listening(listen, {})
    assert [path for path, _ in made] == [listen.native_unix, listen.control]
    assert [name for name, _ in sockets] == ["http", "native-unix", "control"]
    for _, sock in sockets:
        sock.close()


def test_sockets_are_closed_if_one_fails(scratch: Path) -> None:
    listen = Listen(http="127.0.0.1:0", control=str(scratch / "missing" / "c"))
    with pytest.raises(AddressError):
        listening(listen, {})  # a socket left open would be a ResourceWarning, which fails here


def test_sockets_of_another_process_are_not_taken() -> None:
    assert inherited({}) == []
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}) == []
    assert inherited({"LISTEN_FDS": "0"}) == []


@pytest.mark.parametrize("number", ["x", "-1", "", "1.0", "\u0663", "9" * 5000])
@pytest.mark.parametrize("variable", ["LISTEN_FDS", "LISTEN_PID"])
def test_malformed_number_is_named(variable: str, number: str) -> None:
    with raises("TV0205", match=variable):
        inherited({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"} | {variable: number})


@pytest.mark.parametrize("names", [None, "", "http", "http:", ":http", "http::", "a:b:c"])
def test_each_inherited_socket_needs_one_name(names: str | None) -> None:
    environment = {"LISTEN_FDS": "2"} | ({} if names is None else {"LISTEN_FDNAMES": names})
    with pytest.raises(AddressError, match="does not name 2 sockets"):
        inherited(environment)


def run_with(
    sockets: list[socket.socket], names: str, command: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run Python with these sockets as its descriptors 3, 4, ... and their names."""
    fds = [sock.fileno() for sock in sockets]
    start = (
        "import fcntl, os, sys\n"
        f"high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in {fds}]\n"
        "for at, fd in enumerate(high): os.dup2(fd, 3 + at)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    environment = os.environ | {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
    return subprocess.run(
        [sys.executable, "-c", start, *command], pass_fds=fds, cwd=ROOT, timeout=60,
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def refusal_of_voter(scratch: Path, sockets: list[socket.socket], names: str) -> str:
    """Return the only line that a voter with these sockets prints; it must exit with 2."""
    config = scratch / "voter.toml"
    config.write_text('vote = "1/1"\n[[replica]]\nname = "g1"\nlink = "unix:/nowhere"\n')
    done = run_with(sockets, names, ["-m", "voter", "--config", str(config)])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_unusable_inherited_socket_is_refused_by_its_name(scratch: Path) -> None:
    with (
        listen_tcp("127.0.0.1:0") as good,
        listen_unix(str(scratch / "s")) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as closed,
        socket.create_connection(good.getsockname()) as connected,
    ):
        for sock, name, word in (
            (good, "web", "serves only http, native, native-unix, control"),
            (good, "control", "AF_UNIX"),
            (good, "native-unix", "AF_UNIX"),
            (datagram, "http", "is not a stream socket that listens"),
            (closed, "http", "is not a stream socket that listens"),
            (connected, "native", "is not a stream socket that listens"),
        ):
            line = refusal_of_voter(scratch, [unix, sock], f"native-unix:{name}")
            assert f"'{name}'" in line
            assert word in line


def test_inherited_descriptor_that_is_no_socket_is_refused(scratch: Path) -> None:
    with (scratch / "file").open("w") as file:
        line = refusal_of_voter(scratch, [file], "http")  # type: ignore[list-item]
    assert "3 ('http') is not a socket" in line


def test_inherited_sockets_of_one_name_are_all_served(scratch: Path) -> None:
    """As systemd passes them, if one unit has two addresses."""
    script = (
        "import os\n"
        "from voter.config import Listen\n"
        "from voter.sockets import listening\n"
        "found = listening(Listen(), os.environ).sockets\n"
        "print([(name, sock.getsockname()[1]) for name, sock in found])\n"
    )
    with listen_tcp("127.0.0.1:0") as first, listen_tcp("127.0.0.1:0") as second:
        ports = [sock.getsockname()[1] for sock in (first, second)]
        done = run_with([first, second], "http:http", ["-c", script])
    assert done.stdout == f"{[('http', port) for port in ports]}\n", done.stderr


def test_inherited_sockets_come_before_the_configuration(scratch: Path) -> None:
    """In a process of its own, whose descriptor 3 is the socket."""
    script = (
        "import os\n"
        "from voter.config import Listen\n"
        "from voter.sockets import listening\n"
        "((name, sock),) = listening(Listen(http='127.0.0.1:1'), os.environ).sockets\n"
        "print(name, sock.getsockname()[1])\n"
    )
    with listen_tcp("127.0.0.1:0") as sock:
        port = sock.getsockname()[1]
        done = run_with([sock], "http", ["-c", script])
    assert done.stdout == f"http {port}\n", done.stderr
