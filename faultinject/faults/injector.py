"""Carries out faults on a running node: the FaultPort that the supervisor is handed.

What each kind does, and how it is proved, stands in ``faults.CATALOGUE``; the acts themselves are
those of ``faults.acts``, but for lies: the proxy is a process of its own here.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.host.files import LogFile
from deploy.host.identity import ProcessIdentity
from deploy.host.spawn import python_command, python_environment
from deploy.node.interfaces import FaultSite
from deploy.supervisor.fault_records import FaultRefused
from faultinject.campaign.records import Hit
from faultinject.faults import CATALOGUE, FaultLayer, find
from faultinject.faults.acts import apply
from faultinject.faults.catalogue import offered_on_nodes
from faultinject.faults.machines import keep_slow
from faultinject.faults.node_site import NodeSite
from faultinject.faults.site import Applied, NotApplied

__all__ = ["FaultInjector"]

PROXY_START = 20.0
"""Seconds until a proxy that was started must serve."""
PROXY_GRACE = 2.0
CALL_TIMEOUT = 5.0
DOSES = {"flip-ram": 1000}
"""How many bits are flipped, where it is not one: of 128 MiB a single one is hardly ever used."""
PUT_BACK = frozenset({"crash", "hang", "reset", "flip-register"})
"""What leaves no sound guest, besides all faults of memory."""

_log = structlog.get_logger(__name__)


class InjectionFailed(DeployError):
    """A fault could not be applied, or not be proved applied."""


class FaultInjector:
    """Faults on one node.  ``site`` is its supervisor."""

    def __init__(self, site: FaultSite) -> None:
        self._site = site
        self._proxy: Child | None = None
        self._node = NodeSite(site)
        self._applied: dict[str, Applied] = {}
        self._log = LogFile(site.layout.proxy_log)

    def check(self, kind: str, guest: str) -> None:
        """Raise FaultRefused unless such a fault can be injected into this guest of this node."""
        try:
            fault = find(kind)
        except ValueError as error:
            raise FaultRefused(str(error)) from error
        if kind not in offered_on_nodes():
            raise FaultRefused(
                f"{kind} is not for a guest of a running node",
                remedy=f"give one of {', '.join(offered_on_nodes())}, or use it in a campaign",
            )
        if kind == "corrupt-state" and self._site.settings.service != "kv":
            raise FaultRefused(
                f"{kind} writes a canary key, which only the service kv takes "
                f"(this node runs {self._site.settings.service})",
                remedy="use corrupt-reply, or start a node with --service kv",
            )
        state = self._site.guests[guest].state
        if fault.layer is not FaultLayer.LINK and state != "ready":
            raise FaultRefused(f"{guest} is {state}", remedy=f"`trivisor heal {guest}` first")

    def needs_restore(self, kind: str) -> bool:
        """Whether the guest must be put back after this fault, even while it still votes.

        A hung one is not let go before: it would greet the voter just to be cut off again.
        """
        return kind in PUT_BACK or find(kind).layer is FaultLayer.MEMORY

    def link(self, guest: str) -> str:
        """Return the proxy's address for this guest."""
        return f"unix:{self._site.layout.proxy_link(guest)}"

    # --------------------------------------------------------------- proxy

    @property
    def processes(self) -> Mapping[str, ProcessIdentity]:
        """The proxy, while it runs."""
        proxy = self._proxy
        return {"proxy": proxy.identity} if proxy is not None and proxy.running else {}

    async def start(self, before: Mapping[str, ProcessIdentity]) -> None:
        """Go on with the proxy that runs, or start one.  Raises InjectionFailed."""
        if "proxy" in before:
            self._proxy = Child.adopt(before["proxy"])
        if self._proxy is None:
            await self._start_proxy()

    async def _start_proxy(self) -> None:
        command = python_command("faultinject.faults.proxy")
        command += ["--control", str(self._site.layout.proxy_control)]
        for name, guest in self._site.guests.items():
            link = str(self._site.layout.proxy_link(name))
            command += ["--link", name, link, str(guest.link_socket)]
        ours, theirs = os.pipe()
        try:
            with self._log.open() as log:
                self._proxy = Child.start(command, log=log, env=python_environment(), stdout=theirs)
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
        if find(kind).layer is FaultLayer.LINK:
            return await self._lie(kind, guest)
        seed = int.from_bytes(os.urandom(8))
        hit = Hit(target=guest, kind=kind, at=0, seed=seed, dose=DOSES.get(kind, 1))
        try:
            self._applied[guest] = applied = await apply(hit, self._node)
        except NotApplied as error:
            raise InjectionFailed(error.reason) from error
        return applied.proof

    async def _lie(self, kind: str, guest: str) -> str:
        # From chance, so that two lying guests do not tell the same lie.
        seed = os.urandom(8).hex()
        links = await self._tell_proxy({"do": "lie", "link": guest, "kind": kind, "seed": seed})
        if links[guest]["kind"] != kind:
            raise InjectionFailed(f"the link proxy does not hold {kind} for {guest}")
        return f"the proxy in {guest}'s link holds it (seed {seed})"

    async def resume(self, kind: str, guest: str) -> bool:
        """Go on with a fault that a former supervisor applied; False if it is over."""
        if kind not in CATALOGUE or guest not in self._site.guests:
            return False
        if find(kind).layer is FaultLayer.LINK:
            links = await self._tell_proxy({"do": "status"})
            return bool(links[guest]["kind"] == kind)
        state = self._site.guests[guest].state
        if kind == "slow":
            if state == "paused":  # its supervisor ended between stopping it and letting it go
                await self._site.guests[guest].resume()
            holds = state in ("ready", "paused")
            if holds:
                self._applied[guest] = keep_slow(self._node.machine(guest))
            return holds
        if kind == "reset":
            return state in ("dead", "ready")
        return state == {"crash": "dead", "hang": "paused"}.get(kind, "ready")

    async def undo(self, kind: str, guest: str) -> None:
        """End a fault; the supervisor puts the guest back if it must be.  Raises DeployError."""
        if find(kind).layer is FaultLayer.LINK:
            await self._tell_proxy({"do": "relay", "link": guest})
        applied = self._applied.pop(guest, None)
        if applied is not None:
            await applied.undo()

    async def end(self) -> None:
        """End all faults and the proxy."""
        await self._undo_all()
        if self._proxy is not None:
            proxy, self._proxy = self._proxy, None
            await proxy.end(PROXY_GRACE)
        layout = self._site.layout
        for path in (layout.proxy_control, *map(layout.proxy_link, self._site.guests)):
            path.unlink(missing_ok=True)

    async def release(self) -> None:
        """Let the proxy live on without this process."""
        await self._undo_all()

    async def _undo_all(self) -> None:
        undone = [applied.undo() for applied in self._applied.values()]
        self._applied.clear()
        for result in await asyncio.gather(*undone, return_exceptions=True):
            if isinstance(result, BaseException):
                _log.warning("a fault was not undone", error=repr(result))
