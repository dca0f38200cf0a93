"""The status of a node as plain data: what `trivisor status --json` prints."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import msgspec

from deploy.machine.account import why_shared
from deploy.node.configuration import node_spec
from deploy.node.interfaces import NodePort
from deploy.node.records import DURABILITY_GUARANTEES, Layout, NodeRecord
from deploy.supervisor.active_faults import ActiveFaults
from deploy.supervisor.managed_voter import ManagedVoter
from deploy.supervisor.membership import Membership
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.patcher import Patcher
from deploy.supervisor.patching import NodeImage
from deploy.supervisor.rejuvenation import Rejuvenation
from deploy.supervisor.repairer import Repairer
from deploy.supervisor.storage import Storage
from deploy.supervisor.voter_control import VoterUnreachable
from deploy.supervisor.voter_process import VoterProcessManager
from deploy.watchdog.client import WatchdogClient
from deploy.watchdog.process import LIMIT, WINDOW

__all__ = ["NodeStatus"]

REPLICA_FACTS = (
    "state", "reason", "incarnation", "lag", "dissents", "incarnations_ended", "compiled",
    "role", "caught_up", "compared", "differed",
)  # fmt: skip
"""What the status of a guest shows of the voter's status of its replica."""
VOTER_FACTS = ("seq", "pending", "latency", "compiled", "not_compiled_because")


class NodeStatus:
    """Collects the status from the parts of one supervisor."""

    def __init__(  # noqa: PLR0913 - the parts
        self,
        layout: Layout,
        image: NodeImage,
        node: NodePort,
        *,
        observer: NodeObserver,
        voter: VoterProcessManager | ManagedVoter,
        repairer: Repairer,
        faults: ActiveFaults,
        membership: Membership,
        rejuvenation: Rejuvenation,
        patcher: Patcher,
        storage: Storage,
        watchdog: WatchdogClient,
    ) -> None:
        self._layout = layout
        self._image = image
        self._node = node
        self._observer = observer
        self._voter = voter
        self._repairer = repairer
        self._faults = faults
        self._membership = membership
        self._rejuvenation = rejuvenation
        self._patcher = patcher
        self._storage = storage
        self._watchdog = watchdog
        self._began = time.time()

    @property
    def _record(self) -> NodeRecord:
        return self._image.record

    async def collect(
        self, *, phase: str, addresses: dict[str, str], dashboard: str | None
    ) -> dict[str, Any]:
        """Return the status; the voter is asked first, if it answers."""
        with contextlib.suppress(VoterUnreachable):
            await self._observer.poll()
        voter = self._observer.voter_status or {"status": "unreachable"}
        now, settings, layout = time.monotonic(), self._record.settings, self._layout
        watchdog = self._watchdog.process
        return {
            "dir": str(layout.directory),
            "managed": self._record.managed,
            "uuid": self._record.uuids[0],
            "phase": phase,
            "status": voter["status"],
            "vote": settings.vote,
            "service": settings.service,
            "http": addresses.get("http"),
            "native": addresses.get("native"),
            "native_unix": str(layout.native_socket),
            "dashboard": dashboard,
            "storage": self._storage.problem or None,
            "accel": self._record.accel,
            "accel_reason": self._record.accel_reason,
            "image": self._record.image,
            **{key: getattr(settings, key) for key in ("connect", "repair", "allow_faults")},
            "connect_problem": self._node.problem or None,
            "isolation": why_shared(node_spec(layout, self._record)) or None,
            "supervisor": {
                "pid": os.getpid(),
                "since": self._began,
                "watchdog": watchdog.pid if watchdog is not None else None,
                "restarts": self._watchdog.restarts,
                "limit": LIMIT,
                "window": WINDOW,
                "ended": self._watchdog.ended or None,
            },
            "durability": {
                "kind": settings.durability,
                "promise": DURABILITY_GUARANTEES[settings.durability],
                "journal": voter.get("journal"),
            },
            **{key: voter.get(key) for key in ("follow", "security")},
            "voter": {
                **self._voter.describe(),
                **{key: voter.get(key) for key in VOTER_FACTS},
                "counters": voter.get("counters", {}),
            },
            **self._membership.describe(),
            "rejuvenation": self._rejuvenation.describe(),
            "patch": self._patcher.describe(),
            "guests": [self._describe(name, now) for name in self._membership.used],
        }

    def _describe(self, name: str, now: float) -> dict[str, Any]:
        guest, replica = self._node.guests[name], self._observer.replicas.get(name, {})
        vm, voting = str(guest.state), self._observer.replica_state(name)
        fault = self._faults.active.get(name)
        return {
            "name": name,
            "role": self._membership.role(name),
            "state": vm if vm != "ready" else voting or vm,
            "pid": guest.pid,
            "vm": vm,
            "since": self._membership.lives.get(name),
            "replica": {key: replica.get(key) for key in REPLICA_FACTS},
            "fault": None if fault is None else msgspec.to_builtins(fault),
            "repairs": self._repairer.describe(name, now),
        }
