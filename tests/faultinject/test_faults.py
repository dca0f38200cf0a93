"""The catalogue of faults: complete, in words, and what the injector can carry out."""

from __future__ import annotations

import msgspec
import pytest

from faultinject.faults import CATALOGUE, Layer, find

NOW = ["crash", "hang", "slow", "corrupt-reply", "corrupt-state", "garbage"]


def test_the_kinds_of_now_are_there_first() -> None:
    assert list(CATALOGUE)[: len(NOW)] == NOW


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_fault_says_what_it_does_how_it_is_proved_and_undone(kind: str) -> None:
    fault = find(kind)
    assert fault.kind == kind
    assert fault.layer in Layer
    for words in (fault.does, fault.proof, fault.undo, fault.masked_by):
        assert len(words.split()) >= 4


def test_the_catalogue_is_plain_data() -> None:
    assert msgspec.json.decode(msgspec.json.encode(CATALOGUE)).keys() == CATALOGUE.keys()


def test_an_unknown_kind_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="corrupt-state"):
        find("gamma rays")
