"""Messages to the service manager that started this process (the protocol of sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import MutableMapping

from voter import log
from voter.errors import InheritedError

__all__ = ["Notifier"]


class Notifier:
    """Sends messages to the service manager; without one it does nothing.

    ``address`` is a path, or @ and an abstract name.  ``interval`` is the longest time in seconds
    between two signs of life that the manager accepts; None: it expects none.
    """

    def __init__(self, address: str = "", interval: float | None = None) -> None:
        self.address = address
        self.interval = interval

    @classmethod
    def of_this_process(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Return the notifier that NOTIFY_SOCKET and WATCHDOG_USEC describe, and remove these.

        So no child of this process can send messages in its name.  Raises AddressError if a value
        cannot be used.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        if address and not address.startswith(("/", "@")):
            raise InheritedError(f"NOTIFY_SOCKET is {address!r}: it must be a path or @NAME")
        for variable, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
            if not re.fullmatch("[0-9]{0,18}", value, re.ASCII):
                raise InheritedError(f"{variable} is {value!r}, which is not a whole number")
        watched = int(microseconds or 0) > 0 and int(pid or os.getpid()) == os.getpid()
        return cls(address, int(microseconds) / 1e6 if watched else None)

    def send(self, *lines: str) -> None:
        """Send one message of these lines, as "READY=1".  A failure is logged."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # a service manager that hangs must not stop the vote
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning(
                "cannot notify the service manager",
                error_code="TV0228",
                message=lines[0],
                reason=str(error),
            )

    def begin_watchdog(self) -> None:
        """Send a sign of life now and at each half of the interval, from the running event loop.

        A loop that hangs sends none, and the service manager restarts the process.
        """
        if self.address and self.interval is not None:
            self.send("WATCHDOG=1")
            asyncio.get_running_loop().call_later(self.interval / 2, self.begin_watchdog)
