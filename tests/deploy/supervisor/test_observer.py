"""The history of a node's events."""

from __future__ import annotations

import asyncio

from deploy.supervisor.observer import HISTORY_LENGTH, EventHistory


async def test_history_is_numbered_bounded_and_can_be_followed() -> None:
    history = EventHistory()
    for number in range(HISTORY_LENGTH + 5):
        history.add("thing", f"g{number}", number=number)
    events = history.after(0)
    assert len(events) == HISTORY_LENGTH
    assert events[-1]["id"] == HISTORY_LENGTH + 5
    assert history.after(HISTORY_LENGTH + 4)[0]["guest"] == f"g{HISTORY_LENGTH + 4}"
    following = history.follow(HISTORY_LENGTH + 4)
    assert (await anext(following))["id"] == HISTORY_LENGTH + 5
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    assert not waiting.done()
    history.add("news")
    assert (await waiting)["event"] == "news"
