"""The voter's unit under a real systemd, without guests: sockets, watchdog, users, sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts.container import Container

pytestmark = pytest.mark.vm

VOTER = "trivisor-voter.service"
# The voter and its sockets run while a unit needs them; trivisor.service would boot guests.
NEEDS = """
[Unit]
Requires=trivisor-http.socket trivisor-native.socket trivisor-control.socket
Requires=trivisor-prepare.service
Wants=trivisor-voter.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""
CONNECT = """
import os, pwd, socket, sys
user = pwd.getpwnam(sys.argv[1])
os.initgroups(user.pw_name, user.pw_gid)
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
for path in sys.argv[2:]:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except PermissionError:
            continue
    print(path)
"""


@pytest.fixture(scope="module")
def host(container_root: Path, debian_package: Path) -> Iterator[Container]:
    """Give a host with the package, whose node does not start."""
    with Container(container_root) as host:
        never = b"#!/bin/sh\nexit 101\n"  # packages start no service
        host.run("install", "/dev/stdin", "/usr/sbin/policy-rc.d", stdin=never)
        host.push(debian_package, f"/root/{debian_package.name}")
        host.run("apt-get", "install", "-y", f"/root/{debian_package.name}")
        host.run("install", "/dev/stdin", "/etc/systemd/system/needs.service", stdin=NEEDS.encode())
        yield host


def show(host: Container, name: str) -> str:
    return host.run("systemctl", "show", "--value", f"--property={name}", VOTER).stdout.strip()


def journal(host: Container) -> str:
    return host.run("journalctl", "-q", "-o", "cat", "-u", VOTER).stdout


def until(host: Container, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, journal(host)
        time.sleep(0.2)


def status_at(host: Container, address: str) -> str:
    """Return the HTTP status of a request, which waits until the voter serves."""
    words = ("curl", "-sS", "-g", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60")
    return host.run(*words, f"http://{address}/kv/x", check=False).stdout


@pytest.fixture
def with_sockets(host: Container) -> Iterator[Callable[[str], None]]:
    """Give a function that starts the voter, with more lines in the HTTP socket's unit."""
    extra = "/etc/systemd/system/trivisor-http.socket.d/extra.conf"

    def start(lines: str) -> None:
        host.run("install", "-D", "/dev/stdin", extra, stdin=f"[Socket]\n{lines}\n".encode())
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", "needs")

    yield start
    host.run("systemctl", "stop", "needs")
    host.run("rm", extra)
    host.run("systemctl", "daemon-reload")
    until(host, lambda: show(host, "ActiveState") in ("inactive", "failed"))
    host.run("systemctl", "reset-failed")


def test_sockets_of_one_name_are_all_served_and_close_when_nothing_needs_them(
    host: Container, with_sockets: Callable[[str], None]
) -> None:
    with_sockets("ListenStream=127.0.0.1:8081\nListenStream=[::1]:8082")
    for address in ("127.0.0.1:8080", "127.0.0.1:8081", "[::1]:8082"):
        assert status_at(host, address) == "503"  # no guest votes
    host.run("systemctl", "stop", "needs")
    until(host, lambda: ":808" not in host.run("ss", "-Hltn").stdout)
    until(host, lambda: show(host, "ActiveState") == "inactive")


@pytest.mark.parametrize(
    ("lines", "name"),
    [("FileDescriptorName=htp", "htp"), ("FileDescriptorName=", "trivisor-http.socket")],
)
def test_socket_of_another_or_no_name_is_rejected_by_name_and_not_tried_again(
    host: Container, with_sockets: Callable[[str], None], lines: str, name: str
) -> None:
    with_sockets(lines)
    until(host, lambda: f"inherited socket '{name}'" in journal(host))
    until(host, lambda: show(host, "ActiveState") == "failed")
    assert show(host, "ExecMainStatus") == "2"
    assert show(host, "NRestarts") == "0"


def test_voter_that_hangs_is_restarted_and_no_client_is_refused(
    host: Container, with_sockets: Callable[[str], None]
) -> None:
    with_sockets("Backlog=100")
    assert status_at(host, "127.0.0.1:8080") == "503"
    hung = show(host, "MainPID")
    host.run("kill", "-STOP", hung)
    assert status_at(host, "127.0.0.1:8080") in ("503", "000")  # 000: it was read by the hung one
    until(host, lambda: show(host, "MainPID") not in (hung, "0"))
    assert status_at(host, "127.0.0.1:8080") == "503"


def test_voter_has_no_capability_no_network_and_a_journal_of_its_own(
    host: Container, with_sockets: Callable[[str], None]
) -> None:
    with_sockets("Backlog=100")
    assert status_at(host, "127.0.0.1:8080") == "503"
    pid = show(host, "MainPID")
    status = host.run("cat", f"/proc/{pid}/status").stdout.split()
    assert status[status.index("CapEff:") + 1] == status[status.index("CapBnd:") + 1] == "0" * 16
    assert status[status.index("NoNewPrivs:") + 1] == "1"
    assert host.run("ps", "-o", "user:20,ni", "--no-headers", pid).stdout.split() == [
        "trivisor-voter",
        "-5",
    ]
    network = [host.run("readlink", f"/proc/{each}/ns/net").stdout for each in (pid, "1")]
    assert network[0] != network[1]
    kept = host.run("stat", "-c", "%U %a", "/var/lib/trivisor-voter", "/var/lib/trivisor").stdout
    assert kept.splitlines() == ["trivisor-voter 700", "trivisor 2710"]


def test_each_socket_admits_only_the_users_that_need_it(
    host: Container, with_sockets: Callable[[str], None]
) -> None:
    with_sockets("Backlog=100")
    host.run("usermod", "-a", "-G", "trivisor", "operator")
    control, native = "/run/trivisor/control.sock", "/run/trivisor/native.sock"
    for user, allowed in (
        ("trivisor", [control, native]),
        ("operator", [control, native]),
        ("trivisor-voter", [native]),
        ("guest", [native]),
    ):
        words = ("python3", "-c", CONNECT, user, control, native)
        assert host.run(*words).stdout.splitlines() == allowed
    for user, code in (("operator", 1), ("guest", 1)):
        done = host.run("test", "-x", "/var/lib/trivisor", user=user, check=False)
        assert done.returncode == code
