"""A headless Chromium, driven by its DevTools protocol: pages as users see them."""

from __future__ import annotations

import base64
import functools
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

from deploy.host.spawn import end_with_parent
from tests.waiting import until

__all__ = ["CHROMIUM", "Chromium", "Page"]

CHROMIUM = "/usr/bin/chromium"
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip


class Chromium:
    """A browser process with a profile in ``directory``; `async with` ends it."""

    def __init__(self, directory: Path) -> None:
        self._profile = directory / "chromium"
        self._process: subprocess.Popen[bytes] | None = None
        self._session = aiohttp.ClientSession()
        self._base = ""

    async def __aenter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds; no threads
            [CHROMIUM, *_OPTIONS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=functools.partial(end_with_parent, os.getpid()),  # noqa: PLW1509
            env=os.environ | {"HOME": str(self._profile), "TMPDIR": str(self._profile.parent)},
        )  # fmt: skip
        port = self._profile / "DevToolsActivePort"
        await until(lambda: port.exists() and "\n" in port.read_text(), "chromium listens")
        self._base = f"http://127.0.0.1:{port.read_text().split()[0]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """Open a page in a tab."""
        async with self._session.put(f"{self._base}/json/new?about:blank") as answer:
            target = json.loads(await answer.text())
        async with self._session.ws_connect(
            target["webSocketDebuggerUrl"], max_msg_size=0
        ) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.open(url)
            yield page
            await page.call("Page.close")


class Page:
    """One tab.  ``problems``: errors of its scripts, and what its policy has blocked."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        self.requested: list[str] = []
        """The addresses that it has requested."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                return dict(message["result"])
            self._note(message["method"], message["params"])

    def _note(self, method: str, found: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(found["exceptionDetails"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.problems.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(found["request"]["url"])

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        found = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def text(self, selector: str) -> str:
        """Return the text of an element, "" if there is none."""
        return str(
            await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        )

    async def wait_text(self, selector: str, *parts: str) -> None:
        """Wait until an element's text has all parts."""

        async def seen() -> bool:
            text = await self.text(selector)
            return all(part in text for part in parts)

        await until(seen, f"{selector} has {parts}")

    async def click(self, selector: str) -> None:
        """Click an element as a mouse does; it must be visible."""
        place = await self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left",
                clickCount=1,
            )  # fmt: skip

    async def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind, text in (("keyDown", "\r" if key == "Enter" else ""), ("keyUp", "")):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                windowsVirtualKeyCode=code,
            )  # fmt: skip

    async def show_as(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Give the page a width in pixels, and a preferred colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, width: int) -> bytes:
        """Return a picture (PNG) of the whole page."""
        size = await self.call("Page.getLayoutMetrics")
        clip = {
            "x": 0,
            "y": 0,
            "width": width,
            "height": size["cssContentSize"]["height"],
            "scale": 1,
        }
        found = await self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        return base64.b64decode(found["data"])
