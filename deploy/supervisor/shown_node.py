"""The supervisor's side of the dashboard: what it shows of the node, and what it may do."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from deploy.dashboard.dashboard import Dashboard
from deploy.supervisor.supervisor import Supervisor
from voter.errors import AddressError

__all__ = ["ShownNode", "open_dashboard"]

_log = structlog.get_logger(__name__)


class ShownNode:
    """One supervisor as the dashboard sees it (implements dashboard.collector.NodeSource)."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.status = supervisor.status
        self.inject = supervisor.inject
        self.heal = supervisor.heal
        self.events_after = supervisor.history.after

    @property
    def fault_kinds(self) -> Mapping[str, str]:
        """The kinds of fault that can be injected, with what each does; empty if none may be."""
        faults = self._supervisor.faults
        return {} if faults is None else faults.kinds

    @property
    def faults_hint(self) -> str:
        """How to allow faults."""
        return self._supervisor.layout.faults_hint


def open_dashboard(supervisor: Supervisor) -> Dashboard | None:
    """Return the node's dashboard, its socket listening; None if it is off.

    Raises AddressError if its address is taken, except for a node that runs already: a supervisor
    that takes over must not fail for this.
    """
    wanted = supervisor.settings.dashboard
    if wanted == "off":
        return None
    running = supervisor.layout.read_running()
    try:
        shown = Dashboard(
            ShownNode(supervisor), wanted=wanted, before=running.dashboard,
            uuid=supervisor.record.uuids[0],
        )  # fmt: skip
    except AddressError as error:
        if not running.processes:
            text = f"the dashboard {error}, or `--dashboard off`"
            raise AddressError(text, error_code=error.error_code) from error
        supervisor.history.add("no dashboard", error=str(error))
        _log.error("no dashboard", error=str(error), error_code=error.error_code)
        return None
    supervisor.dashboard = shown.address
    return shown
