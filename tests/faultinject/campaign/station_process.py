"""A station in a process of its own: a process can hold one embedded libvirt only.

``python station_process.py DIRECTORY [FUNCTION]``: plans come in as lines of JSON, rows go out.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from faultinject.campaign.mission.station import Station
from faultinject.campaign.records import MissionPlan, StationSpec

__all__: list[str] = []


async def main(directory: Path, function: str = "none") -> None:
    usual = StationSpec(deadline=8.0, hang=3.0)
    asked: dict[str, object] = {"function": function}
    if function != "none":
        asked |= {"service": "static", "vote": "1/2", "guests": 2}
    spec = msgspec.convert(msgspec.to_builtins(usual) | asked, StationSpec)
    async with Station.open(spec, directory) as station:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := await asyncio.to_thread(sys.stdin.readline):
            row = await station.run(msgspec.json.decode(line, type=MissionPlan))
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
