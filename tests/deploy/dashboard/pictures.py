"""Make the dashboard's pictures from a real node: python -m tests.deploy.dashboard.pictures DIR

A node of three guests serves requests for a minute and a half.  One guest lies and is healed, one
is killed and repaired, and one is slow when the pictures are taken: light, dark, and for a phone.
A campaign's figures are posted from the rows that docs/results keeps.
"""

from __future__ import annotations

import asyncio
import io
import json
import lzma
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from deploy.host.scratch import ScratchDirectory
from deploy.host.spawn import python_command, python_environment
from faultinject.campaign.run.interim import interim_results
from faultinject.campaign.run.posting import DashboardPoster
from faultinject.campaign.store.store import Store
from tests.browser import Chromium
from voter.client import Client
from voter.client.errors import RequestError

__all__ = ["main"]

KEPT = Path(__file__).parents[3] / "docs/results/softerrors/campaign.sqlite.xz"
PICTURES = {
    "dashboard": (1280, False), "dashboard-dark": (1280, True), "dashboard-phone": (375, False),
}  # fmt: skip
COLOURS = 128
RATE = 40.0
"""Requests a second."""
BEFORE, BETWEEN = 30.0, 12.0
"""Seconds of load before the first fault, and between two faults."""


async def _trivisor(node: Path, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *python_command("trivisor", *words, "--dir", node), env=python_environment(),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode:
        sys.exit(f"trivisor {' '.join(words)}: exit {process.returncode}")
    return output.decode()


async def _load(node: Path) -> None:
    """Send requests at random times until cancelled."""
    waiting: set[asyncio.Task[object]] = set()
    async with await Client.connect(f"unix:{node}/native.sock") as client:

        async def send(number: int) -> None:
            with suppress(RequestError):
                await client.request("PUT", f"/kv/{number % 100}", b"blue")

        for number in range(1 << 30):
            await asyncio.sleep(random.expovariate(RATE))  # the load is Poisson
            task: asyncio.Task[object] = asyncio.create_task(send(number))
            waiting.add(task)
            task.add_done_callback(waiting.discard)


def _post_campaign(scratch: Path, node: Path) -> None:
    """Post the figures of the kept rows."""
    kept = scratch / "campaign"
    kept.mkdir()
    (kept / "campaign.sqlite").write_bytes(lzma.decompress(KEPT.read_bytes()))
    with Store.open(kept, write=False) as store:
        DashboardPoster(store.meta().title, store.directory, node).post(
            interim_results(store), state="complete", done=store.done, total=store.total
        )


def _save(picture: bytes, path: Path) -> None:
    """Write a PNG of few colours: a quarter of the size."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    method = Image.Quantize.MAXCOVERAGE  # keeps the colours of small marks
    image.quantize(COLOURS, method, 1, dither=Image.Dither.NONE).save(path, optimize=True)


async def _run(scratch: Path, out: Path) -> None:
    node = scratch / "n"
    await _trivisor(
        node, "up", "--allow-faults", "--http", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"
    )
    load = asyncio.create_task(_load(node))
    try:
        async with Chromium(scratch) as chromium:
            link = json.loads(await _trivisor(node, "dashboard", "--json"))["url"]
            async with chromium.page(link) as page:
                await page.wait_text("#status", "3 of 3 guests vote")
                # The times of the faults are the story that the pictures show.
                await asyncio.sleep(BEFORE)
                await _trivisor(node, "inject", "corrupt-reply", "g3")
                await asyncio.sleep(BETWEEN)
                await _trivisor(node, "heal", "g3")
                await asyncio.sleep(BETWEEN)
                await _trivisor(node, "inject", "crash", "g2", "--for", "5")
                await asyncio.sleep(2 * BETWEEN)
                await _trivisor(node, "inject", "slow", "g1")
                await asyncio.to_thread(_post_campaign, scratch, node)
                await asyncio.sleep(BETWEEN)
                await page.wait_text("#campaign", "missions")
                for name, (width, dark) in PICTURES.items():
                    await page.show_as(width, dark=dark)
                    await page.run("new Promise((done) => setTimeout(done, 1500))")  # one sample
                    _save(await page.picture(width), out / f"{name}.png")
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        await _trivisor(node, "down")


def main() -> None:
    """Make the pictures."""
    out = Path(sys.argv[1])
    with ScratchDirectory("p") as scratch:
        asyncio.run(_run(scratch.path, out))


if __name__ == "__main__":
    main()
