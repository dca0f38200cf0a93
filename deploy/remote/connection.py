"""An SSH connection to a host that Trivisor is deployed to.

The host key must be known: in the files of known hosts, or the connection is not made.  The user
authenticates by key, from the agent or from files.  ~/.ssh/config is respected for HostName, Port,
User, IdentityFile, IdentitiesOnly and UserKnownHostsFile; a host that is reached by
ProxyJump or ProxyCommand is rejected.

A connection without an answer for ``SILENCE`` seconds is broken.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import logging
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from deploy.errors import DeployError
from deploy.host.install import require_libraries
from deploy.machine.ssh import CommandResult

if TYPE_CHECKING:
    from paramiko import Channel, PKey, SSHClient, SSHConfigDict

__all__ = [
    "ConnectionLost",
    "RemoteHost",
    "SshTarget",
    "fingerprint",
    "parse_target",
]

CONNECT_TIMEOUT = 15.0
"""Seconds for the TCP connection, and for each step of the SSH handshake."""
SILENCE = 30
"""Seconds without an acknowledgement of what was sent, after which the connection is broken."""
SETTLE = 300.0
"""Seconds for the host to compute the checksum of an uploaded file and to write it to the disk."""
_KEEPALIVE = 5  # seconds; something must be sent for a dead connection to be noticed
_LARGEST = 16 << 20  # bytes of output of one command; more is an error
_CHUNK = 1 << 16  # bytes sent or received at once


class ConnectionLost(DeployError):
    """The connection broke after it was made: what ran on the host may still run."""

    error_code = "TV0756"


class SshTarget(NamedTuple):
    """Where to connect.  ``user`` None, ``port`` 0: those of ~/.ssh/config, or the default."""

    user: str | None
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


def parse_target(text: str) -> SshTarget:
    """Return the target of ``[USER@]HOST[:PORT]``; an IPv6 address is in brackets.

    Raises ValueError; its message shows the right form.
    """
    user, at, place = text.rpartition("@")
    example = "write USER@HOST or USER@HOST:PORT, for example root@192.0.2.7:22"
    host, port = place, ""
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: {example}, or root@[2001:db8::7]:22")
        port = rest[1:] if rest else ""
        if rest == ":":
            raise ValueError(f"{text!r}: there is no port after the colon; {example}")
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
        if not port:
            raise ValueError(f"{text!r}: there is no port after the colon; {example}")
    elif ":" in place:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as root@[{place}]:22")
    if (at and not user) or not host or host.startswith("-") or user.startswith("-"):
        raise ValueError(f"{text!r}: {example}")
    if not text.isprintable() or any(each.isspace() for each in text) or "/" in text:
        raise ValueError(f"{text!r}: {example}")
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535; {example}")
    return SshTarget(user or None, host, int(port or 0))


class _Unknown(Exception):
    """The host key is not in the files of known hosts."""

    def __init__(self, key: PKey) -> None:
        super().__init__()
        self.key = key


class _Options(NamedTuple):
    """How to reach a host, by the command line and ~/.ssh/config."""

    user: str
    host: str
    port: int
    known_hosts: list[Path]
    identities: list[str]
    only_identities: bool


class RemoteHost:
    """A connection to a host, as one user.  Use it as a context, or call ``close``."""

    def __init__(self, client: SSHClient, options: _Options) -> None:
        self._client = client
        self._options = options

    @classmethod
    def connect(
        cls, target: SshTarget, *, identities: list[Path], known_hosts: Path | None
    ) -> RemoteHost:
        """Connect and authenticate.  Raises CannotRunHere without paramiko, DeployError.

        ``known_hosts`` takes the place of the usual files.
        """
        require_libraries("paramiko", purpose="deployments by SSH")
        import paramiko  # noqa: PLC0415 - slow to load

        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # the caller gets the error
        options = _options(target, identities, known_hosts)
        client = paramiko.SSHClient()
        with contextlib.ExitStack() as undo:
            undo.callback(client.close)
            _load_known_hosts(client, options)
            _authenticate(client, options)
            transport = client.get_transport()
            assert transport is not None
            transport.set_keepalive(_KEEPALIVE)
            undo.pop_all()
        return cls(client, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def user(self) -> str:
        """The user on the host."""
        return self._options.user

    @property
    def address(self) -> str:
        """The host, with its port."""
        return _place(self._options)

    def run(self, command: str, *, stdin: bytes = b"", timeout: float) -> CommandResult:
        """Run a command with `sh` and wait for its end.

        ``timeout`` in seconds.  Raises ConnectionLost, also if the command does not end in time.
        """
        output = bytearray()
        with self._session(command) as channel:
            channel.settimeout(timeout)
            if stdin:
                channel.sendall(stdin)
            channel.shutdown_write()
            status = _receive(channel, output.extend, timeout)
        return CommandResult(status, output.decode(errors="replace"))

    def follow(self, command: str, line: Callable[[str], object], *, stdin: bytes = b"") -> int:
        """Run a command that may take long; call ``line`` with each line of its output.

        Return its exit status.  Raises ConnectionLost.
        """
        rest = bytearray()

        def more(data: bytes) -> None:
            rest.extend(data)
            while (end := rest.find(b"\n")) >= 0:
                text = rest[:end].decode(errors="replace")
                del rest[: end + 1]
                line(text)

        with self._session(command) as channel:
            channel.settimeout(SILENCE)
            if stdin:
                channel.sendall(stdin)
            channel.shutdown_write()
            status = _receive(channel, more, None)
        if rest:
            line(rest.decode(errors="replace"))
        return status

    def upload(
        self, file: Path, command: str, progress: Callable[[int], object] = lambda _: None
    ) -> CommandResult:
        """Run a command with a file as its standard input; call ``progress`` with the bytes sent.

        Raises ConnectionLost, OSError if the file cannot be read.
        """
        output = bytearray()
        sent = 0
        with self._session(command) as channel, file.open("rb") as source:
            channel.settimeout(SILENCE)
            while chunk := source.read(_CHUNK):
                if channel.exit_status_ready():
                    break  # it has ended before it read everything
                channel.sendall(chunk)
                sent += len(chunk)
                progress(sent)
            channel.shutdown_write()
            status = _receive(channel, output.extend, SETTLE)
        return CommandResult(status, output.decode(errors="replace"))

    @contextlib.contextmanager
    def _session(self, command: str) -> Iterator[Channel]:
        """Start a command; raise ConnectionLost in place of paramiko's and the socket's errors."""
        import paramiko  # noqa: PLC0415 - slow to load

        transport = self._client.get_transport()
        try:
            if transport is None:
                raise EOFError("it was closed")
            with contextlib.closing(transport.open_session(timeout=SILENCE)) as channel:
                channel.set_combine_stderr(True)
                channel.exec_command(f"exec sh -c {shlex.quote(command)}")
                yield channel
        except (paramiko.SSHException, OSError, EOFError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a local file's
            closed = transport is None or not transport.is_active()
            why = "it was closed" if closed else str(error) or type(error).__name__
            raise ConnectionLost(
                f"the connection to {self.address} broke: {why}",
                remedy="run the same command again",
            ) from error


def _receive(channel: Channel, output: Callable[[bytes], object], timeout: float | None) -> int:
    """Pass on a command's output until it ends; return its exit status.

    ``timeout``: seconds without output.  Raises EOFError, OSError.
    """
    total = 0
    channel.settimeout(timeout)
    while data := channel.recv(_CHUNK):
        output(data)
        total += len(data)
        if total > _LARGEST:
            raise OSError(f"a command printed more than {_LARGEST} bytes")
    if not channel.status_event.wait(SILENCE):  # it may arrive after the end of the output
        raise EOFError("a command ended without an exit status")
    status = channel.recv_exit_status()
    if status < 0:
        raise EOFError("a command ended without an exit status")
    return status


# ---- how a connection is made


def _place(options: _Options) -> str:
    """Return host and port in the form of a file of known hosts."""
    return options.host if options.port == 22 else f"[{options.host}]:{options.port}"


def _options(target: SshTarget, identities: list[Path], known_hosts: Path | None) -> _Options:
    """Combine the command line with ~/.ssh/config.  Raises DeployError."""
    config = _read_config(target.host)
    for name in ("proxyjump", "proxycommand"):
        if config.get(name, "none") != "none":
            raise DeployError(
                f"~/.ssh/config reaches {target.host} by {name}, which is not supported",
                remedy="forward a port to it (ssh -L 2222:localhost:22 ...), and deploy to "
                "USER@localhost:2222",
                error_code="TV0755",
            )
    user = target.user or config.get("user") or getpass.getuser()
    host = config.get("hostname", target.host)
    files = config.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2").split()
    if known_hosts is not None:
        known = [known_hosts]
    else:
        known = [*(Path(each).expanduser() for each in files), Path("/etc/ssh/ssh_known_hosts")]
    return _Options(
        user=user,
        host=host,
        port=target.port or int(config.get("port", "22")),
        known_hosts=known,
        identities=[str(each) for each in identities]
        or [each for each in config.get("identityfile", []) if Path(each).is_file()],
        only_identities=bool(identities) or config.get("identitiesonly") == "yes",
    )


def _read_config(host: str) -> SSHConfigDict:
    """Return a host's part of ~/.ssh/config and /etc/ssh/ssh_config.  Raises DeployError."""
    import paramiko  # noqa: PLC0415 - slow to load

    config = paramiko.SSHConfig()
    for file in (Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")):
        try:
            with file.open(encoding="utf-8") as lines:
                config.parse(lines)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, paramiko.SSHException) as error:
            raise DeployError(f"{file} cannot be read: {error}", error_code="TV0755") from error
    try:
        return config.lookup(host)
    except (ImportError, OSError, paramiko.SSHException) as error:
        raise DeployError(
            f"~/.ssh/config has a directive for {host} that is not supported here: {error}",
            remedy="give user, host, port and --identity on the command line, and set HOME to an "
            "empty directory",
            error_code="TV0755",
        ) from error


