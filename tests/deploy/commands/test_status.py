"""`trivisor status`: sentences for people, in every state."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from deploy.commands.status import _show
from tests.deploy.supervisor.running import Running


def shown(state: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    _show(state)
    text = capsys.readouterr().out
    assert not any(word in text for word in ("None", "{", "True", "False")), "a value, not a word"
    return text


async def test_status_is_text_in_every_state(
    plain_node: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    up = await plain_node.status()
    text = shown(up, capsys)
    assert text.startswith("ready: vote 2/3")
    assert "entries since the voter's start, all on the disk" in text

    starting = copy.deepcopy(up) | {"phase": "starting", "status": "unreachable", "http": None}
    starting["voter"] |= {"pid": None, "counters": {}, "seq": None}
    starting["durability"]["journal"] = None
    text = shown(starting, capsys)
    assert text.startswith("starting: vote 2/3, service kv, no address yet")
    assert "voter: does not run" in text

    full = copy.deepcopy(up) | {"storage": "/a[b]/: 0 MiB are free"}
    full["durability"]["journal"] |= {"full": True, "reason": "make room", "synced": 0}
    text = shown(full, capsys)
    assert "disk: /a[b]/: 0 MiB are free" in text
    assert "FULL: make room" in text
    assert "not on the disk yet" in text

    lost = copy.deepcopy(up) | {
        "connect": "qemu:///system",
        "connect_problem": "[its] daemon ended",
    }
    text = shown(lost, capsys)
    assert "libvirt: [its] daemon ended" in text
    assert "libvirt qemu:///system" in text

    patched = {
        "phase": "quarantine", "title": "service [new].py", "promoted": [], "of": 3,
        "waits_for": None,
        "quarantine": {"compared": 1, "waits_for": "1 of 9 requests were compared"},
    }  # fmt: skip
    text = shown(copy.deepcopy(up) | {"patch": patched}, capsys)
    assert "patch: quarantine, service [new].py; 1 reply compared; waits for: 1 of 9" in text
    patched |= {"phase": "promoting", "promoted": ["g4"]}
    text = shown(copy.deepcopy(up) | {"patch": patched}, capsys)
    assert "1 of 3 guests run it" in text

    failed = copy.deepcopy(up) | {"phase": "stopping"}
    failed["voter"] |= {"pid": None, "abandoned": True, "problem": "the voter ended (exit 2)"}
    text = shown(failed, capsys)
    assert text.startswith("stopping:")
    assert "the voter ended (exit 2)" in text
