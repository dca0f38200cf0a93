"""What every test shares: hypothesis profiles, short directories, a watch for QEMUs left behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

# Tests run the sources themselves, unless TRIVISOR_PURE=0 asks for the compiled modules.
os.environ.setdefault("TRIVISOR_PURE", "1")

from tests.hosts.container import Container, cached_root
from tests.hosts.package import build_package
from tests.project.tree import ROOT

__all__ = ["SCRATCH_PREFIX", "left_qemus", "scratch", "shared_scratch"]

# Every scratch directory of this test run begins with this, and of no other run: other test runs,
# and nodes that the user of this machine has started, are none of ours. Short, because a unix
# socket's path ends at 107 bytes.
SCRATCH_PREFIX = f"/tmp/tv-{os.getpid()}-"

# Seconds for a test that does not set its own limit.  They end a test that hangs: a busy machine
# may need many times what a quiet one does, and still passes.
VM_TIMEOUT = 900
LONG_TIMEOUT = 3600

# `ci` looks for new counterexamples at each run and prints how to repeat one. No deadline: on two
# shared cores the time that one example takes says nothing.
settings.register_profile(
    "ci", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", parent=settings.get_profile("ci"), max_examples=30)
settings.register_profile("thorough", parent=settings.get_profile("ci"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Give a new empty directory, its path short enough for unix sockets; removed afterwards."""
    path = _new_scratch()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _new_scratch() -> Path:
    """Make a directory that guests with users of their own can pass through."""
    path = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    path.chmod(0o711)
    return path


@pytest.fixture(scope="session")
def shared_scratch() -> Iterator[Path]:
    """Give one such directory for the whole test run, for guests that tests share."""
    path = _new_scratch()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def container_root() -> Path:
    """Give the root directory of `Container`: Debian 12 with systemd, made once and cached."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    return cached_root()


@pytest.fixture
def container(container_root: Path) -> Iterator[Container]:
    """Give a new Debian 12 host with systemd, booted."""
    with Container(container_root) as host:
        yield host


@pytest.fixture(scope="session")
def debian_package(shared_scratch: Path) -> Path:
    """Give the path of this checkout's Debian package, built once; the wheel is next to it."""
    return build_package(ROOT, shared_scratch / "dist")


def pytest_configure() -> None:
    """Have SIGTERM and SIGHUP end a run as Ctrl-C does: fixtures stop what they have started."""
    mine = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == mine:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a fork of this process: it ends at once
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not with nohup
            signal.signal(number, interrupt)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests on real guests, and long ones, more time than the default."""
    for item in items:
        readme, vm = item.get_closest_marker("readme"), item.get_closest_marker("vm")
        if readme is not None and vm is None:
            raise pytest.UsageError(f"{item.nodeid} is marked readme but not vm")
        if item.get_closest_marker("timeout") is None:
            if item.get_closest_marker("long") is not None:
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT))
            elif item.get_closest_marker("vm") is not None:
                item.add_marker(pytest.mark.timeout(VM_TIMEOUT))


def left_qemus(prefix: str = SCRATCH_PREFIX) -> dict[int, str]:
    """Return pid and command line of each living QEMU that names a path below `prefix`."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended just now
        if b"qemu-system" in words[0] and any(prefix.encode() in word for word in words):
            found[int(entry.name)] = b" ".join(words).decode(errors="replace").strip()
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if a test left a QEMU running; after the last fixture has been torn down."""
    left = left_qemus()
    if not left:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.section("QEMUs left running by these tests", red=True)
        for pid, line in left.items():
            reporter.line(f"{pid} {line[:300]}")
    if exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
