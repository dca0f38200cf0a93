"""The Debian package on a host with systemd: installed, used, broken, upgraded, removed.

All tests share one container, in the order of this file; each leaves a running node.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.pages import BACKUP, Command, steps
from tests.hosts.container import Container
from tests.hosts.package import raise_version
from tests.waiting import wait_until

pytestmark = pytest.mark.vm

UNITS = ("trivisor.service", "trivisor-voter.service")
USERS = ("trivisor", "trivisor-voter")
URL = "http://127.0.0.1:8080/kv"
START_SECONDS = 300.0
"""Seconds to install, start or upgrade: 15 on a quiet machine."""


@pytest.fixture(scope="module")
def host(container_root: Path) -> Iterator[Container]:
    """Give a host without the package."""
    with Container(container_root) as host:
        yield host


@pytest.fixture(scope="module")
def node(host: Container, debian_package: Path) -> Container:
    """Give the host with the package installed, as the README says, and a value stored."""
    install(host, debian_package)
    put(host, "colour", "blue")
    return host


def install(host: Container, package: Path, *, check: bool = True) -> str:
    """Install a package with apt; return the output."""
    host.push(package, f"/root/{package.name}")
    command = ("apt-get", "install", "-y", f"/root/{package.name}")
    return host.run(*command, seconds=START_SECONDS, check=check).stdout


def put(host: Container, key: str, value: str) -> None:
    """Write a value through the vote."""
    output = host.run("curl", "-sS", "-i", "-X", "PUT", "--data", value, f"{URL}/{key}").stdout
    assert output.startswith("HTTP/1.1 20"), output
    assert "Trivisor-Vote: " in output


def get(host: Container, key: str) -> str:
    """Read a value through the vote."""
    return host.run("curl", "-sS", "--fail-with-body", f"{URL}/{key}").stdout


def show(host: Container, unit: str, name: str) -> str:
    """Return a property of a unit."""
    return host.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def processes(host: Container) -> str:
    """Return the processes of the package's users."""
    listed = host.run("ps", "-e", "-o", "user:20,pid,args").stdout.splitlines()
    return "\n".join(line for line in listed if line.split()[0] in USERS)


def await_end(host: Container) -> None:
    """Wait until no process and no socket of the node is left; systemd closes the sockets last."""
    units = ("systemctl", "list-units", "--plain", "--no-legend", "--state=active")
    left = ""

    def ended() -> bool:
        nonlocal left
        left = processes(host) + host.run(*units, "trivisor*.socket", "trivisor-voter*").stdout
        return left == ""

    try:
        wait_until(ended)
    except AssertionError as error:
        raise AssertionError(f"left running: {left}") from error


def await_votes(host: Container, number: int = 3) -> None:
    """Wait until so many guests vote."""

    def votes() -> bool:
        done = host.run("trivisor", "status", "--json", check=False)
        if done.returncode != 0:
            return False
        states = [guest["state"] for guest in json.loads(done.stdout)["guests"]]
        return states.count("active") == number

    wait_until(votes, f"{number} guests vote", seconds=START_SECONDS)


class Written(NamedTuple):
    """What a writer recorded: acknowledged writes, failed attempts, writes with such attempts."""

    acknowledged: int
    failed: int
    hit: int


@contextlib.contextmanager
def writing(host: Container) -> Iterator[list[Written]]:
    """Write keys all the time; afterwards the list holds what was written, and all is read back."""
    host.push(Path(__file__).with_name("writer.py"), "/root/writer.py")
    unit = ("systemd-run", "--quiet", "--unit=writer", "--collect")
    name = secrets.token_hex(4)
    host.run("rm", "-f", "/root/written")
    host.run(*unit, "python3", "/root/writer.py", "/root/written", name)
    found: list[Written] = []
    try:
        _await_lines(host, 20)
        yield found
        _await_lines(host, 20)
    finally:
        host.run("systemctl", "stop", "writer", check=False)
    lines = [json.loads(line) for line in host.run("cat", "/root/written").stdout.splitlines()]
    good = [number for number, _, status in lines if 200 <= status < 300]
    failed = [number for number, _, status in lines if not 200 <= status < 300]
    found.append(Written(acknowledged=len(good), failed=len(failed), hit=len(set(failed))))
    script = (
        f"for i in $(seq 0 {good[-1]}); do "
        f'[ "$(curl -sS {URL}/{name}$i)" = "value $i" ] || echo "$i is lost"; done'
    )
    assert host.run("bash", "-c", script).stdout == ""


