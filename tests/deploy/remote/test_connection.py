"""Connections to a host: targets, host keys, keys of users, errors."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from deploy.errors import DeployError
from deploy.remote.connection import (
    RemoteHost,
    SshTarget,
    fingerprint,
    parse_target,
)
from tests.deploy.remote.fake_host import FakeHost, new_key
from tests.errors import raises


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home directory without keys, and no agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


@pytest.fixture
def host(home: Path) -> Iterator[FakeHost]:
    """Give a server that knows our key, ~/.ssh/id_ed25519, and echoes."""
    key = new_key(home / ".ssh/id_ed25519")
    with FakeHost(new_key(home / "host_key"), key, lambda _, given: (3, given.decode())) as found:
        yield found


def connect(host: FakeHost, known: Path | None = None, *identities: Path) -> RemoteHost:
    target = SshTarget("admin", "127.0.0.1", host.port)
    return RemoteHost.connect(target, identities=list(identities), known_hosts=known)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("root@host", ("root", "host", 0)),
        ("root@host:2222", ("root", "host", 2222)),
        ("root@[2001:db8::7]", ("root", "2001:db8::7", 0)),
        ("root@[::1]:22", ("root", "::1", 22)),
        ("host", (None, "host", 0)),
        ("a@b@host", ("a@b", "host", 0)),
    ],
)
def test_target_is_read(text: str, expected: tuple[str | None, str, int]) -> None:
    assert parse_target(text) == expected
    assert str(parse_target(text)) == text


@pytest.mark.parametrize(
    "text", ["", "@host", "root@", "root@:22", "root@host:", "root@host:0", "root@host:65536",
             "root@host:x", "root@::1", "root@[::1", "root@[::1]22", "root@[::1]:", "-x", "a@-x",
             "-a@x", "root@h ost", "root@h/x", "root@h\n", "root@host:२२"],
)  # fmt: skip
def test_wrong_target_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="root@"):
        parse_target(text)


def test_command_gets_its_input_and_returns_status_and_output(host: FakeHost, home: Path) -> None:
    with connect(host, host.known(home / "known")) as remote:
        assert remote.run("anything", stdin=b"x" * 300_000, timeout=60) == (3, "x" * 300_000)
        lines: list[str] = []
        assert remote.follow("anything", lines.append, stdin=b"one\ntwo\nthree") == 3
        assert lines == ["one", "two", "three"]
        (home / "file").write_bytes(b"y" * 200_000)
        sent: list[int] = []
        assert remote.upload(home / "file", "anything", sent.append).out == "y" * 200_000
        assert sent[-1] == 200_000


def test_command_runs_with_sh_whatever_the_login_shell(host: FakeHost, home: Path) -> None:
    with connect(host, host.known(home / "known")) as remote:
        remote.run("echo 'it is'; $HOME", timeout=60)
    done = subprocess.run(["sh", "-n", "-c", host.commands[0]], check=False)
    assert done.returncode == 0 and host.commands[0].startswith("exec sh -c ")


def test_unknown_host_key_is_rejected_with_its_fingerprint_and_how_to_accept_it(
    host: FakeHost, home: Path
) -> None:
    with pytest.raises(DeployError) as caught:
        connect(host)
    key = paramiko.Ed25519Key.from_private_key_file(str(home / "host_key"))
    assert fingerprint(key) in caught.value.problem
    assert caught.value.error_code == "TV0751"
    known = home / ".ssh/known_hosts"
    assert f"ssh-keyscan -p {host.port} -t ed25519 127.0.0.1 >> {known}" in caught.value.remedy
    assert host.commands == []
    host.known(known)
    connect(host).close()


def test_fingerprint_is_the_one_that_openssh_prints(home: Path) -> None:
    key = new_key(home / "key")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(home / "key")], capture_output=True, text=True, check=True
    )
    assert fingerprint(key) in shown.stdout


def test_changed_host_key_is_rejected_with_both_fingerprints(host: FakeHost, home: Path) -> None:
    other = new_key(home / "other")
    known = home / "known"
    known.write_text(f"[127.0.0.1]:{host.port} ssh-ed25519 {other.get_base64()}\n")
    with pytest.raises(DeployError, match="CHANGED") as caught:
        connect(host, known)
    assert fingerprint(other) in caught.value.problem
    assert "ssh-keygen -R" in caught.value.remedy and str(known) in caught.value.remedy
    assert host.commands == []


def test_revoked_host_key_is_rejected(host: FakeHost, home: Path) -> None:
    known = host.known(home / "known")
    line = known.read_text()
    known.write_text(f"{line}@revoked * {line.split(' ', 1)[1]}")
    with raises("TV0753", match="revoked"):
        connect(host, known)


def test_hashed_known_hosts_are_understood(host: FakeHost, home: Path) -> None:
    known = host.known(home / "known")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    connect(host, known).close()


def test_damaged_known_hosts_do_not_make_a_key_known(host: FakeHost, home: Path) -> None:
    known = host.known(home / "known")
    known.write_text(known.read_text()[:-9] + "\n@@ nonsense\n\0\n")
    with raises("TV0752"):
        connect(host, known)


def test_user_without_an_accepted_key_is_told_how_to_install_one(
    host: FakeHost, home: Path
) -> None:
    known = host.known(home / "known")
    other = home / "other"
    new_key(other)
    (home / ".ssh/id_ed25519").unlink()
    for identities in ((), (other,)):
        with pytest.raises(DeployError, match="'admin'") as caught:
            connect(host, known, *identities)
        assert "ssh-copy-id" in caught.value.remedy
    assert host.commands == []


def test_encrypted_key_without_a_terminal_is_an_error(host: FakeHost, home: Path) -> None:
    key = home / ".ssh/id_ed25519"
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key)], check=True, capture_output=True
    )
    with raises("TV0754", match="accepts no key"):
        connect(host, host.known(home / "known"))


def test_ssh_configuration_gives_host_port_user_key_and_known_hosts(
    host: FakeHost, home: Path
) -> None:
    (home / ".ssh/id_ed25519").rename(home / "key")
    host.known(home / "known")
    (home / ".ssh/config").write_text(
        f"Host there\n HostName 127.0.0.1\n Port {host.port}\n User admin\n"
        f" IdentityFile {home}/key\n IdentityFile {home}/missing\n"
        f" UserKnownHostsFile {home}/known\n"
    )
    with RemoteHost.connect(parse_target("there"), identities=[], known_hosts=None) as remote:
        assert (remote.user, remote.address) == ("admin", f"[127.0.0.1]:{host.port}")
    with RemoteHost.connect(parse_target("x@there"), identities=[], known_hosts=None) as remote:
        assert remote.user == "x"


@pytest.mark.parametrize("line", ["ProxyJump other", "ProxyCommand nc %h %p"])
def test_host_behind_a_proxy_is_rejected_by_name(line: str, home: Path) -> None:
    (home / ".ssh/config").write_text(f"Host there\n {line}\n")
    with pytest.raises(DeployError, match=line.split(maxsplit=1)[0].lower()) as caught:
        RemoteHost.connect(parse_target("there"), identities=[], known_hosts=None)
    assert "ssh -L" in caught.value.remedy


@pytest.mark.parametrize("text", ["Host\n", "Host a\n Port\n", "\xff\n", 'Host "a\n'])
def test_damaged_ssh_configuration_is_an_error_that_names_it(text: str, home: Path) -> None:
    (home / ".ssh/config").write_text(text, encoding="latin-1")
    with raises("TV0755", match=r"config|127"):
        RemoteHost.connect(
            SshTarget("a", "127.0.0.1", 1), identities=[], known_hosts=home / "known"
        )


def test_unreachable_host_and_unknown_name_are_errors_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DeployError, match="refused") as refused:
        RemoteHost.connect(SshTarget("a", "127.0.0.1", port), identities=[], known_hosts=None)
    assert refused.value.remedy
    with pytest.raises(DeployError, match=r"no-such-host\.invalid") as unknown:
        RemoteHost.connect(
            SshTarget("a", "no-such-host.invalid", 22), identities=[], known_hosts=None
        )
    assert "DNS" in unknown.value.remedy


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_server_that_speaks_no_ssh_is_an_error(
    greeting: bytes, in_thread: Callable[[Callable[[], object]], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        in_thread(serve)
        target = SshTarget("a", "127.0.0.1", server.getsockname()[1])
        with raises("TV0750", match="no SSH connection"):
            RemoteHost.connect(target, identities=[], known_hosts=None)


def test_connection_that_breaks_during_a_command_is_lost(home: Path) -> None:
    key = new_key(home / ".ssh/id_ed25519")

    def answer(command: str, given: bytes) -> tuple[int, str]:
        for transport in found._transports:
            transport.close()
        return 0, "too late"

    with (
        FakeHost(new_key(home / "host_key"), key, answer) as found,
        connect(found, found.known(home / "known")) as remote,
    ):
        for _ in range(2):
            with raises("TV0756"):
                remote.run("anything", timeout=60)
