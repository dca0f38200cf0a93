"""``trivisor deploy`` to a Debian host with systemd and sshd, with a small package.

The package's node is one Python program.  So these tests show the transaction on the host: that it
ends completely or not at all, whatever breaks.
"""

from __future__ import annotations

import contextlib
import io
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import trivisor
from tests.deploy.remote.fake_package import build_package
from tests.hosts.container import PASSWORD, Container
from tests.project.tree import ROOT
from voter.commands.terminal import ExitCode

pytestmark = pytest.mark.vm

LOG = "/var/lib/trivisor-deploy/log"


class Host:
    """A container, the files to reach it, and packages."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.port = container.forward(22)
        self.known = container.path / "known_hosts"
        self.key_line = container.host_key()
        self.know(self.port)
        self.package = build_package(container.path / "trivisor_0.1.0_amd64.deb")
        # Without apt sources nothing is downloaded.
        container.run("sh", "-c", "rm -f /etc/apt/sources.list.d/*")

    def know(self, port: int) -> None:
        """Make the host's key known at a port of ours."""
        with self.known.open("a") as file:
            file.write(f"[127.0.0.1]:{port} {self.key_line}\n")

    def words(
        self, *words: str, package: Path | None = None, user: str = "admin", port: int = 0
    ) -> list[str]:
        """Return the arguments of a deploy."""
        found = [
            "deploy", f"{user}@127.0.0.1:{port or self.port}", "--identity",
            str(self.container.key), "--known-hosts", str(self.known),
        ]  # fmt: skip
        if "--remove" not in words:
            found += ["--package", str(package or self.package)]
        return [*found, *words]

    def deploy(
        self, *words: str, package: Path | None = None, user: str = "admin", port: int = 0,
        stdin: str = "",
    ) -> tuple[int, str]:  # fmt: skip
        """Run a deploy; return its exit code and what it printed."""
        output = io.StringIO()
        before, sys.stdin = sys.stdin, io.StringIO(stdin)
        try:
            with contextlib.redirect_stderr(output), pytest.raises(SystemExit) as caught:
                trivisor.main(self.words(*words, package=package, user=user, port=port))
        finally:
            sys.stdin = before
        assert isinstance(caught.value.code, int)
        return caught.value.code, output.getvalue()

    def start(self, *words: str, package: Path, port: int = 0) -> subprocess.Popen[bytes]:
        """Start a deploy as a process of its own."""
        with (self.container.path / "output").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "trivisor", *self.words(*words, package=package, port=port)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def shell(self, text: str) -> str:
        """Run a shell command as root on the host; return its output."""
        return self.container.run("sh", "-c", text, check=False).stdout

    def wait(self, text: str, expected: str = "", seconds: float = 120.0) -> None:
        """Wait until a shell command prints what is expected."""
        deadline = time.monotonic() + seconds
        while (found := self.shell(text)) != expected:
            assert time.monotonic() < deadline, f"{text} prints {found}"
            time.sleep(0.2)

    def idle(self) -> None:
        """Wait until no transaction runs."""
        self.wait("systemctl is-active -q trivisor-deploy.service && echo running")

    def state(self) -> str:
        """Return everything that a deployment may change on the host, but its own record."""
        return self.shell(
            "dpkg-query -W; dpkg --audit; find /etc/trivisor /etc/systemd/system /usr/lib/trivisor "
            "/lib/systemd/system/trivisor* /var/tmp/trivisor* /var/lib/trivisor-deploy/undo "
            "-printf '%p %m %u %l\\n' 2>/dev/null | sort; cat /etc/trivisor/* "
            "/etc/systemd/system/trivisor*/* 2>/dev/null; ss -Hltn | awk '{ print $4 }' | sort; "
            "systemctl is-active trivisor.service; systemctl --failed --no-legend"
        )

    def restore(self) -> None:
        """Remove Trivisor completely."""
        self.idle()
        code, output = self.deploy("--remove", "--purge", "--yes")
        assert code == ExitCode.OK, output


