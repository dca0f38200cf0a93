"""The commands' client for a supervisor's control socket: blocking HTTP over a unix socket.

Uses the standard library, because a command must start fast.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from deploy.errors import DeployError
from deploy.host.identity import wait_end
from deploy.node.records import Layout
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["NotUp", "Unanswered", "ask", "stream"]


class NotUp(DeployError):
    """No supervisor answers in this directory."""

    error_code = "TV0701"


class Unanswered(CommandError):
    """The supervisor runs and did not answer."""

    error_code = "TV0715"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("supervisor", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def _request(
    layout: Layout, method: str, path: str, body: dict[str, Any] | None, timeout: float | None
) -> Iterator[http.client.HTTPResponse]:
    """Send a request, yield its response, close the connection."""
    connection = _Connection(str(layout.supervisor_socket), timeout)
    try:
        connection.request(
            method, path, None if body is None else json.dumps(body, allow_nan=False)
        )
        yield connection.getresponse()
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise NotUp(
            f"no node runs in {layout.directory}",
            remedy=layout.start_hint,
        ) from error
    except PermissionError as error:
        raise CommandError(
            f"{layout.supervisor_socket} belongs to another user",
            remedy="run this as root, or as a member of the group trivisor"
            if layout.system
            else "run this as the user that ran `trivisor up`",
            error_code="TV0714",
        ) from error
    except TimeoutError as error:
        raise Unanswered(
            f"the supervisor in {layout.directory} did not answer within {timeout} s",
            remedy=f"see {layout.supervisor_log}",
        ) from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise Unanswered(
            f"the connection to the supervisor in {layout.directory} broke: {error}",
            remedy=f"see {layout.supervisor_log}",
        ) from error
    finally:
        connection.close()


def ask(
    layout: Layout,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    timeout: float = 30.0,
    patience: float = 5.0,
) -> dict[str, Any]:
    """Send a request to the supervisor; return its answer.  ``timeout`` is in seconds.

    If only its watchdog runs, waits up to ``patience`` seconds for the next supervisor.  Raises
    NotUp if there is none, CommandError with its message if it answers with an error.
    """
    _wait_for_supervisor(layout, patience)
    with _request(layout, method, path, body, timeout) as response:
        value = json.loads(response.read())
    if response.status >= 400:
        raise CommandError(
            value["error"],
            remedy=value.get("remedy", ""),
            code=ExitCode(value.get("code", 1)),
            error_code=value.get("error_code", ""),
        )
    return dict(value)


def _wait_for_supervisor(layout: Layout, patience: float) -> None:
    """Wait while only the watchdog runs, which may start the next supervisor."""
    deadline = time.monotonic() + patience
    while patience > 0 and not _listens(layout):
        from deploy.node.processes import find_processes  # noqa: PLC0415 - slow, rarely needed

        watchdogs = [each for each in find_processes(layout) if each.name == "watchdog"]
        left = deadline - time.monotonic()
        if not watchdogs or left <= 0:
            return
        # No event reports that the socket is served.
        wait_end(watchdogs[0].identity.pid, min(left, 0.05))


def _listens(layout: Layout) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(layout.supervisor_socket)) == 0


def stream(layout: Layout, path: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines that the supervisor sends, until it ends.  Raises NotUp."""
    with _request(layout, "GET", path, None, None) as response:
        while True:
            try:
                line = response.readline()
            except (http.client.HTTPException, ConnectionError):
                return  # it ended
            if not line:
                return
            yield json.loads(line)
