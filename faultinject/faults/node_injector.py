"""The fault injector of a running node: the FaultPort that the supervisor uses.

``CATALOGUE`` describes each kind; ``injection`` carries it out and proves it.  Faulty links are the
exception: on a running node the proxy is a separate process, which outlives a supervisor and gets
its commands over a socket.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from deploy.errors import DeployError
from deploy.host.child import Child
from deploy.host.files import LogFile
from deploy.host.identity import ProcessIdentity
from deploy.host.spawn import python_command, python_environment
from deploy.node.interfaces import FaultSite, GuestPort
from deploy.supervisor.active_faults import FaultRefused
from faultinject.faults import CATALOGUE, FaultLayer, Injection, find
from faultinject.faults.catalogue import offered_on_nodes
from faultinject.faults.injection import inject
from faultinject.faults.machines import keep_slow
from faultinject.faults.site import ActiveFault, NotApplied, Site
from voter.client import Client
from voter.client.errors import RequestError

__all__ = ["FaultInjector"]

PROXY_START = 20.0
"""Seconds for a started proxy to listen on all its sockets before the start fails."""
PROXY_GRACE = 2.0
"""Seconds for the proxy to end before it is killed."""
CALL_TIMEOUT = 5.0
"""Seconds for the proxy to answer a command before the injection fails."""
DOSES = {"flip-ram": 1000}
"""The dose by kind, where it is not 1: one flipped bit in 128 MiB is hardly ever used."""
NEEDS_RESTORE = frozenset({"crash", "hang", "reset", "flip-register"})
"""Kinds that leave an incorrect guest, in addition to all faults of memory."""

_log = structlog.get_logger(__name__)


class InjectionFailed(DeployError):
    """A fault could not be injected, or its injection could not be proved."""

    error_code = "TV0505"


class FaultInjector:
    """Injects faults into one node.  ``site`` is its supervisor."""

    def __init__(self, site: FaultSite) -> None:
        self._site = site
        self._proxy: Child | None = None
        self._node = _NodeSite(site)
        self._active: dict[str, ActiveFault] = {}
        self._log = LogFile(site.layout.proxy_log)

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kinds that can be injected into a running node, with what each does."""
        return {kind: fault.does for kind, fault in offered_on_nodes().items()}

    def check(self, kind: str, guest: str) -> None:
        """Raise FaultRefused unless such a fault can be injected into this guest of this node."""
        try:
            fault = find(kind)
        except ValueError as error:
            raise FaultRefused(str(error), error_code="TV0503") from error
        if kind not in offered_on_nodes():
            raise FaultRefused(
                f"{kind} is not for a guest of a running node",
                remedy=f"give one of {', '.join(offered_on_nodes())}, or use it in a campaign",
                error_code="TV0503",
            )
        if kind == "corrupt-state" and self._site.settings.service != "kv":
            raise FaultRefused(
                f"{kind} writes a canary key, which only the service kv takes "
                f"(this node runs {self._site.settings.service})",
                remedy="use corrupt-reply, or start a node with --service kv",
                error_code="TV0503",
            )
        state = self._site.guests[guest].state
        if fault.layer is not FaultLayer.LINK and state != "ready":
            raise FaultRefused(
                f"{guest} is {state}", remedy=f"`trivisor heal {guest}` first", error_code="TV0502"
            )

    def needs_restore(self, kind: str) -> bool:
        """Return whether the guest must be restored after this fault, even while it votes.

        A hung guest is not resumed first: it would greet the voter, only to be restored then.
        """
        return kind in NEEDS_RESTORE or find(kind).layer is FaultLayer.MEMORY

    def link(self, guest: str) -> str:
        """Return the address of the proxy's side of this guest's link."""
        return f"unix:{self._site.layout.proxy_link(guest)}"

    # --------------------------------------------------------------- proxy

    @property
    def processes(self) -> Mapping[str, ProcessIdentity]:
        """The proxy, while it runs."""
        proxy = self._proxy
        return {"proxy": proxy.identity} if proxy is not None and proxy.running else {}

    async def start(self, before: Mapping[str, ProcessIdentity]) -> None:
        """Adopt the proxy that runs, or start one.  Raises InjectionFailed."""
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
                self._proxy = Child.start(
                    command, log=log, env=python_environment("proxy"), stdout=theirs,
                    cwd=self._site.layout.directory,
                )  # fmt: skip
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
        """Restart the proxy, without lies, whenever it ends, until cancelled."""
        while self._proxy is not None:
            await self._proxy.wait()
            _log.error("the link proxy ended", status=self._proxy.status, error_code="TV0505")
            await asyncio.sleep(1.0)  # so that a proxy that cannot run does not use up the machine
            await self._start_proxy()

    async def _command_proxy(self, command: dict[str, str]) -> dict[str, Any]:
        """Send the proxy a command; return the state of its links.  Raises InjectionFailed."""
        path = str(self._site.layout.proxy_control)
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(json.dumps(command, allow_nan=False).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            raise InjectionFailed(f"the link proxy does not answer: {error}") from error
        if not answer["ok"]:
            raise InjectionFailed(f"the link proxy rejected it: {answer['error']}")
        return dict(answer["links"])

    # --------------------------------------------------------------- faults

    async def inject(self, kind: str, guest: str) -> str:
        """Inject a fault; return the proof that it is active.  Raises InjectionFailed."""
        if find(kind).layer is FaultLayer.LINK:
            return await self._lie(kind, guest)
        seed = int.from_bytes(os.urandom(8))
        injection = Injection(target=guest, kind=kind, at=0, seed=seed, dose=DOSES.get(kind, 1))
        try:
            self._active[guest] = active = await inject(injection, self._node)
        except NotApplied as error:
            raise InjectionFailed(error.reason, error_code=error.error_code) from error
        return active.proof

    async def _lie(self, kind: str, guest: str) -> str:
        # A random seed, so that two lying guests do not send the same wrong reply.
        seed = os.urandom(8).hex()
        links = await self._command_proxy({"do": "lie", "link": guest, "kind": kind, "seed": seed})
        if links[guest]["kind"] != kind:
            raise InjectionFailed(f"the link proxy does not report {kind} for {guest}")
        return f"the proxy in {guest}'s link reports it (seed {seed})"

    async def resume(self, kind: str, guest: str) -> bool:
        """Adopt a fault that a former supervisor injected; return False if it is over."""
        if kind not in CATALOGUE or guest not in self._site.guests:
            return False
        if find(kind).layer is FaultLayer.LINK:
            links = await self._command_proxy({"do": "status"})
            return bool(links[guest]["kind"] == kind)
        state = self._site.guests[guest].state
        if kind == "slow":
            if state == "paused":  # its supervisor ended between pausing and resuming it
                await self._site.guests[guest].resume()
            holds = state in ("ready", "paused")
            if holds:
                self._active[guest] = keep_slow(self._node.machine(guest))
            return holds
        if kind == "reset":
            return state in ("dead", "ready")
        return state == {"crash": "dead", "hang": "paused"}.get(kind, "ready")

    async def undo(self, kind: str, guest: str) -> None:
        """End a fault; the supervisor restores the guest if necessary.  Raises DeployError."""
        if find(kind).layer is FaultLayer.LINK:
            await self._command_proxy({"do": "relay", "link": guest})
        active = self._active.pop(guest, None)
        if active is not None:
            await active.undo()

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
        """End all faults but those of the proxy, which continues to run."""
        await self._undo_all()

    async def _undo_all(self) -> None:
        undone = [active.undo() for active in self._active.values()]
        self._active.clear()
        for result in await asyncio.gather(*undone, return_exceptions=True):
            if isinstance(result, BaseException):
                _log.warning("a fault was not undone", error=repr(result), error_code="TV0510")


class _NodeSite(Site):
    """A running node as a site: its supervisor's guests, and a client of its voter.

    Its proxy is another process, and its voter belongs to the supervisor, which would restart it.
    """

    def __init__(self, site: FaultSite) -> None:
        self._site = site

    @property
    def names(self) -> Sequence[str]:
        """The guests' names."""
        return tuple(self._site.guests)

    def machine(self, name: str) -> GuestPort:
        """Return a guest's machine."""
        return self._site.guests[name]

    async def send(
        self, method: str, target: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes]:
        """Send a request to the voter; return status and body, or 0 and the error."""
        address = f"unix:{self._site.layout.native_socket}"
        try:
            async with await Client.connect(address) as client:
                answer = await client.request(method, target, body, headers)
        except (RequestError, TimeoutError) as error:
            return 0, str(error).encode()
        return answer.status, answer.body
