"""What a supervisor has of its nanny (``deploy.watchdog.watchdog``), and tells it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping

import structlog

from deploy.host.identity import ProcessIdentity, identify
from deploy.watchdog.watchdog import CHANNEL
from voter.sockets import inherited

__all__ = ["WatchdogClient"]

_log = structlog.get_logger(__name__)


class WatchdogClient:
    """The way to the nanny; where there is none (or none any more), telling it does nothing."""

    def __init__(
        self,
        channel: socket.socket | None = None,
        *,
        restarts: int = 0,
        ended: str = "",
    ) -> None:
        self._channel = channel
        self.restarts = restarts
        """How often the supervisor was started again."""
        self.ended = ended
        """How the one before ended, in words; empty for the first."""
        self.sockets: dict[str, socket.socket] = {}
        """Listening sockets that a former supervisor gave the nanny; taken once, by the voter's
        host."""
        self.nanny: ProcessIdentity | None = None
        """The nanny's process."""
        if channel is not None:
            channel.setblocking(False)
            self.nanny = identify(os.getppid())

    @classmethod
    def of_this_process(cls) -> WatchdogClient:
        """Take what the nanny handed to this process (LISTEN_FDS); children do not see it."""
        handed = inherited(os.environ)
        for sock in handed.values():
            sock.set_inheritable(False)
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        restarts = os.environ.pop("TRIVISOR_RESTARTS", "0")
        ended = os.environ.pop("TRIVISOR_ENDED", "")
        channel = handed.pop(CHANNEL, None)
        nursery = cls(channel, restarts=int(restarts), ended=ended)
        nursery.sockets = handed
        return nursery

    def watch(self, gone: Callable[[], None]) -> None:
        """Have ``gone`` called when the nanny ends.  Called in a running event loop."""
        if self._channel is not None:
            asyncio.get_running_loop().add_reader(self._channel, self._ended, gone)

    def _ended(self, gone: Callable[[], None]) -> None:
        _log.error("the nanny ended: nobody starts this supervisor again")
        self.close()
        gone()

    def close(self) -> None:
        """Watch no more, and say nothing more."""
        if self._channel is not None:
            with contextlib.suppress(RuntimeError):  # no loop runs (any more): nothing to remove
                asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
            self.nanny = None

    def keep(self, sockets: Mapping[str, socket.socket]) -> None:
        """Have the nanny keep duplicates of these listening sockets, in place of any before."""
        self._tell(f"keep {' '.join(sockets)}", [sock.fileno() for sock in sockets.values()])

    def drop(self) -> None:
        """Have the nanny close the sockets it keeps."""
        self._tell("drop")

    def up(self) -> None:
        """Have this supervisor started again if it ends unasked."""
        self._tell("up")

    def down(self) -> None:
        """Have nothing started again; the nanny's sockets are closed too."""
        self._tell("down")

    def _tell(self, message: str, fds: list[int] | None = None) -> None:
        if self._channel is None:
            return
        try:
            socket.send_fds(self._channel, [message.encode()], fds or [])
        except OSError as error:  # it has ended, or stands still: its end is told by `watch`
            _log.error("the nanny takes no message", message=message, reason=str(error))