def _load_known_hosts(client: SSHClient, options: _Options) -> None:
    """Give the client the known host keys; a damaged line makes none known.  Raises DeployError."""
    import paramiko  # noqa: PLC0415 - slow to load
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey  # noqa: PLC0415 - slow to load

    known = client.get_host_keys()
    for file in options.known_hosts:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DeployError(
                f"the known hosts in {file} cannot be read: {error.strerror}",
                remedy="correct its permissions, or name another file with --known-hosts",
                error_code="TV0755",
            ) from error
        for line in lines:
            try:
                # Markers (@revoked, @cert-authority) make no host known.
                entry = None if line[:1] in "#@" else HostKeyEntry.from_line(" ".join(line.split()))
            except (InvalidHostKey, paramiko.SSHException, ValueError, IndexError):
                continue
            if entry is not None and entry.key is not None:
                for name in entry.hostnames or []:
                    known.add(name, entry.key.get_name(), entry.key)


def _revoked(options: _Options) -> set[str]:
    """Return the keys (base64) that the files of known hosts mark as revoked."""
    found = set()
    for file in options.known_hosts:
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_text(errors="replace").splitlines():
                fields = line.split()
                if fields[:1] == ["@revoked"] and len(fields) > 3:
                    found.add(fields[3])
    return found


