"""Events have fixed names, and the documentation says what each one means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.reference import catalogues


def test_every_event_has_a_fixed_name_and_a_meaning() -> None:
    names = {event.name for event in catalogues.find_events("voter", "deploy")}
    assert len(names) > 50
    assert names == catalogues.meanings().keys()


def test_names_are_short_words() -> None:
    for event in catalogues.find_events("voter", "deploy"):
        assert re.fullmatch(r"[A-Za-z_' ]{4,50}", event.name), event


def test_fields_are_found_also_where_they_come_from_a_dictionary() -> None:
    found = {
        (event.name, event.level): event.fields
        for event in catalogues.find_events("voter", "deploy")
    }
    assert set(found["replica", "info"]) == {"replica", "before", "after", "reason", "seq"}
    assert set(found["repaired", "event"]) >= {"guest", "why", "seconds"}
    assert found["stopped", "info"] == ()


def test_name_with_a_variable_in_it_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "module.py").write_text('_log.info(f"guest {name} ended")\n')
    monkeypatch.setattr(catalogues, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"bad/module.py:1: the name of an event is a fixed text"):
        list(catalogues.find_events("bad"))
