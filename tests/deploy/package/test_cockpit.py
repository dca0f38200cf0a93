"""The Cockpit page: its files in the package, and its work on a running node.

Cockpit itself does not run here.  A stand-in for its library forwards to the supervisor's socket.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.browser import Chromium
from tests.deploy.supervisor.running import Running, plan
from tests.project.tree import ROOT
from tests.waiting import until

pytestmark = pytest.mark.vm

PAGE = ROOT / "deploy/package/cockpit"
STAND_IN = """
const cockpit = {
  http({ unix }) {
    const call = async (method, path, body) => {
      const answer = await fetch(`/forward${path}`, { method, body, headers: { unix } });
      if (answer.ok) return answer.text();
      throw Object.assign(new Error(answer.statusText), { problem: await answer.text() });
    };
    return {
      get: (path, query = {}) => call("GET", `${path}?${new URLSearchParams(query)}`),
      request: ({ method, path, body }) => call(method, path, body),
    };
  },
};
"""


def test_manifest_names_the_page_and_forbids_other_origins() -> None:
    manifest = json.loads((PAGE / "manifest.json").read_text())
    assert manifest["menu"]["index"]["label"] == "Trivisor"
    assert (PAGE / "index.html").is_file()
    assert manifest["content-security-policy"] == "default-src 'self'"


def test_package_installs_the_page(debian_package: Path) -> None:
    listed = subprocess.run(
        ["dpkg-deb", "--contents", debian_package], capture_output=True, text=True, check=True
    ).stdout
    for path in PAGE.iterdir():
        assert f"./usr/share/cockpit/trivisor/{path.name}" in listed


@pytest_asyncio.fixture
async def node(scratch: Path, end_with_tests: None) -> AsyncIterator[Running]:
    running = Running(plan(scratch))
    await running.start_ready()
    yield running
    await running.stop()


@pytest_asyncio.fixture
async def page_url(node: Running) -> AsyncIterator[str]:
    """Serve the page as Cockpit does, with the stand-in for its library."""
    client = aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(str(node.layout.supervisor_socket))
    )

    async def forward(request: web.Request) -> web.Response:
        if request.headers["unix"] != "/run/trivisor/supervisor.sock":
            return web.Response(status=502, text="not-found")
        url = f"http://supervisor/{request.match_info['path']}"
        async with client.request(
            request.method, url, params=request.query, data=await request.read()
        ) as answer:
            return web.Response(status=answer.status, body=await answer.read())

    async def stand_in(_: web.Request) -> web.Response:
        return web.Response(text=STAND_IN, content_type="text/javascript")

    app = web.Application()
    app.router.add_route("*", "/forward/{path:.*}", forward)
    app.router.add_get("/base1/cockpit.js", stand_in)
    app.router.add_get("/favicon.ico", stand_in)  # Cockpit has one
    app.router.add_static("/trivisor", PAGE)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/trivisor/index.html"
    await client.close()
    await runner.cleanup()


async def test_page_shows_guests_and_the_last_dissent_and_heals(
    node: Running, page_url: str, scratch: Path
) -> None:
    async with Chromium(scratch) as chromium, chromium.page(page_url) as page:
        await page.wait_text("#verdict", "3 of 3 guests vote")
        assert await page.text("#dissent") == "none"
        await node.supervisor.inject("corrupt-reply", "g3", None)
        async with await node.client() as client:
            await client.request("PUT", "/kv/colour", b"blue")
        await until(lambda: node.has_state("g3", "expelled"))
        await page.wait_text("#verdict", "2 of 3 guests vote")
        await page.wait_text("[data-guest=g3]", "expelled", "corrupt-reply")
        await page.wait_text("#dissent", "g3")
        await page.click("[data-guest=g3] button")
        await page.wait_text("#verdict", "3 of 3 guests vote")
        assert page.problems == []
