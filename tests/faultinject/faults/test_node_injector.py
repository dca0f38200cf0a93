"""What the injector refuses in advance; the supervisor's tests cover the rest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.node.interfaces import FaultSite
from deploy.node.records import Layout, Settings
from deploy.supervisor.active_faults import FaultRefused
from faultinject.faults import CATALOGUE, FaultLayer
from faultinject.faults.catalogue import offered_on_nodes
from faultinject.faults.machines import SLOW_STOPPED
from faultinject.faults.node_injector import FaultInjector
from tests.errors import raises
from voter.core import Limits


def injector(*, state: str = "ready", **settings: Any) -> FaultInjector:
    site = SimpleNamespace(
        layout=Layout(Path("/d")),
        settings=Settings(**settings),
        guests={"g1": SimpleNamespace(state=state)},
        changed=lambda: None,
    )
    return FaultInjector(cast(FaultSite, site))


OFFERED = list(offered_on_nodes())


@pytest.mark.parametrize("kind", OFFERED)
def test_every_offered_kind_is_accepted_when_the_guest_is_ready(kind: str) -> None:
    injector().check(kind, "g1")


@pytest.mark.parametrize("kind", sorted(CATALOGUE.keys() - set(OFFERED)))
def test_kind_is_refused_when_it_needs_a_shell_or_another_target(kind: str) -> None:
    with raises("TV0503", match=f"{kind} is not for a guest of a running node"):
        injector().check(kind, "g1")


def test_corrupt_state_is_refused_when_the_service_is_not_kv() -> None:
    with pytest.raises(FaultRefused, match="only the service kv takes"):
        injector(service="static").check("corrupt-state", "g1")


@pytest.mark.parametrize("kind", OFFERED)
def test_only_link_faults_are_accepted_when_the_guest_is_dead(kind: str) -> None:
    if CATALOGUE[kind].layer is FaultLayer.LINK:
        injector(state="dead").check(kind, "g1")
    else:
        with raises("TV0502", match="g1 is dead"):
            injector(state="dead").check(kind, "g1")


def test_slow_guest_is_stopped_far_shorter_than_the_hang_limit() -> None:
    assert Limits().hang > SLOW_STOPPED * 5


def test_restore_is_needed_after_faults_that_leave_an_incorrect_guest() -> None:
    must = {kind for kind in OFFERED if injector().needs_restore(kind)}
    assert must == {"crash", "hang", "corrupt-state", "reset", "flip-ram", "flip-register"}
