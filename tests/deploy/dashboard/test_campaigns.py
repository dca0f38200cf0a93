"""Figures of a campaign are checked, shown with their age, and dropped when no newer ones come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from deploy.dashboard.campaigns import STALE, CampaignBoard

POSTED: dict[str, Any] = {
    "title": "softerrors", "directory": "/c", "state": "running", "done": 10, "total": 20,
    "points": [{"x": 0.9, "y": 0.97, "low": 0.95, "high": 0.99}],
    "curves": [{"kind": "paper", "label": "the paper", "points": []}],
}  # fmt: skip


def test_figures_are_shown_until_they_are_stale() -> None:
    now = [100.0]
    board = CampaignBoard(lambda: now[0])
    assert board.current() is None
    board.post(json.dumps(POSTED).encode())
    now[0] += 5
    shown = board.current()
    assert shown is not None
    assert (shown["age"], shown["points"][0]["x"], shown["done"]) == (5.0, 0.9, 10)
    now[0] += STALE
    assert board.current() is None


@pytest.mark.parametrize(
    "changed",
    [
        {"title": "x" * 201},
        {"done": -1},
        {"unknown": 1},
        {"points": [{"x": 0.9, "y": 1e99, "low": 0, "high": 0}]},
        {"points": [{"x": 0.9}]},
        {"points": [{"x": 0.9, "y": 0.9, "low": 0.9, "high": 0.9}] * 101},
        {"curves": [{"kind": "other", "label": "", "points": []}]},
        {"texts": ["x"] * 21},
        {"state": None},
    ],
)
def test_wrong_figures_are_rejected_and_change_nothing(changed: dict[str, Any]) -> None:
    board = CampaignBoard()
    board.post(json.dumps(POSTED).encode())
    with pytest.raises(msgspec.MsgspecError):
        board.post(json.dumps(POSTED | changed).encode())
    shown = board.current()
    assert shown is not None
    assert shown["title"] == "softerrors"


def test_body_that_is_no_json_is_rejected() -> None:
    with pytest.raises(msgspec.MsgspecError):
        CampaignBoard().post(b"\xff{")
