"""The differences of a patch are kept on disk, in bounds, and each is kept once."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from deploy.patching import store as store_module
from deploy.patching.store import DifferenceStore, difference_of, show
from tests.deploy.patching.messages import difference, reply


def document(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a difference as the voter describes it."""
    request, old, new = difference().request, reply(200, b"a"), reply(200, b"b\xff")
    values = {
        "id": number, "time": 10.0, "replica": "g4", "role": "observer", "kind": "reply",
        "seq": 40 + number, "behind": 0.5,
        "request": b64encode(request).decode(), "released": b64encode(old).decode(),
        "other": b64encode(new).decode(), "sizes": [len(request), len(old), len(new)],
    }  # fmt: skip
    return values | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "differences.jsonl"


def test_difference_of_the_voter_is_understood() -> None:
    found = difference_of(document())
    assert (found.seq, found.other, found.cut) == (41, reply(200, b"b\xff"), False)
    assert difference_of(document(sizes=[1, 1, 1 << 20])).cut
    lost = difference_of(document(released=None, sizes=[1, None, 1]))
    assert (lost.released, lost.cut) == (None, False)
    assert difference_of(document(kind="digest", request="")).request == b""


@pytest.mark.parametrize("wrong", [{"kind": "x"}, {"seq": "x"}, {"request": "!"}, {"other": 1}])
def test_document_that_is_no_difference_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no difference"):
        difference_of(document() | wrong)
    with pytest.raises(ValueError, match="no difference"):
        difference_of({})


def test_differences_are_there_again_after_a_restart(path: Path) -> None:
    kept = DifferenceStore(path)
    kept.receive(7, document(1), "g4", 0)
    kept.add(difference())
    again = DifferenceStore(path)
    assert again.differences == kept.differences
    assert len(again.differences) == 2
    assert again.next_after(7) == 1
    assert again.receive(7, document(1), "g4", 0) is None
    assert again.receive(7, document(2), "g4", 0) is not None


def test_another_voter_numbers_from_one(path: Path) -> None:
    kept = DifferenceStore(path)
    kept.receive(7, document(5), "g4", 0)
    assert kept.next_after(8) == 0
    assert kept.receive(8, document(1), "g4", 0) is not None
    assert kept.lost == 0


def test_gap_in_the_numbers_is_counted(path: Path) -> None:
    kept = DifferenceStore(path)
    kept.receive(7, document(5), "g4", 0)
    kept.receive(7, document(9), "g4", 0)
    assert kept.lost == 3


def test_other_replicas_and_older_differences_are_left_out(path: Path) -> None:
    kept = DifferenceStore(path)
    assert kept.receive(7, document(1, replica="g2"), "g4", 0) is None
    assert kept.receive(7, document(2), "g4", 10.5) is None
    assert kept.differences == []
    assert kept.lost == 0


def test_line_that_was_cut_off_is_left_out(path: Path) -> None:
    kept = DifferenceStore(path)
    kept.receive(7, document(1), "g4", 0)
    with path.open("ab") as file:
        file.write(path.read_bytes()[:50])
    again = DifferenceStore(path)
    again.receive(7, document(2), "g4", 0)
    assert [each.seq for each in DifferenceStore(path).differences] == [41, 42]


def test_store_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST", 3)
    kept = DifferenceStore(path)
    for number in range(1, 6):
        kept.receive(7, document(number), "g4", 0)
    assert (len(kept.differences), kept.lost) == (3, 2)
    kept.clear()
    assert (kept.differences, kept.lost, path.exists()) == ([], 0, False)
    monkeypatch.setattr(store_module, "MOST_BYTES", 10)
    kept.receive(7, document(6), "g4", 0)
    assert (kept.differences, kept.lost) == ([], 1)


def test_difference_is_shown_as_text() -> None:
    shown = show(difference_of(document()))
    assert shown["other"].endswith("bÿ")
    assert shown["seq"] == 41