def fingerprint(key: PKey) -> str:
    """Return a key's fingerprint as OpenSSH prints it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _authenticate(client: SSHClient, options: _Options) -> None:
    """Connect the client.  Raises DeployError with a remedy."""
    import paramiko  # noqa: PLC0415 - slow to load

    class Strict(paramiko.MissingHostKeyPolicy):
        """Rejects hosts that are not known."""

        def missing_host_key(self, _client: SSHClient, _name: str, key: PKey) -> None:
            raise _Unknown(key)

    client.set_missing_host_key_policy(Strict())
    passphrase: str | None = None
    while True:
        try:
            client.connect(
                options.host,
                port=options.port,
                username=options.user,
                key_filename=cast("str", options.identities),  # a list is right
                allow_agent=not options.only_identities,
                look_for_keys=not options.identities,
                passphrase=passphrase,
                sock=_dial(options),
                banner_timeout=CONNECT_TIMEOUT,
                auth_timeout=2 * CONNECT_TIMEOUT,
                channel_timeout=SILENCE,
            )
        except _Unknown as error:
            raise _unknown(options, error.key) from None
        except paramiko.BadHostKeyException as error:
            raise _changed(options, error.key, error.expected_key) from None
        except paramiko.PasswordRequiredException as error:
            if passphrase is not None or not sys.stdin.isatty():
                raise _rejected(options, str(error)) from error
            passphrase = getpass.getpass("Passphrase of the SSH key: ")
            continue
        except paramiko.AuthenticationException as error:
            raise _rejected(options, str(error)) from error
        except (paramiko.SSHException, OSError, EOFError, ValueError) as error:
            if "authentication methods" in str(error):
                raise _rejected(options, "no key was found") from error
            raise DeployError(
                f"no SSH connection to {options.user}@{_place(options)}: "
                f"{str(error) or type(error).__name__}",
                remedy=f"check `ssh -p {options.port} {options.user}@{options.host}`",
                error_code="TV0750",
            ) from error
        transport = client.get_transport()
        assert transport is not None
        key = transport.get_remote_server_key()
        if key.get_base64() in _revoked(options):
            raise DeployError(
                f"the host key of {_place(options)} ({fingerprint(key)}) is marked as revoked",
                remedy="the host needs another key",
                error_code="TV0753",
            )
        return


def _dial(options: _Options) -> socket.socket:
    """Connect to the host's SSH port.  Raises DeployError."""
    try:
        connection = socket.create_connection((options.host, options.port), CONNECT_TIMEOUT)
    except (socket.gaierror, UnicodeError) as error:
        raise DeployError(
            f"the name {options.host!r} cannot be resolved: {getattr(error, 'strerror', error)}",
            remedy="check its spelling and this machine's DNS, or give the host's IP address",
            error_code="TV0750",
        ) from error
    except OSError as error:
        why = error.strerror or f"no answer within {CONNECT_TIMEOUT:g} s"
        raise DeployError(
            f"{options.host} port {options.port} cannot be reached: {why}",
            remedy="check that the host is up, that an SSH server listens on this port, and that "
            "no firewall is in between",
            error_code="TV0750",
        ) from error
    # Otherwise a connection that is cut without a message lives for a quarter of an hour.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE * 1000)
    return connection