@pytest.fixture(scope="module")
def shared(container_root: Path) -> Iterator[Host]:
    with Container(container_root) as container:
        yield Host(container)


@pytest.fixture
def host(shared: Host) -> Iterator[Host]:
    """Give a host without Trivisor."""
    before = shared.state()
    yield shared
    shared.restore()
    assert shared.state() == before


def test_first_deploy_votes_second_changes_nothing_and_remove_keeps_the_settings(
    host: Host,
) -> None:
    own = ("--http", "0.0.0.0:8081", "--service", str(ROOT / "examples/counter.py"))
    # The three kinds of root: a password, none needed, root itself.
    code, output = host.deploy(*own, "--ask-sudo-password", user="operator", stdin=f"{PASSWORD}\n")
    assert code == ExitCode.OK, output
    assert "vote 2/3;" in output and PASSWORD not in output
    assert PASSWORD not in host.shell(f"cat {LOG}; cat /var/log/* 2>/dev/null; journalctl")
    assert "404" in host.shell("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8081/")
    state = host.state()
    assert "/etc/trivisor/services/counter.py 644 root" in state
    for user in ("admin", "root", "operator"):  # no password: there is nothing to do
        code, output = host.deploy(*own, user=user)
        assert code == ExitCode.OK and "nothing to change" in output
    assert host.state() == state
    assert host.deploy("--remove", "--yes")[0] == ExitCode.OK
    assert "counter.py" in host.shell("cat /etc/trivisor/node.toml")
    assert "trivisor-http" not in host.shell("ls /etc/systemd/system /lib/systemd/system")


@pytest.fixture
def bad(request: pytest.FixtureRequest, host: Host) -> Iterator[tuple[Path, str]]:
    """Give a package that fails somewhere, and what the error is to say."""
    kind, words = request.param
    file = host.container.path / "trivisor_0.2.0_amd64.deb"
    if kind == "full":
        build_package(file, version="0.2.0", weight=6 << 20)
        host.shell("mkdir -p /usr/lib/trivisor && mount -t tmpfs -o size=2m x /usr/lib/trivisor")
    elif kind == "dependency":
        build_package(file, version="0.2.0", depends="no-such-package")
    elif kind == "postinst":
        build_package(file, version="0.2.0", postinst="echo broken >&2; exit 1")
    else:
        build_package(file, version="0.2.0", start="/bin/sh -c 'echo why it fails; exit 3'")
    yield file, words
    host.shell("umount /usr/lib/trivisor; rmdir /usr/lib/trivisor")


@pytest.mark.parametrize(
    "bad",
    [
        ("full", "make room"),
        ("dependency", "no-such-package"),
        ("postinst", "broken"),
        ("start", "why it fails"),
    ],
    indirect=True,
)
def test_failed_deploy_leaves_the_host_as_it_was(host: Host, bad: tuple[Path, str]) -> None:
    package, words = bad
    before = host.state()
    code, output = host.deploy("--vote", "3/3", package=package)
    assert code == ExitCode.FAILED
    assert "all changes on the host were undone" in output, output
    assert words in output
    assert host.state() == before


def test_failed_upgrade_returns_to_the_former_package_which_serves_again(host: Host) -> None:
    assert host.deploy()[0] == ExitCode.OK
    before = host.state()
    bad = build_package(host.container.path / "bad.deb", version="0.2.0", start="/bin/false")
    code, output = host.deploy("--vote", "3/3", "--yes", package=bad)
    assert code == ExitCode.FAILED and "undone" in output
    assert host.state() == before
    assert "nothing to change" in host.deploy()[1]


# ---- connections that break


class Proxy:
    """A TCP proxy that cuts its connections, without a farewell, after so many bytes."""

    def __init__(self, port: int, limit: int) -> None:
        self._target, self._left = port, limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut = False
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._copy, args=(source, sink)))
                    self._threads[-1].start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 12):
                with self._lock:
                    self._left -= len(data)
                if self._left < 0:
                    self.cut = True
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                if self.cut:  # a reset, as of a router that has forgotten the connection
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):  # closed
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        for each in self._open:
            each.close()


