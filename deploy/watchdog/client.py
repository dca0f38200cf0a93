"""The supervisor's connection to its watchdog (``deploy.watchdog.process``)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping

import structlog

from deploy.host.identity import ProcessIdentity, identify
from deploy.watchdog.process import CHANNEL
from voter.sockets import inherited

__all__ = ["WatchdogClient"]

_log = structlog.get_logger(__name__)


class WatchdogClient:
    """Sends messages to the watchdog; without one (any more) it does nothing."""

    def __init__(
        self,
        channel: socket.socket | None = None,
        *,
        restarts: int = 0,
        ended: str = "",
    ) -> None:
        self._channel = channel
        self.restarts = restarts
        """How many times the supervisor was restarted."""
        self.ended = ended
        """How the previous supervisor ended, as text; empty for the first."""
        self.sockets: dict[str, socket.socket] = {}
        """Listening sockets that a former supervisor left; VoterProcessManager takes them over."""
        self.process: ProcessIdentity | None = None
        """The watchdog's process."""
        if channel is not None:
            channel.setblocking(False)
            self.process = identify(os.getppid())

    @classmethod
    def of_this_process(cls) -> WatchdogClient:
        """Return the client for what the watchdog passed to this process (LISTEN_FDS).

        Removes it from the environment, so that children do not see it.
        """
        passed = dict(inherited(os.environ))
        for sock in passed.values():
            sock.set_inheritable(False)
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        restarts = os.environ.pop("TRIVISOR_RESTARTS", "0")
        ended = os.environ.pop("TRIVISOR_ENDED", "")
        channel = passed.pop(CHANNEL, None)
        client = cls(channel, restarts=int(restarts), ended=ended)
        client.sockets = passed
        return client

    def watch(self, ended: Callable[[], None]) -> None:
        """Call ``ended`` when the watchdog ends.  Needs a running event loop."""
        if self._channel is not None:
            asyncio.get_running_loop().add_reader(self._channel, self._on_end, ended)

    def _on_end(self, ended: Callable[[], None]) -> None:
        _log.error("the watchdog ended", error_code="TV0732")
        self.close()
        ended()

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            with contextlib.suppress(RuntimeError):  # without a running loop nothing is watched
                asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
            self.process = None

    def keep(self, sockets: Mapping[str, socket.socket]) -> None:
        """Have the watchdog keep duplicates of these listening sockets, and no others."""
        self._send(f"keep {' '.join(sockets)}", [sock.fileno() for sock in sockets.values()])

    def drop(self) -> None:
        """Have the watchdog close the sockets it keeps."""
        self._send("drop")

    def up(self) -> None:
        """Have the watchdog restart this supervisor if it ends without a request to."""
        self._send("up")

    def down(self) -> None:
        """Have the watchdog restart nothing and close its sockets."""
        self._send("down")

    def _send(self, message: str, fds: list[int] | None = None) -> None:
        if self._channel is None:
            return
        try:
            socket.send_fds(self._channel, [message.encode()], fds or [])
        except OSError as error:  # `watch` reports its end
            _log.error(
                "the watchdog accepts no message",
                message=message,
                reason=str(error),
                error_code="TV0732",
            )
