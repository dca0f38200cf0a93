"""What the injector refuses before it touches anything; the rest is in tests of the supervisor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.node.interfaces import FaultSite
from deploy.node.records import Layout, Settings
from deploy.supervisor.fault_records import FaultRefused
from faultinject.faults import CATALOGUE, FaultLayer
from faultinject.faults.catalogue import offered_on_nodes
from faultinject.faults.injector import FaultInjector
from faultinject.faults.machines import SLOW_STOPPED
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
def test_a_guest_that_is_ready_takes_every_kind_that_is_offered(kind: str) -> None:
    injector().check(kind, "g1")


@pytest.mark.parametrize("kind", sorted(CATALOGUE.keys() - set(OFFERED)))
def test_what_needs_a_shell_or_hits_another_than_a_guest_is_refused(kind: str) -> None:
    with pytest.raises(FaultRefused, match=f"{kind} is not for a guest of a running node"):
        injector().check(kind, "g1")


def test_state_can_be_corrupted_only_where_a_canary_can_be_written() -> None:
    with pytest.raises(FaultRefused, match="only the service kv takes"):
        injector(service="static").check("corrupt-state", "g1")


@pytest.mark.parametrize("kind", OFFERED)
def test_a_dead_guest_takes_only_what_acts_on_its_link(kind: str) -> None:
    if CATALOGUE[kind].layer is FaultLayer.LINK:
        injector(state="dead").check(kind, "g1")
    else:
        with pytest.raises(FaultRefused, match="g1 is dead"):
            injector(state="dead").check(kind, "g1")


def test_a_slow_guest_stays_within_the_voters_patience() -> None:
    assert Limits().hang > SLOW_STOPPED * 5


def test_voters_find_guests_behind_the_proxy() -> None:
    assert injector().link("g1") == "unix:/d/g1.lie"


def test_only_what_leaves_a_sound_guest_that_votes_needs_no_put_back() -> None:
    must = {kind for kind in OFFERED if injector().needs_restore(kind)}
    assert must == {"crash", "hang", "corrupt-state", "reset", "flip-ram", "flip-register"}
