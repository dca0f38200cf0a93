"""The record of a patch: its phases, its file, and what a damaged file leads to."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from deploy.patching.record import (
    FINAL,
    TRANSITIONS,
    PatchImage,
    PatchRecord,
    Phase,
    advance,
    read_patch,
    write_patch,
)
from tests.errors import raises

__all__ = ["a_patch"]


def an_image(name: str) -> PatchImage:
    return PatchImage(
        kernel="/k", initrd=f"/{name}", image=name, manifest="/m", service="kv", identity=name
    )


def a_patch(phase: Phase = Phase.PREPARING) -> PatchRecord:
    return PatchRecord(
        number=1, title="kv", phase=phase, old=an_image("old"), new=an_image("new"), began=1.0
    )


@pytest.mark.parametrize("before,after", [*itertools.product(Phase, Phase)])
def test_only_legal_changes_are_made(before: Phase, after: Phase) -> None:
    record = a_patch(before)
    if after in TRANSITIONS[before]:
        changed = advance(record, after, "text", reason="why")
        assert (changed.phase, changed.reason) == (after, "why")
        assert changed.final == (changed.ended is not None) == (after in FINAL)
        assert changed.steps[-1].text == "text"
    else:
        with pytest.raises(ValueError, match=f"{before} cannot become {after}"):
            advance(record, after, "text")


def test_voters_are_to_run_the_new_image_only_while_promoting_and_when_done() -> None:
    found = {phase for phase in Phase if a_patch(phase).target.image == "new"}
    assert found == {Phase.PROMOTING, Phase.DONE}


def test_every_phase_leads_to_an_end() -> None:
    for phase in Phase:
        seen, todo = set(), [phase]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += TRANSITIONS[here]
        assert seen & FINAL


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "patch.json"
    assert read_patch(path) is None
    record = advance(a_patch(), Phase.QUARANTINE, "caught up")
    write_patch(path, record)
    assert read_patch(path) == record


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', '{"schema": 1, "phase": "x"}'])
def test_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "patch.json"
    path.write_text(text)
    with raises("TV0779", match=r"patch\.json"):
        read_patch(path)


def test_unreadable_record_is_an_error(tmp_path: Path) -> None:
    with raises("TV0779", match="Is a directory"):
        read_patch(tmp_path)


def test_record_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with raises("TV0778", match="make room"):
        write_patch(tmp_path / "none" / "patch.json", a_patch())


def test_steps_are_bounded() -> None:
    record = a_patch()
    for number in range(200):
        record = record.note(str(number))
    assert len(record.steps) == 100
    assert record.steps[-1].text == "199"
    assert msgspec.json.decode(msgspec.json.encode(record), type=PatchRecord) == record
