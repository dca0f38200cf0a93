"""Open dashboards, as a process: python -m faultinject.bench.dashboard_readers LINK NUMBER

It logs in by the link, opens so many streams, each on a connection of its own, and prints ``ready``
once each is answered or closed.  As many as the supervisor serves are asked for again until they
are served: those of an earlier process may not be closed yet.  It reads them until the end of its
input, and then prints what it saw as JSON: streams, answers 503, connections closed without an
answer, bytes.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import Counter

import aiohttp

from deploy.dashboard.access import REQUEST_HEADER
from deploy.dashboard.server import MOST_STREAMS

__all__ = ["main"]


PAUSE = 0.1
"""Seconds until a stream that was not served is asked for again."""


async def _read(
    session: aiohttp.ClientSession, seen: Counter[str], begun: asyncio.Event, *, insist: bool
) -> None:
    """Read one stream until it is cancelled; with ``insist``, ask until it is served."""
    try:
        answer = await session.get("api/stream")
        while insist and answer.status == 503:
            answer.close()
            await asyncio.sleep(PAUSE)
            answer = await session.get("api/stream")
        async with answer:
            seen["streams" if answer.status == 200 else f"answers {answer.status}"] += 1
            begun.set()
            async for chunk in answer.content.iter_any():
                seen["bytes"] += len(chunk)
    except aiohttp.ClientError:
        seen["closed"] += not begun.is_set()
    finally:
        begun.set()


async def _run(link: str, number: int) -> None:
    base, _, token = link.partition("#")
    origin = base.rstrip("/")
    async with aiohttp.ClientSession(
        base, timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.CookieJar(unsafe=True),  # the host is an IP address
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:  # fmt: skip
        headers = {REQUEST_HEADER: "dashboard", "Origin": origin}
        async with session.post("api/login", json={"token": token}, headers=headers) as answer:
            answer.raise_for_status()
        seen: Counter[str] = Counter()
        begun = [asyncio.Event() for _ in range(number)]
        insist = number <= MOST_STREAMS
        tasks = [asyncio.create_task(_read(session, seen, each, insist=insist)) for each in begun]
        await asyncio.gather(*(each.wait() for each in begun))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    sys.stdout.write(json.dumps(seen, allow_nan=False))


def main() -> None:
    """Run the process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_run(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    main()