def _await_lines(host: Container, more: int) -> None:
    """Wait until so many further requests were answered well."""
    script = "grep -c ', 20[0-9]\\]$' /root/written || true"

    def count() -> int:
        return int(host.run("bash", "-c", script).stdout.split()[-1])

    wait_until(lambda: not host.run("test", "-e", "/root/written", check=False).returncode)
    wanted = count() + more
    wait_until(lambda: count() >= wanted, "requests are answered", seconds=START_SECONDS)


# ---- before the package is there ----------------------------------------------------------------


def test_another_python_is_named_by_apt(host: Container, debian_package: Path) -> None:
    host.push(debian_package, "/root/other.deb")
    other = "sed -i '/^Package: python3$/,/^$/s/^Version: .*/Version: 3.13.5-1/'"
    host.run("bash", "-c", f"cp /var/lib/dpkg/status /root/; {other} /var/lib/dpkg/status")
    try:
        done = host.run("apt-get", "install", "-y", "/root/other.deb", check=False)
    finally:
        host.run("cp", "/root/status", "/var/lib/dpkg/status")
    assert done.returncode != 0
    assert "python3 (< 3.12) but 3.13.5-1" in done.stdout
    assert host.run("id", "trivisor", check=False).returncode != 0


def test_full_disk_during_installation_leaves_a_package_that_can_be_installed_again(
    host: Container, debian_package: Path
) -> None:
    host.run("mkdir", "-p", "/usr/lib/trivisor")
    host.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/usr/lib/trivisor")
    try:
        output = install(host, debian_package, check=False)
    finally:
        host.run("umount", "/usr/lib/trivisor")
    assert "No space left on device" in output
    assert processes(host) == ""
    assert host.run("systemctl", "cat", "trivisor", check=False).returncode != 0
    # The next test installs it.


@pytest.mark.readme
def test_three_commands_of_the_readme_lead_to_a_voted_request_under_systemd(
    node: Container,
) -> None:
    done = node.run("curl", "-i", "-X", "PUT", "--data", "blue", f"{URL}/colour")
    assert "HTTP/1.1 20" in done.stdout
    assert "Trivisor-Vote: " in done.stdout
    assert node.run("systemctl", "is-enabled", "trivisor").stdout == "enabled\n"
    for unit in UNITS:
        assert node.run("systemctl", "is-active", unit).stdout == "active\n"
    users = set(node.run("ps", "-e", "-o", "user:20,comm").stdout.split())
    assert set(USERS) <= users
    await_votes(node)
    assert node.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


# ---- stop and start, deaths, reboot -------------------------------------------------------------


def test_dashboard_is_served_under_systemd_and_cockpit_has_its_page(node: Container) -> None:
    link = json.loads(node.run("trivisor", "dashboard", "--json").stdout)["url"]
    assert link.startswith("http://127.0.0.1:8023/#")
    page = node.run("curl", "-sS", "--fail", link.partition("#")[0]).stdout
    assert "<title>Trivisor</title>" in page
    journal = node.run("journalctl", "--no-pager", "--output=cat").stdout
    assert link.partition("#")[2] not in journal
    assert "manifest.json" in node.run("ls", "/usr/share/cockpit/trivisor").stdout


def test_stop_leaves_no_process_and_a_restored_backup_has_every_write(node: Container) -> None:
    """By the commands of docs/howto/backup.md, without the start between backup and restore."""
    page = [step.text for step in steps(BACKUP) if isinstance(step, Command)]
    words = [text.removeprefix("sudo ").split() for text in page if text.startswith("sudo ")]
    stop, pack, start, _, remove, unpack, _ = words
    put(node, "before", "stop")
    node.run(*stop, seconds=START_SECONDS)
    await_end(node)
    for command in (pack, remove, unpack, ["rm", "trivisor-backup.tgz"]):
        node.run(*command)
    node.run(*start, seconds=START_SECONDS)
    assert get(node, "before") == "stop"
    assert get(node, "colour") == "blue"


def test_killed_voter_supervisor_and_guest_are_masked_and_repaired(node: Container) -> None:
    with writing(node) as written:
        for unit in UNITS:
            old = show(node, unit, "MainPID")
            node.run("kill", "-9", old)
            _await_lines(node, 20)
            await_votes(node)
            assert show(node, unit, "MainPID") not in (old, "0")
        old = node.run("pgrep", "-o", "qemu-system").stdout.strip()
        node.run("kill", "-9", old)
        wait_until(lambda: f" {old} " not in processes(node))
        _await_lines(node, 20)
        wait_until(
            lambda: processes(node).count("qemu-system-x86_64 -name") == 3,
            "the guest is back",
            seconds=START_SECONDS,
        )
        await_votes(node)
    assert written[0].acknowledged >= 80


