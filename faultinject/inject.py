"""Carries out faults on a running node: the FaultPort that the supervisor is handed.

What each kind does, and how it is proved, stands in ``faults.CATALOGUE``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from deploy.child import Child
from deploy.errors import DeployError
from deploy.identity import Identity, identify
from deploy.logfile import LogFile
from deploy.ports import FaultSite
from deploy.supervisor_faults import FaultRefused
from faultinject.canary import Canary, flip_copies
from faultinject.faults import CATALOGUE, Layer, find
from voter.client import Client
from voter.errors import RequestError

__all__ = ["Injector"]

PROXY_START = 20.0
"""Seconds until a proxy that was started must serve."""
PROXY_GRACE = 2.0
CALL_TIMEOUT = 5.0
SLOW_STOPPED = 0.2
SLOW_RUNNING = 0.05
"""Seconds in which a slow guest is stopped, and runs, by turns: within the voter's patience, so
that it stays in the vote."""

ROOT = Path(__file__).resolve().parents[1]

_log = structlog.get_logger(__name__)


class InjectionFailed(DeployError):
    """A fault could not be applied, or not be proved applied."""


class Injector:
    """Faults on one node.  ``site`` is its supervisor."""

    def __init__(self, site: FaultSite) -> None:
        self._site = site
        self._proxy: Child | None = None
        self._slow: dict[str, asyncio.Task[None]] = {}
        self._log = LogFile(site.layout.proxy_log)

    def check(self, kind: str, guest: str) -> None:
        """Raise FaultRefused unless such a fault can be injected into this guest of this node."""
        try:
            fault = find(kind)
        except ValueError as error:
            raise FaultRefused(str(error)) from error
        if fault.layer is Layer.MEMORY and self._site.settings.service != "kv":
            raise FaultRefused(
                f"{kind} writes a canary key, which only the service kv takes "
                f"(this node runs {self._site.settings.service})",
                remedy="use corrupt-reply, or start a node with --service kv",
            )
        state = self._site.guests[guest].state
        if fault.layer is not Layer.LINK and state != "ready":
            raise FaultRefused(f"{guest} is {state}", remedy=f"`trivisor heal {guest}` first")

    def must_put_back(self, kind: str) -> bool:
        """Whether the guest must be put back after this fault, even while it still votes.

        A hung one is not let go before: it would greet the voter just to be cut off again.
        """
        return kind in ("crash", "hang", "corrupt-state")

    def link(self, guest: str) -> str:
        """Return the proxy's address for this guest."""
        return f"unix:{self._site.layout.proxy_link(guest)}"

    # --------------------------------------------------------------- proxy

    @property
    def processes(self) -> Mapping[str, Identity]:
        """The proxy, while it runs."""
        proxy = self._proxy
        return {"proxy": proxy.identity} if proxy is not None and proxy.running else {}

    async def start(self, before: Mapping[str, Identity]) -> None:
        """Go on with the proxy that runs, or start one.  Raises InjectionFailed."""
        if "proxy" in before:
            self._proxy = Child.adopt(before["proxy"])
        if self._proxy is None:
            await self._start_proxy()

    async def _start_proxy(self) -> None:
        words = [sys.executable, "-m", "faultinject.proxy"]
        words += ["--control", str(self._site.layout.proxy_control)]
        for name, guest in self._site.guests.items():
            words += ["--link", name, str(self._site.layout.proxy_link(name))]
            words.append(str(guest.link_socket))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        ours, theirs = os.pipe()
        try:
            with self._log.open() as log:
                environment = os.environ | {"PYTHONPATH": path}
                self._proxy = Child.start(words, log=log, env=environment, stdout=theirs)
        finally:
            os.close(theirs)
        reader = asyncio.StreamReader()
        pipe = os.fdopen(ours, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            async with asyncio.timeout(PROXY_START):
                line = await reader.readline()
        except TimeoutError:
            line = b""
        finally:
            transport.close()
        if line.strip() != b"ready":
            raise InjectionFailed(
                "the link proxy did not start", remedy=f"see {self._site.layout.proxy_log}"
            )
        self._site.changed()

    async def keep(self) -> None:
        """Start the proxy again whenever it ends, its lies undone, until cancelled."""
        while self._proxy is not None:
            await self._proxy.wait()
            _log.error("the link proxy ended", status=self._proxy.status)
            await asyncio.sleep(1.0)  # so that one that cannot run does not take the machine
            await self._start_proxy()

    async def _tell_proxy(self, command: dict[str, str]) -> dict[str, Any]:
        """Give the proxy a command; return what it says of its links.  Raises InjectionFailed."""
        path = str(self._site.layout.proxy_control)
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(json.dumps(command).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            raise InjectionFailed(f"the link proxy does not answer: {error}") from error
        if not answer["ok"]:
            raise InjectionFailed(f"the link proxy refused: {answer['error']}")
        return dict(answer["links"])

    # --------------------------------------------------------------- faults

    async def inject(self, kind: str, guest: str) -> str:
        """Apply a fault; return how it was proved applied, in words.  Raises InjectionFailed."""
        if find(kind).layer is Layer.LINK:
            return await self._lie(kind, guest)
        apply: dict[str, Callable[[str], Awaitable[str]]] = {
            "crash": self._crash,
            "hang": self._hang,
            "slow": self._slow_down,
            "corrupt-state": self._corrupt_state,
        }
        return await apply[kind](guest)

    async def _lie(self, kind: str, guest: str) -> str:
        # From chance, so that two lying guests do not tell the same lie.
        seed = os.urandom(8).hex()
        links = await self._tell_proxy({"do": "lie", "link": guest, "kind": kind, "seed": seed})
        if links[guest]["kind"] != kind:
            raise InjectionFailed(f"the link proxy does not hold {kind} for {guest}")
        return f"the proxy in {guest}'s link holds it (seed {seed})"

    async def _crash(self, guest: str) -> str:
        machine = self._site.guests[guest]
        pid = machine.pid
        await machine.kill()
        # Of one that a former supervisor started, a zombie may be left until init reaps it.
        if pid is not None and identify(pid) is not None:
            raise InjectionFailed(f"process {pid} of {guest} is still there")
        return f"process {pid} is gone"

    async def _hang(self, guest: str) -> str:
        machine = self._site.guests[guest]
        await machine.pause()
        if machine.state != "paused":
            raise InjectionFailed(f"{guest} is {machine.state}, not paused")
        return f"process {machine.pid} lives, its virtual processor is stopped"

    async def _slow_down(self, guest: str) -> str:
        machine = self._site.guests[guest]
        await machine.pause()
        stopped = machine.state == "paused"
        await machine.resume()
        if not stopped or machine.state != "ready":
            raise InjectionFailed(f"{guest} could not be stopped and let go by turns")
        self._slow[guest] = asyncio.create_task(self._duty(guest), name=f"slow {guest}")
        share = SLOW_RUNNING / (SLOW_RUNNING + SLOW_STOPPED)
        return f"its virtual processor was stopped and let go; it now runs {share:.0%} of the time"

    async def _duty(self, guest: str) -> None:
        machine = self._site.guests[guest]
        try:
            while True:
                await machine.pause()
                await asyncio.sleep(SLOW_STOPPED)
                await machine.resume()
                await asyncio.sleep(SLOW_RUNNING)
        except DeployError as error:
            _log.warning("a slow guest ended", guest=guest, error=str(error))

    async def _corrupt_state(self, guest: str) -> str:
        ram = await asyncio.to_thread(self._site.guests[guest].ram)
        canary = Canary.fresh()
        address = f"unix:{self._site.layout.native_socket}"
        try:
            async with await Client.connect(address) as client:
                answer = await client.request("PUT", f"/kv/{canary.key}", canary.value)
        except (RequestError, TimeoutError) as error:
            raise InjectionFailed(f"the canary cannot be written: {error}") from error
        if answer.status >= 300:
            raise InjectionFailed(f"the canary cannot be written: status {answer.status}")
        # The guest may be the one that answers last: it has the value once it has applied the
        # write.
        for _ in range(20):
            try:
                flips = await asyncio.to_thread(flip_copies, ram, canary.value)
                break
            except LookupError:
                await asyncio.sleep(0.1)  # memory gives no event for what is written to it
        else:
            raise InjectionFailed(f"the canary did not come to be in {guest}'s memory")
        places = ", ".join(f"{flip.offset:#x}" for flip in flips[:4])
        return (
            f"key {canary.key}: one bit of {len(flips)} copies flipped and read back "
            f"(at {places}{', ...' if len(flips) > 4 else ''})"
        )

    async def resume(self, kind: str, guest: str) -> bool:
        """Go on with a fault that a former supervisor applied; False if it is over."""
        if kind not in CATALOGUE or guest not in self._site.guests:
            return False
        if find(kind).layer is Layer.LINK:
            links = await self._tell_proxy({"do": "status"})
            return bool(links[guest]["kind"] == kind)
        state = self._site.guests[guest].state
        if kind == "slow":
            if state == "paused":  # its supervisor ended between stopping it and letting it go
                await self._site.guests[guest].resume()
            holds = state in ("ready", "paused")
            if holds:
                self._slow[guest] = asyncio.create_task(self._duty(guest), name=f"slow {guest}")
            return holds
        return state == {"crash": "dead", "hang": "paused"}.get(kind, "ready")

    async def undo(self, kind: str, guest: str) -> None:
        """End a fault; the supervisor puts the guest back if it must be.  Raises DeployError."""
        if find(kind).layer is Layer.LINK:
            await self._tell_proxy({"do": "relay", "link": guest})
        task = self._slow.pop(guest, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        machine = self._site.guests[guest]
        if kind == "slow" and machine.state == "paused":
            await machine.resume()

    async def end(self) -> None:
        """End all faults and the proxy."""
        await self._stop_slow()
        if self._proxy is not None:
            proxy, self._proxy = self._proxy, None
            await proxy.end(PROXY_GRACE)
        layout = self._site.layout
        for path in (layout.proxy_control, *map(layout.proxy_link, self._site.guests)):
            path.unlink(missing_ok=True)

    async def let_go(self) -> None:
        """Let the proxy live on without this process."""
        await self._stop_slow()

    async def _stop_slow(self) -> None:
        for task in self._slow.values():
            task.cancel()
        await asyncio.gather(*self._slow.values(), return_exceptions=True)
        self._slow.clear()
