"""A checkpoint on request, and the wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from deploy.errors import DeployError
from deploy.supervisor.observer import NodeObserver
from deploy.supervisor.voter_control import VoterControl

__all__ = ["take_checkpoint"]

LIMIT = 30.0
"""Seconds for a checkpoint that was asked for; a large state takes long."""
POLL = 0.1
"""Seconds between polls of the voter while it makes one: no event reports it."""


async def take_checkpoint(observer: NodeObserver, control: VoterControl) -> int:
    """Have the voter make a checkpoint; return its sequence number once it is durable.

    It compares the states of all replicas, and removes from the log what was ordered before: a
    guest of another version might answer that otherwise.  Raises DeployError if there is none
    within LIMIT seconds, VoterUnreachable.
    """
    before = _seq(await observer.poll())
    await control.checkpoint()
    deadline = time.monotonic() + LIMIT
    while (seq := _seq(await observer.poll())) <= before:
        if time.monotonic() > deadline:
            raise DeployError(
                f"the guests' states could not be compared within {LIMIT:g} s",
                remedy="`trivisor status` shows which guests vote",
                error_code="TV0776",
            )
        await asyncio.sleep(POLL)
    return seq


def _seq(status: Mapping[str, Any]) -> int:
    """Return the sequence number of the last checkpoint; in a journal: of the last durable one."""
    journal = status.get("journal")
    return int(journal["checkpoint_seq"] if journal else status["checkpoint"]["seq"])