def _unknown(options: _Options, key: PKey) -> DeployError:
    short = key.get_name().removeprefix("ssh-").partition("-")[0]
    return DeployError(
        f"the host key of {_place(options)} is not known: {key.get_name()} "
        f"{fingerprint(key)} (looked in {', '.join(map(str, options.known_hosts))})",
        remedy=f"compare it, on the host, with `ssh-keygen -lf /etc/ssh/ssh_host_{short}_key.pub`; "
        f"if it is the same, accept it: {_scan(options, short)}",
        error_code="TV0751",
    )


def _changed(options: _Options, key: PKey, expected: PKey) -> DeployError:
    short = key.get_name().removeprefix("ssh-").partition("-")[0]
    place = shlex.quote(_place(options))
    file = shlex.quote(str(options.known_hosts[0]))
    return DeployError(
        f"the host key of {_place(options)} has CHANGED: it is {key.get_name()} "
        f"{fingerprint(key)}, known is {expected.get_name()} {fingerprint(expected)}; the host was "
        "installed anew, or someone intercepts the connection",
        remedy=f"compare it, on the host, with `ssh-keygen -lf /etc/ssh/ssh_host_{short}_key.pub`; "
        f"if it is the same, replace it: `ssh-keygen -R {place} -f {file}`, "
        f"then {_scan(options, short)}",
        error_code="TV0752",
    )


def _scan(options: _Options, kind: str) -> str:
    file = shlex.quote(str(options.known_hosts[0]))
    port = f"-p {options.port} " if options.port != 22 else ""
    return f"`ssh-keyscan {port}-t {kind} {shlex.quote(options.host)} >> {file}`"


def _rejected(options: _Options, why: str) -> DeployError:
    port = f"-p {options.port} " if options.port != 22 else ""
    return DeployError(
        f"{_place(options)} accepts no key of this user for {options.user!r}: {why}",
        remedy=f"install one: `ssh-copy-id {port}{options.user}@{options.host}`; or name its file "
        "with --identity, or start an ssh-agent (keys only: passwords are not supported)",
        error_code="TV0754",
    )
