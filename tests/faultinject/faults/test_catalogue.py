"""The catalogue of faults: complete, in words, and what the injector can carry out."""

from __future__ import annotations

import msgspec
import pytest

from faultinject.faults import CATALOGUE, FaultLayer, find
from faultinject.faults.acts import _ACTS
from faultinject.faults.catalogue import offered_on_nodes
from faultinject.faults.regions import REGIONS

NOW = ["crash", "hang", "slow", "corrupt-reply", "corrupt-state", "garbage"]


def test_the_kinds_of_now_are_there_first() -> None:
    assert list(CATALOGUE)[: len(NOW)] == NOW


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_fault_says_what_it_does_how_it_is_proved_and_undone(kind: str) -> None:
    fault = find(kind)
    assert fault.kind == kind
    assert fault.layer in FaultLayer
    for words in (fault.does, fault.proof, fault.undo, fault.masked_by):
        assert len(words.split()) >= 4


def test_the_catalogue_is_plain_data() -> None:
    assert msgspec.json.decode(msgspec.json.encode(CATALOGUE)).keys() == CATALOGUE.keys()


def test_an_unknown_kind_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="corrupt-state"):
        find("gamma rays")


def test_every_kind_has_an_act_or_is_a_lie() -> None:
    lies = {kind for kind, fault in CATALOGUE.items() if fault.layer is FaultLayer.LINK}
    assert set(_ACTS).isdisjoint(lies)
    assert set(_ACTS) | lies == set(CATALOGUE)


@pytest.mark.parametrize("kind", CATALOGUE)
def test_what_a_fault_needs_follows_from_where_it_acts(kind: str) -> None:
    fault = find(kind)
    assert len(fault.targets) == 1
    # Where a guest's kernel lies in memory only the guest knows.
    asks_inside = fault.layer is FaultLayer.INSIDE or kind in REGIONS
    assert ("ssh" in fault.needs) == asks_inside
    assert ("proxy" in fault.needs) == (fault.layer is FaultLayer.LINK)
    assert (fault.targets == ("guest",)) == (
        fault.layer
        in (
            FaultLayer.GUEST,
            FaultLayer.MEMORY,
            FaultLayer.INSIDE,
            FaultLayer.LINK,
            FaultLayer.FUNCTION,
        )
    )
    assert not (fault.latent and fault.fails)


def test_only_what_ends_a_qemu_leaves_none() -> None:
    assert {kind for kind, fault in CATALOGUE.items() if not fault.leaves_qemu} == {
        "crash", "host-crash"
    }  # fmt: skip


def test_nodes_offer_what_one_guest_can_be_hit_by_without_a_shell() -> None:
    offered = offered_on_nodes()
    assert {"reset", "nmi", "flip-ram", "flip-register", "flood", "delay"} <= set(offered)
    assert not {"voter-kill", "poison", "flip-all", "service-kill"} & set(offered)
