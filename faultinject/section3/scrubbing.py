"""The experiment `scrubbing`: does rejuvenation remove damage that nobody has noticed?

Each trial is a mission on a node as users start it: three voting guests and a free slot, under its
supervisor.  Two guests are hit, a gap apart, by damage that no reply and no digest shows
(``faultinject.services.latent``).  Then one read shows it.  If both guests are damaged at that
time, they outvote the third, and the node releases a wrong reply: the mission has failed.

Time is counted in requests.  Each of the three places is given to a fresh virtual machine once in
PERIOD requests, a third of a period apart, from a random phase on.  Replacements before the first
hit would remove nothing, and are not carried out; each later one is a real `rejuvenate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deploy.commands.control_client import ask
from deploy.machine.qemu import ram_file
from deploy.node.records import Layout
from faultinject.experiment.design import Arm, Experiment, Outcome, Rig, Trial
from faultinject.faults.functions import pages_of_ram
from faultinject.node_command import run_trivisor
from faultinject.services import latent
from voter.client import Client

__all__ = ["EXPERIMENT", "GAPS", "PERIOD", "Plan", "draw_plan"]

PERIOD = 60
"""Requests in which each place gets a fresh virtual machine once."""
GAPS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.2)
"""Gaps between the two hits, in periods."""
PLACES = 3
DIGESTED = 1100
"""Requests of which at least one voted digest of the state follows (every 1,000)."""
PATIENCE = 120.0
"""Seconds for all guests to vote again between two trials."""
TIMEOUT = 600.0
"""Seconds for one replacement."""
MEMORY_MIB = 128


class Plan(NamedTuple):
    """A mission: at which requests which places are hit, and replaced."""

    first: int  # the place that is hit at time 0
    second: int  # the place that is hit after the gap
    gap: int
    replacements: list[tuple[int, int]]  # (time, place), from 1 to the gap


def draw_plan(seed: int, gap: int, *, period: int = PERIOD) -> Plan:
    """Draw places and phase; a replacement at the time of a hit comes before the hit."""
    draw = random.Random(seed)
    first, second = draw.sample(range(PLACES), 2)
    phase = draw.randrange(period)
    due = [
        (time, place)
        for time in range(1, gap + 1)
        for place in range(PLACES)
        if (time - phase - place * period // PLACES) % period == 0
    ]
    return Plan(first, second, gap, due)


class _Rig:
    """A node under its supervisor, and one client."""

    def __init__(self, layout: Layout, client: Client, facts: Mapping[str, str]) -> None:
        self._layout = layout
        self._client = client
        self._damaged: set[str] = set()
        self._writes = 0
        self.facts = facts

    async def run(self, trial: Trial) -> Outcome:
        """Run one mission from a clean start."""
        await self._clean()
        await self._write(1)
        places = await self._voters()
        kind = str(trial.parameters["kind"])
        if kind == "switch":
            outcome = await self._hit_during_switch(places, random.Random(trial.seed))
        elif kind == "state":
            outcome = await self._spoil_state(places)
        else:
            outcome = await self._two_hits(places, trial, kind)
        return outcome

    async def _two_hits(self, places: list[str], trial: Trial, kind: str) -> Outcome:
        plan = draw_plan(trial.seed, round(float(trial.parameters["gap"]) * PERIOD))
        due = plan.replacements if kind == "scrub" else []
        await self._hit(places[plan.first])
        seconds = []
        for time in range(1, plan.gap + 1):
            await self._write(1)
            for at, place in due:
                if at == time:
                    done = await self._replace(places[place])
                    places[place] = done["slot"]
                    seconds.append(float(done["seconds"]))
        if kind == "reactive":
            await self._write(DIGESTED)
        await self._hit(places[plan.second])
        wrong, vote = await self._probe()
        values = {"replaced": float(len(seconds))}
        if seconds:
            values["replacement_s"] = sum(seconds) / len(seconds)
        return Outcome(event=wrong, values=values, detail={"vote": vote})

    async def _hit_during_switch(self, places: list[str], draw: random.Random) -> Outcome:
        """Hit one machine, old, new or another, at a random moment of a replacement."""
        old = draw.choice(places)
        target = draw.choice([*places, "new"])
        wait = draw.uniform(0.0, 1.0)
        replacing = asyncio.create_task(self._replace(old))
        await asyncio.sleep(wait)  # the moment is part of the trial
        status = await self._status()
        name = status["operation"]["slot"] if target == "new" and status["operation"] else target
        try:
            if name != "new":
                await self._hit(name)
        except (OSError, LookupError) as error:  # it does not run yet, or no longer
            await asyncio.gather(replacing, return_exceptions=True)
            return Outcome(excluded=f"not hit: {error}")
        early, _ = await self._probe()
        results = await asyncio.gather(replacing, return_exceptions=True)
        late, vote = await self._probe()
        failed = isinstance(results[0], BaseException)
        return Outcome(
            event=early or late,
            values={"replacement_failed": float(failed)},
            detail={"target": name, "vote": vote},
        )

    async def _spoil_state(self, places: list[str]) -> Outcome:
        """Replace all machines after a request has spoilt the state that they share."""
        await self._client.request("PUT", latent.PROBE, latent.WRONG)
        for place in places:
            await self._replace(place)
        wrong, vote = await self._probe()
        await self._client.request("PUT", latent.PROBE, b"right")
        return Outcome(event=wrong, detail={"vote": vote})

    # ---- the node

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return await asyncio.to_thread(ask, self._layout, method, path, body, timeout=TIMEOUT)

    async def _status(self) -> dict[str, Any]:
        return dict(await self._ask("GET", "/status"))

    async def _voters(self) -> list[str]:
        guests = (await self._status())["guests"]
        return [guest["name"] for guest in guests if guest["role"] == "voter"]

    async def _replace(self, name: str) -> dict[str, Any]:
        order = {"guest": name, "by": "clone", "share": None}
        done = dict(await self._ask("POST", "/rejuvenate", order))
        self._damaged.discard(name)
        return done

    async def _hit(self, name: str) -> None:
        """Set the switch in a guest's RAM.  Raises OSError or LookupError if it has none."""
        guests = (await self._status())["guests"]
        pid = next((each["pid"] for each in guests if each["name"] == name), None)
        if pid is None:
            raise LookupError(f"{name} has no QEMU")
        self._damaged.add(name)
        await asyncio.to_thread(_set_switch, ram_file(pid, size=MEMORY_MIB << 20))

    async def _probe(self) -> tuple[bool, str]:
        """Read the key; return whether the released value is wrong, and the vote."""
        answer = await self._client.request("GET", latent.PROBE)
        vote = f"{answer.vote.agreed} of {PLACES} agreed"
        return answer.status != 200 or answer.body != b"right", vote

    async def _write(self, number: int) -> None:
        for _ in range(number):
            self._writes += 1
            await self._client.request("PUT", f"/kv/k{self._writes % 100}", b"v")

    async def _clean(self) -> None:
        """Have all guests undamaged, and voting.  Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            await self._all_vote()
            for name in sorted(self._damaged & set(await self._voters())):
                await self._ask("POST", "/rejuvenate", {"guest": name, "by": "in-place"})
                await self._all_vote()
            self._damaged.clear()

    async def _all_vote(self) -> None:
        while True:
            status = await self._status()
            states = [each["state"] for each in status["guests"]]
            if states == ["active"] * PLACES and status["operation"] is None:
                return
            await asyncio.sleep(0.05)  # the supervisor reports to whoever asks


def _set_switch(ram: Path) -> None:
    """Set the switch and read it back.  Raises OSError, LookupError without one."""
    pages = list(pages_of_ram(ram))
    if not pages:
        raise LookupError("its memory has no switch")
    descriptor = os.open(ram, os.O_RDWR)
    try:
        for page in pages:
            os.pwrite(descriptor, b"\1", page + latent.MODE)
            if os.pread(descriptor, 1, page + latent.MODE) != b"\1":
                raise LookupError("its switch does not keep its mode")
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _open(directory: Path, progress: Callable[[str], None]) -> AsyncIterator[Rig]:
    place = directory / "n"
    progress("starting a node")
    try:
        status = json.loads(
            await run_trivisor(
                place, "up", "--json", "--http", "127.0.0.1:0", "--dashboard", "off",
                "--allow-faults", "--service", latent.__file__,
            )
        )  # fmt: skip
        facts = {
            "accel": str(status["accel"]),
            "image": str(status["image"]),
            "node": "3 voting guests and a free slot, under its supervisor",
            "replacement": "trivisor rejuvenate, by clone",
            "time": f"in requests; a period has {PERIOD}",
        }
        async with await Client.connect(f"unix:{place}/native.sock") as client:
            await client.request("PUT", latent.PROBE, b"right")
            yield _Rig(Layout(place), client, facts)
    finally:
        await run_trivisor(place, "down")


_FAILED = "a wrong reply was released"

EXPERIMENT = Experiment(
    name="scrubbing",
    title="Rejuvenation without failure detection: hidden damage in two guests",
    about=(
        "Two guests of a node are hit, a gap apart, by damage that neither replies nor digests "
        "show. Each place gets a fresh virtual machine once in a period, from a random phase on. "
        "A mission fails if the damage of both guests meets in one vote. Time is counted in "
        "requests; replacements after the first hit are real."
    ),
    paper="section 3, proactive rejuvenation with a reincarnation VM",
    arms=(
        *(
            Arm(
                name=f"gap-{gap:g}",
                label=f"gap of {gap:g} periods",
                trials=300,
                event=_FAILED,
                parameters={"kind": "scrub", "gap": gap},
                predicted=max(0.0, 1 - gap),
                source="max(0, 1 - gap/period): the first hit is still there at the second",
                margin=0.1,
            )
            for gap in GAPS
        ),
        Arm(
            name="never", label="no rejuvenation; gap of .5 periods", trials=300, event=_FAILED,
            parameters={"kind": "never", "gap": 0.5}, predicted=1.0, basis="by construction",
            source="nothing removes the first hit", margin=0.03,
        ),
        Arm(
            name="reactive", label="repair of what is noticed; a voted digest between the hits",
            trials=300, event=_FAILED, parameters={"kind": "reactive", "gap": 0.5}, predicted=1.0,
            source="neither replies nor digests show the damage, so nothing is repaired",
            margin=0.03,
        ),
        Arm(
            name="switch", label="one hit during a replacement", trials=400, event=_FAILED,
            parameters={"kind": "switch"}, predicted=0.0,
            source="one damaged machine is outvoted at every moment of the replacement",
            margin=0.02,
        ),
        Arm(
            name="state", label="all replaced after the voted state was spoilt", trials=20,
            event=_FAILED, parameters={"kind": "state"}, predicted=1.0, basis="by construction",
            source="the new machine receives the voted state, with the damage in it", margin=0.2,
        ),
    ),
    open_rig=_open,
    values={
        "replaced": "virtual machines that were replaced in the mission",
        "replacement_s": "seconds of a replacement",
        "replacement_failed": "replacements that failed because of the hit",
    },
)  # fmt: skip
