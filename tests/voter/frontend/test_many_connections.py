"""Thousands of idle keep-alive connections, hundreds of slow readers: they delay no request.

The voter is a process of its own, as the client here is, so that what one holds is not counted as
the other's.
"""

from __future__ import annotations

import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.voter.node import EXEC_KV

ROOT = Path(__file__).parents[3]
REQUEST = b"GET /kv/a HTTP/1.1\r\nHost: test\r\nUser-Agent: test/1.0\r\nAccept: */*\r\n\r\n"
MOST_BYTES = 12 << 10
"""Memory of the voter that an idle connection may take; 8 to 9 KB were measured."""
PATIENCE = 30.0


@pytest.fixture
def voter(scratch: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Give a voter daemon before three local processes, and its HTTP port."""
    config, log = scratch / "voter.toml", scratch / "log"
    replicas = "".join(f'[[replica]]\nname = "g{n}"\nlink = "{EXEC_KV}"\n' for n in (1, 2, 3))
    config.write_text(f'vote = "2/3"\n[listen]\nhttp = "127.0.0.1:0"\n{replicas}')
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "voter", "--config", str(config)], cwd=ROOT, stderr=errors
        )
    try:
        yield process, wait_until_ready(process, log)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that the voter listens on, once all its replicas vote."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        if found := re.search(r'"listening".*"127.0.0.1", ?(\d+)', log.read_text()):
            port = int(found[1])
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n")
                if connection.recv(1 << 16).endswith(b"\r\n\r\nready\n"):
                    return port
        time.sleep(0.05)


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that a process has resident."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def answered(connection: socket.socket) -> bool:
    """Whether a whole response is there (its replies are small: they come in one piece)."""
    return b"Trivisor-Vote: " in connection.recv(1 << 16)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Allow this process as many descriptors as it may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def middle(connection: socket.socket) -> float:
    """The median of the seconds that a hundred requests take."""
    times = []
    for _ in range(100):
        started = time.perf_counter()
        connection.sendall(REQUEST)
        assert answered(connection)
        times.append(time.perf_counter() - started)
    return sorted(times)[50]


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_idle_connections_are_held(
    voter: tuple[subprocess.Popen[bytes], int],
    count: int,
) -> None:
    process, port = voter
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < count * 10 // 9 + 100:
        pytest.skip(f"this system allows too few descriptors for {count} connections")
    with ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))

        busy = connect()
        for _ in range(300):  # what comes once is not counted to the connections
            busy.sendall(REQUEST)
            assert answered(busy)
        alone = middle(busy)
        before = resident(process)
        idle = [connect() for _ in range(count)]
        for at in range(0, count, 500):
            some = idle[at : at + 500]
            for connection in some:
                connection.sendall(REQUEST)
            assert all(answered(connection) for connection in some)
        each = (resident(process) - before) / count
        print(f"{count} idle connections: {each:.0f} bytes each")
        assert each < MOST_BYTES
        assert middle(busy) < 10 * alone + 0.2, "those who are idle delay nobody"
        for connection in idle[:: count // 100]:
            connection.sendall(REQUEST)
            assert answered(connection), "a connection that was idle is as good as new"


def test_slow_readers_delay_nobody(voter: tuple[subprocess.Popen[bytes], int]) -> None:
    """Clients with a small window ask for more than the kernel takes, and hardly read it."""
    process, port = voter
    with ExitStack() as stack:

        def connect(window: int = 1 << 16) -> socket.socket:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            sock.settimeout(PATIENCE)
            sock.connect(("127.0.0.1", port))
            return sock

        busy = connect()
        put = b"PUT /kv/big HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n"
        busy.sendall(put + bytes(1_000_000))
        assert answered(busy)
        alone, before = middle(busy), resident(process)
        slow = [connect(1024) for _ in range(150)]
        for sock in slow:
            sock.sendall(b"GET /kv/big HTTP/1.1\r\nHost: test\r\n\r\n")
        for sock in slow:
            assert sock.recv(16).startswith(b"HTTP/1.1 200 "), "its reply is under way"
        assert middle(busy) < 10 * alone + 0.2
        assert resident(process) - before < 150 * 1_500_000, "a reply each, at most"
        for sock in slow:
            assert sock.recv(16), "it is served as fast as it reads"
