"""An SSH server on the loopback that answers the commands of `trivisor deploy` from a script."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

__all__ = ["GOOD", "INSTALLED", "FakeHost", "facts_of", "new_key"]

GOOD: dict[str, list[str]] = {
    "user": ["admin"],
    "uid": ["1000"],
    "sudo": ["yes"],
    "pid1": ["systemd"],
    "systemd": ["running"],
    "os": ["debian 12"],
    "os_name": ["Debian GNU/Linux 12 (bookworm)"],
    "arch": ["amd64"],
    "apt": ["yes"],
    "python": ["3.11"],
    "memory_total": [str(8 << 20)],
    "memory_available": [str(4 << 20)],
    "disk": [f"/usr {50 << 20} /", f"/var/lib {50 << 20} /", f"/var/tmp {50 << 20} /"],
    "kvm": ["yes"],
    "cpu_virtualization": ["yes"],
    "virtual": ["none"],
    "listening": ["00000000:0016"],
    "package": [""],
    "state": ["0" * 64],
    "end": [""],
}
"""What the script prints on a host that has everything and knows nothing of Trivisor."""


def facts_of(changes: dict[str, list[str]] | None = None, **files: str) -> str:
    """Return the script's output on such a host with changes; no values: the line is missing.

    ``files``: `settings` and `dropin`, contents of these files on the host.
    """
    from deploy.remote.facts import DROPIN
    from deploy.remote.package import SETTINGS_FILE

    values = GOOD | (changes or {})
    names = {"settings": SETTINGS_FILE, "dropin": DROPIN}
    lines = [f"@{name} {value}" for name, each in values.items() for value in each]
    for name, text in files.items():
        lines.insert(0, f"@file {names[name]} {base64.b64encode(text.encode()).decode()}")
    return "\n".join(lines) + "\n"


INSTALLED = {"package": ["ii 0.1.0"], "node_state": ["active"], "socket_state": ["active"],
             "listen": ["127.0.0.1:8080 (Stream)"]}  # fmt: skip
"""What else it prints where the test package was deployed; `record` is missing."""


def new_key(file: Path) -> paramiko.Ed25519Key:
    """Write a new private key in OpenSSH's format; return it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    file.write_text(text)
    file.chmod(0o600)
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text))


class FakeHost(paramiko.ServerInterface):
    """The server.  ``answer(command, stdin)`` returns a command's status and output.

    ``allowed``: the public key that may log in; None: no key may.
    """

    def __init__(
        self,
        key: paramiko.PKey,
        allowed: paramiko.PKey | None,
        answer: Callable[[str, bytes], tuple[int, str]],
    ) -> None:
        self._key = key
        self._allowed = allowed
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.commands: list[str] = []
        self._transports: list[paramiko.Transport] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for transport in self._transports:
            transport.close()
        for thread in self._threads:
            thread.join(30)

    def known(self, file: Path) -> Path:
        """Write the known_hosts file for this server; return it."""
        place = f"[127.0.0.1]:{self.port}"
        file.write_text(f"{place} {self._key.get_name()} {self._key.get_base64()}\n")
        return file

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                transport = paramiko.Transport(connection)
                self._transports.append(transport)
                transport.add_server_key(self._key)
                transport.start_server(server=self)
            except (paramiko.SSHException, EOFError, OSError):
                continue  # the client does not like the key; it may reset the connection

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        right = self._allowed is not None and key.asbytes() == self._allowed.asbytes()
        return AUTH_SUCCESSFUL if right else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        thread = threading.Thread(target=self._execute, args=(channel, command.decode()))
        self._threads.append(thread)
        thread.start()
        return True

    def _execute(self, channel: paramiko.Channel, command: str) -> None:
        self.commands.append(command)
        given = bytearray()
        try:
            channel.settimeout(30)
            while data := channel.recv(1 << 16):
                given += data
            status, output = self._answer(command, bytes(given))
            channel.sendall(output.encode())
            channel.send_exit_status(status)
            channel.close()
        except (OSError, EOFError, paramiko.SSHException):
            pass  # the client has gone