def test_deploy_whose_connection_breaks_anywhere_is_finished_by_the_next(host: Host) -> None:
    """Cut at random points; each time the host ends in one of two states, without help."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    package = build_package(host.container.path / "heavy.deb", weight=150_000)
    before = host.state()
    # Bytes of a whole deploy: 40,000 before the upload, then the package, then the log.
    limits = [chance.randrange(start, stop) for start, stop in
              ((3_000, 40_000), (40_000, 200_000), (200_000, 245_000))]  # fmt: skip
    for limit in limits:
        proxy = Proxy(host.port, limit)
        host.know(proxy.port)
        try:
            code, output = host.deploy(package=package, port=proxy.port)
        finally:
            proxy.close()
        assert proxy.cut == (code != ExitCode.OK), (limit, output)
        host.idle()
        found = host.shell("dpkg-query -W -f '${db:Status-Abbrev}' trivisor; cat "
                           "/var/lib/trivisor-deploy/result 2>/dev/null")  # fmt: skip
        if "ii" in found:
            assert found == "ii ok\n"
        else:
            clean = host.state().replace("/var/tmp/trivisor-deploy", "")
            assert [line for line in clean.splitlines() if "var" not in line and line[:1] != "-"] \
                == before.splitlines()  # fmt: skip
        code, output = host.deploy(package=package)
        assert code == ExitCode.OK, (limit, output)
        host.restore()
        assert host.state() == before


# ---- at the same time, and interrupted


@pytest.fixture
def slow(host: Host) -> Iterator[Path]:
    """Give a package whose installation waits for the file /run/go, two minutes at most."""
    host.shell("rm -f /run/go /run/waits")
    wait = "touch /run/waits; for i in $(seq 600); do [ -e /run/go ] && break; sleep 0.2; done"
    yield build_package(host.container.path / "slow.deb", postinst=wait)
    host.shell("touch /run/go")


def test_deploy_during_another_is_rejected_and_ctrl_c_undoes_the_first(
    host: Host, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.state()
    with host.start(package=slow) as first:
        host.wait("ls /run/waits 2>/dev/null", "/run/waits\n")
        with monkeypatch.context() as patch:
            patch.setenv("LOGNAME", "eve")
            code, output = host.deploy(user="root")
        assert code == ExitCode.ALREADY_UP and "another deploy runs" in output
        first.send_signal(signal.SIGINT)
        host.wait("systemctl show -p ActiveState --value trivisor-deploy", "deactivating\n")
        host.shell("touch /run/go")
        assert first.wait(120) == ExitCode.INTERRUPTED
    assert host.state() == before


def test_next_deploy_follows_the_one_whose_connection_broke(host: Host, slow: Path) -> None:
    proxy = Proxy(host.port, 1 << 30)
    host.know(proxy.port)
    with host.start(package=slow, port=proxy.port) as first:
        host.wait("ls /run/waits 2>/dev/null", "/run/waits\n")
        proxy.close()
        assert first.wait(120) == ExitCode.FAILED
    assert "run the same command again" in (host.container.path / "output").read_text()
    timer = threading.Timer(2.0, lambda: host.shell("touch /run/go"))
    timer.start()
    code, output = host.deploy(package=slow)
    timer.join()
    assert code == ExitCode.OK, output
    assert "following the deploy that runs on the host" in output and "nothing to change" in output


def test_deploy_that_the_hosts_power_failure_ended_is_undone_by_the_next(
    host: Host, slow: Path
) -> None:
    with host.start(package=slow) as first:
        host.wait("ls /run/waits 2>/dev/null", "/run/waits\n")
        host.container.cut_power()
        first.wait(180)
    host.port = host.container.forward(22)
    host.know(host.port)
    code, output = host.deploy()
    assert code == ExitCode.OK, output
    assert "undoing it" in output and "vote 2/3;" in output


# ---- the real package


def test_first_deploy_of_the_real_package_serves_voted_requests_and_the_second_changes_nothing(
    container_root: Path, debian_package: Path
) -> None:
    with Container(container_root) as container:
        host = Host(container)
        before = host.state()
        code, output = host.deploy("--accel", "tcg", "--allow-faults", package=debian_package)
        assert code == ExitCode.OK, output
        assert "vote 2/3;" in output or "vote 3/3;" in output
        put = host.shell("curl -s -i -X PUT --data blue http://127.0.0.1:8080/kv/colour")
        assert "trivisor-vote: 2/3" in put.lower(), put
        state = host.state()
        code, output = host.deploy("--accel", "tcg", package=debian_package)
        assert code == ExitCode.OK and "nothing to change" in output, output
        assert host.state() == state
        code, output = host.deploy("--remove", "--yes")
        assert code == ExitCode.OK, output
        assert "/var/lib/trivisor-voter/" in host.shell("find /var/lib/trivisor-voter -type f")
        code, output = host.deploy("--http", "127.0.0.1:8081", package=debian_package)
        assert code == ExitCode.OK, output
        assert host.shell("curl -s http://127.0.0.1:8081/kv/colour") == "blue"  # nothing was lost
        code, output = host.deploy("--remove", "--purge", "--yes")
        assert code == ExitCode.OK, output
        assert host.state() == before


# ---- hosts that cannot be deployed to


def test_host_with_a_broken_dpkg_state_is_left_alone(host: Host) -> None:
    host.shell("touch /var/lib/dpkg/updates/0001")
    code, output = host.deploy()
    host.shell("rm /var/lib/dpkg/updates/0001")
    assert code == ExitCode.CANNOT_RUN_HERE and "dpkg --configure -a" in output


def test_held_apt_lock_is_waited_for_and_then_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.remote.plan.APT_LOCK_WAIT", 3)
    before = host.state()
    holder = (
        "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); "
        "fcntl.lockf(f, fcntl.LOCK_EX); open('/run/held', 'w'); time.sleep(600)"
    )
    host.shell(f'systemd-run --unit=holder /usr/bin/python3 -c "{holder}"')
    host.wait("ls /run/held 2>/dev/null", "/run/held\n")
    code, output = host.deploy()
    host.shell("systemctl stop holder")
    assert code == ExitCode.FAILED
    assert "Waiting for cache lock" in output and "another program on the host uses apt" in output
    assert host.state() == before


def test_port_in_use_is_named_with_its_program(host: Host) -> None:
    host.shell("systemd-run --unit=taken /usr/bin/python3 -m http.server --bind 0.0.0.0 8080")
    host.wait("ss -Hltn | grep -c :8080", "1\n")
    code, output = host.deploy()
    host.shell("systemctl stop taken")
    assert code == ExitCode.CANNOT_RUN_HERE
    assert "port 8080" in output and "by python3" in output


def test_host_without_systemd_is_named(host: Host) -> None:
    host.shell(
        "systemd-run --unit=other-sshd /usr/bin/unshare --pid --fork --kill-child --mount-proc "
        "/usr/sbin/sshd -D -p 2222"
    )
    host.wait("ss -Hltn | grep -c :2222", "2\n")
    port = host.container.forward(2222)
    host.know(port)
    code, output = host.deploy(port=port)
    host.shell("systemctl stop other-sshd")
    assert code == ExitCode.CANNOT_RUN_HERE
    assert "systemd: process 1 is sshd" in output


def test_unit_of_the_administrator_is_not_overwritten_without_consent(host: Host) -> None:
    unit = "/lib/systemd/system/trivisor.service"
    host.shell(f"printf '[Service]\\nExecStart=/bin/true\\n' > {unit}")
    with_it = host.state()
    code, output = host.deploy()
    assert code == ExitCode.USAGE and unit in output, output
    assert host.state() == with_it
    code, output = host.deploy("--yes")
    assert code == ExitCode.OK, output
