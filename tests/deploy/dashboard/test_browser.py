"""The dashboard in Chromium: what a user sees and does, on real guests and on data."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.dashboard.dashboard import Dashboard
from deploy.host.spawn import python_command, python_environment
from tests.browser import Chromium
from tests.deploy.dashboard.shown import FakeSource
from tests.waiting import until
from voter.client import Client

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"

pytestmark = pytest.mark.vm


def trivisor(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_command("trivisor", *words, "--dir", directory), env=python_environment(),
        capture_output=True, text=True, timeout=150, check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real_node(shared_scratch: Path) -> Iterator[tuple[Path, str]]:
    """Give the directory of a node of three guests, and the link that `up` printed."""
    directory = shared_scratch / "shown"
    done = trivisor(
        directory, "up", "--allow-faults", "--http", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"
    )
    (link,) = re.findall(r"http://127\.0\.0\.1:\d+/#\S+", done.stderr)
    try:
        yield directory, link
    finally:
        trivisor(directory, "down")


@pytest_asyncio.fixture
async def chromium(scratch: Path) -> AsyncIterator[Chromium]:
    async with Chromium(scratch) as started:
        yield started


async def _requests(directory: Path, failed: list[str]) -> None:
    """Send requests until cancelled; note those that get no reply."""
    async with await Client.connect(f"unix:{directory}/native.sock") as client:
        while True:
            answer = await client.request("PUT", "/kv/colour", b"blue")
            if answer.status not in (200, 201, 204):
                failed.append(str(answer.status))
            await asyncio.sleep(0.02)  # the pause between two requests of the load


@pytest.mark.readme
async def test_user_kills_a_guest_by_the_button_and_sees_it_masked_and_repaired(
    real_node: tuple[Path, str], chromium: Chromium
) -> None:
    directory, link = real_node
    failed: list[str] = []
    load = asyncio.create_task(_requests(directory, failed))
    async with chromium.page(link) as page:
        await page.wait_text("#status", "3 of 3 guests vote")
        await page.wait_text("#link", "live")
        assert "#" not in await page.run("location.href")
        assert await page.run("document.cookie") == ""  # scripts do not see the session
        before = await page.text("[data-guest=g2] .facts")
        await page.run("document.querySelector('#target').value = 'g2'")
        await page.click("#inject-button")
        await page.wait_text("#status", "2 of 3 guests vote")
        await page.wait_text("#verdict", "degraded")
        await page.wait_text("[data-guest=g2]", "Fault: crash")
        await page.wait_text("#events", "fault injected: crash")

        async def masked() -> bool:
            text = await page.text("#tiles > div:nth-child(4) .value")
            return float(text.split()[0].replace(",", "")) > 0

        await until(masked, "replies by majority")
        assert await page.run("document.querySelectorAll('#timeline .fault').length") == 1
        await page.click("[data-guest=g2] button")
        await page.wait_text("#outcome", "crash undone, votes again after")
        await page.wait_text("#status", "3 of 3 guests vote")
        await page.wait_text("#events", "healed of crash")
        await page.wait_text("[data-guest=g2]", "votes")
        assert await page.text("[data-guest=g2] .facts") != before  # another process
        marks = await page.run(
            "[...document.querySelectorAll('#timeline .sign')].map((e) => e.className.baseVal)"
        )
        assert {"sign out", "sign back"} <= set(marks)
        assert page.problems == []
        here = link.partition("#")[0]
        assert [url for url in page.requested if not url.startswith(here)] == []
        assert not any("#" in url or link.partition("#")[2] in url for url in page.requested)
    load.cancel()
    assert failed == []


async def test_used_link_shows_how_to_get_another(
    real_node: tuple[Path, str], chromium: Chromium
) -> None:
    directory, _ = real_node
    link = json.loads(trivisor(directory, "dashboard", "--json").stdout)["url"]
    async with chromium.page(link) as page:
        await page.wait_text("#status", "guests vote")
        await page.click("#logout")
        await page.wait_text("#login", "trivisor dashboard")
        await page.open(f"{link}x")
        await page.wait_text("#login-error", "used already or is too old")
        await page.open(link)
        await page.wait_text("#login-error", "used already or is too old")


async def test_guest_that_was_replaced_is_no_longer_shown(
    node: FakeSource, shown: Dashboard, chromium: Chromium
) -> None:
    async with chromium.page(shown.new_link()) as page:
        await page.wait_text("#status", "3 of 3 guests vote")
        new = json.loads(json.dumps(node.shown["guests"].pop(1)))
        node.shown["guests"].append(new | {"name": "g4", "state": "standby"})
        await page.wait_text("#guests", "is about to vote")
        assert "g2" not in await page.text("#guests")
        assert "g4" in await page.text("#guests")


async def test_what_a_guest_says_is_shown_as_text(
    node: FakeSource, shown: Dashboard, chromium: Chromium
) -> None:
    guest = node.shown["guests"][0]
    guest["replica"] |= {"state": "expelled", "reason": HOSTILE}
    guest["state"] = HOSTILE
    node.shown |= {"service": HOSTILE, "status": "degraded"}
    node.add("replica", "g1", before="active", after="expelled", reason=HOSTILE)
    node.add("fault injected", "g2", kind=HOSTILE, proof=HOSTILE, seconds=None)
    node.add(HOSTILE, "g3", **{HOSTILE: HOSTILE})
    shown.board.post(
        json.dumps({"title": HOSTILE, "directory": "/", "state": "x", "done": 1, "total": 2,
                    "texts": [HOSTILE], "points": [
                        {"x": 0.9, "y": 0.9, "low": 0.8, "high": 1, "label": HOSTILE}]}).encode()
    )  # fmt: skip
    async with chromium.page(shown.new_link()) as page:
        await page.wait_text("#status", "2 of 3 guests vote")
        for place in ("#node", "[data-guest=g1]", "#events"):
            await page.wait_text(place, "<img src=x")
        campaign = await page.run("document.querySelector('#campaign').textContent")
        assert campaign.count(HOSTILE) == 2  # its title, and the label of its point
        assert await page.run("document.querySelectorAll('img, script:not([src])').length") == 0
        assert "broken" not in await page.run("document.title")
        assert page.problems == []


async def test_page_fits_a_phone_and_is_usable_by_keyboard(
    node: FakeSource, shown: Dashboard, chromium: Chromium
) -> None:
    async with chromium.page(shown.new_link()) as page:
        await page.show_as(375)
        await page.wait_text("#status", "3 of 3 guests vote")
        assert await page.run("document.documentElement.scrollWidth") <= 375
        await page.run("document.querySelector('#target').focus()")
        for _ in range(2):
            await page.press("Tab", 9)
        assert await page.run("document.activeElement.id") == "inject-button"
        await page.press("Enter", 13)
        await until(lambda: node.orders == [("inject", "crash", "g1", None)])
        chart = await page.run("document.querySelector('#timeline svg').getAttribute('aria-label')")
        assert "Timeline of the last" in chart
        unnamed = await page.run(
            "[...document.querySelectorAll('button, select, [role=img]')].filter((e) =>"
            "!e.textContent.trim() && !e.labels?.length && !e.ariaLabel"
            "&& !e.hasAttribute('aria-labelledby')).length"
        )
        assert unnamed == 0


async def test_texts_have_enough_contrast(
    node: FakeSource, shown: Dashboard, chromium: Chromium
) -> None:
    """WCAG AA: 4.5 for text, compared with the background that is behind it."""
    node.shown["guests"][1] |= {
        "state": "expelled",
        "fault": {"kind": "crash", "since": 0.0, "until": None, "proof": "it ended"},
    }
    async with chromium.page(shown.new_link()) as page:
        for dark in (False, True):
            await page.show_as(1280, dark=dark)
            await page.wait_text("[data-guest=g2]", "Fault: crash")
            await page.run("Promise.all(document.getAnimations().map((each) => each.finished))")
            assert await page.run(CONTRAST) == [], f"dark: {dark}"


CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) =>
    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
    && !e.closest("svg, :disabled, option, .unseen, .skip")
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
      const [a, b] = [rgb(getComputedStyle(e).color), behind(e)].map(light).sort((x, y) => y - x);
      return [Math.round((a + 0.05) / (b + 0.05) * 100) / 100, e.textContent.trim().slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
})()
"""