def test_reboot_and_power_cut_lose_nothing_and_the_node_starts_by_itself(node: Container) -> None:
    put(node, "reboot", "clean")
    node.reboot()
    await_votes(node)
    assert get(node, "reboot") == "clean"
    put(node, "reboot", "cut")
    node.cut_power()
    await_votes(node)
    assert get(node, "reboot") == "cut"
    assert get(node, "colour") == "blue"


# ---- upgrade ------------------------------------------------------------------------------------


def test_upgrade_under_load_loses_no_acknowledged_write_and_keeps_the_configuration(
    node: Container, debian_package: Path, scratch: Path
) -> None:
    node.run("sed", "-i", "$ a memory = 144", "/etc/trivisor/node.toml")
    newer = raise_version(debian_package, "99.0", scratch / "tree")
    with writing(node) as written:
        install(node, newer)
        await_votes(node)
    # The writer repeats a write until it is acknowledged: one interruption hits one write, or two
    # if the reply of the first got lost.
    assert written[0].failed > 0
    assert written[0].hit <= 2
    assert node.run("tail", "-n", "1", "/etc/trivisor/node.toml").stdout == "memory = 144\n"
    installed = node.run("dpkg-query", "-W", "-f", "${Version} ${Status}", "trivisor").stdout
    assert installed == "99.0 install ok installed"
    assert get(node, "colour") == "blue"


# ---- wrong configuration ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("guests = 12", ("node.toml", "guests")),
        ("guest = 3", ("node.toml", "guest", "did you mean 'guests'")),
        ('vote = "2/5"', ("node.toml", "vote")),
        ("memory = [", ("node.toml",)),
    ],
)
def test_wrong_configuration_is_named_and_nothing_is_left_half_started(
    node: Container, line: str, names: tuple[str, ...]
) -> None:
    node.run("systemctl", "stop", "trivisor", seconds=START_SECONDS)
    node.run("cp", "/etc/trivisor/node.toml", "/root/node.toml")
    node.run("sed", "-i", f"$ a {line}", "/etc/trivisor/node.toml")
    try:
        log = fail_to_start(node)
    finally:
        node.run("cp", "/root/node.toml", "/etc/trivisor/node.toml")
    for name in names:
        assert name in log


def test_taken_port_is_named(node: Container) -> None:
    node.run("systemctl", "stop", "trivisor", seconds=START_SECONDS)
    with listening(node):
        log = fail_to_start(node)
    assert "127.0.0.1:8080" in log
    assert "Address already in use" in log
    node.run("systemctl", "start", "trivisor", seconds=START_SECONDS)
    assert get(node, "colour") == "blue"


def fail_to_start(host: Container) -> str:
    """Start the node, which must fail and leave nothing running; return what was logged."""
    since = host.run("date", "+%F %T").stdout.strip()
    done = host.run("systemctl", "start", "trivisor", check=False, seconds=START_SECONDS)
    assert done.returncode != 0
    assert "canceled" not in done.stdout  # it is to say that something failed, and where to look
    await_end(host)
    return host.run("journalctl", "-q", "-o", "cat", "--since", since, "-u", "trivisor*").stdout


@contextlib.contextmanager
def listening(host: Container) -> Iterator[None]:
    """Have another program listen on the node's port."""
    unit = ("systemd-run", "--quiet", "--unit=taker", "--collect")
    host.run(*unit, "python3", "-m", "http.server", "--bind", "127.0.0.1", "8080")
    wait_until(lambda: ":8080" in host.run("ss", "-Hltn").stdout)
    try:
        yield
    finally:
        host.run("systemctl", "stop", "taker")


# ---- removal ------------------------------------------------------------------------------------


def test_remove_keeps_the_state_and_purge_removes_everything(
    node: Container, debian_package: Path
) -> None:
    node.run("apt-get", "remove", "-y", "trivisor", seconds=START_SECONDS)
    await_end(node)
    assert node.run("test", "-e", "/lib/systemd/system/trivisor.service", check=False).returncode
    install(node, debian_package)
    assert get(node, "colour") == "blue"
    node.run("apt-get", "purge", "-y", "trivisor", seconds=START_SECONDS)
    await_end(node)
    left = node.run("find", "/", "-xdev", "-name", "*trivisor*", "-not", "-path", "/root/*",
                    "-not", "-path", "/proc/*", "-not", "-path", "/var/log/*").stdout  # fmt: skip
    assert left == ""
    for user in USERS:
        assert node.run("getent", "passwd", user, check=False).returncode != 0
        assert node.run("getent", "group", user, check=False).returncode != 0
    assert "trivisor" not in node.run("systemctl", "list-unit-files").stdout
    assert node.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""
