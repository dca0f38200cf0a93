"""The catalogue of faults agrees with what can be injected, and where."""

from __future__ import annotations

import pytest

from faultinject.faults import CATALOGUE, FaultLayer, find
from faultinject.faults.catalogue import offered_on_nodes
from faultinject.faults.injection import _ACTIONS
from faultinject.faults.memory import REGIONS


def test_unknown_kind_is_an_error_that_lists_the_kinds() -> None:
    with pytest.raises(ValueError, match="corrupt-state"):
        find("gamma rays")


def test_every_kind_can_be_injected() -> None:
    assert set(_ACTIONS) == set(CATALOGUE)


@pytest.mark.parametrize("kind", CATALOGUE)
def test_needs_and_targets_of_a_fault_follow_from_its_layer(kind: str) -> None:
    fault = find(kind)
    assert len(fault.targets) == 1
    # Only the guest knows where its kernel is in memory.
    needs_shell = fault.layer is FaultLayer.INSIDE or kind in REGIONS
    assert ("ssh" in fault.needs) == needs_shell
    assert ("proxy" in fault.needs) == (fault.layer is FaultLayer.LINK)
    assert (fault.targets == ("guest",)) == (
        fault.layer
        in (
            FaultLayer.GUEST,
            FaultLayer.MEMORY,
            FaultLayer.INSIDE,
            FaultLayer.LINK,
            FaultLayer.GUEST_FUNCTION,
        )
    )
    assert not (fault.latent and fault.fails)


def test_nodes_offer_faults_of_one_guest_without_a_shell() -> None:
    offered = offered_on_nodes()
    assert {"reset", "nmi", "flip-ram", "flip-register", "flood", "delay"} <= set(offered)
    assert not {"voter-kill", "poison", "flip-all", "service-kill"} & set(offered)
