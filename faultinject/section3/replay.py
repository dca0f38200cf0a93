"""The experiment `replay`: was a flaw exploited before it was patched, by whom, and when?

Each trial makes one history on three real guests behind a real voter with a journal: clients of a
ledger with a planted flaw (``faultinject.services.ledger``).  In half of the histories one user
exploits the flaw, one to three times, each time in one of four forms.  Half of the histories
contain failed attempts, which the service rejects.  Then a fourth guest, which keeps running and is
reverted to its clean snapshot, replays the journal, and a predicate file is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from fractions import Fraction
from pathlib import Path

from deploy.replay.predicates import Predicates
from deploy.replay.replica import Replica
from deploy.replay.run import Replay, ReplayReport
from faultinject.campaign.mission.node_fixture import NodeFixture
from faultinject.campaign.mission.voters import MissionVoter
from faultinject.campaign.records import NodeSpec
from faultinject.experiment.design import Arm, Experiment, Outcome, Rig, Trial
from faultinject.section3 import predicates
from faultinject.services import ledger
from voter.client import Client
from voter.journal.reader import JournalReader

__all__ = ["EXPERIMENT", "FORMS", "History", "make_history"]

WRITES = 300
"""Requests of a history."""
USERS = ("ann", "bob", "cal", "dan", "eve", "fay")
FORMS = (" ", "\t", "\N{NO-BREAK SPACE}", "\N{EM SPACE}")
"""White space before the minus sign; the signature's author knows the first one only."""
MOST_EXPLOITS = 3
CLIENTS = 8
"""Requests under way at the same time."""
REPLAYER = "g4"
PATIENCE = 60.0
"""Seconds for the guests to vote, and for the journal to hold all results."""
_LIMITS = {"hang": 10.0, "marker_every": 40, "checkpoint_bytes": 1}
_PREDICATES = Path(predicates.__file__).parent

Request = tuple[str, str]
"""A transfer: user, and body."""


class History:
    """The requests of one history, and which of them exploit the flaw."""

    def __init__(self, requests: list[Request], exploits: frozenset[int]) -> None:
        self.requests = requests
        self.exploits = exploits


def make_history(seed: int, *, exploited: bool, attempts: float) -> History:
    """Draw a history: with probability ``attempts`` it contains failed attempts."""
    draw = random.Random(seed)
    requests = [(draw.choice(USERS), _body(draw, str(draw.randint(1, 20)))) for _ in range(WRITES)]
    places = draw.sample(range(WRITES), 2 * MOST_EXPLOITS)
    exploits: set[int] = set()
    if exploited:
        thief = draw.choice(USERS)
        for place in places[: draw.randint(1, MOST_EXPLOITS)]:
            amount = f"{draw.choice(FORMS)}-{draw.randint(1, 50)}"
            requests[place] = thief, _body(draw, amount)
            exploits.add(place)
    if draw.random() < attempts:
        for place in places[MOST_EXPLOITS : MOST_EXPLOITS + draw.randint(1, MOST_EXPLOITS)]:
            requests[place] = draw.choice(USERS), _body(draw, f"-{draw.randint(1, 50)}")
    return History(requests, frozenset(exploits))


def _body(draw: random.Random, amount: str) -> str:
    order = {"to": draw.choice(USERS), "amount": amount}
    return json.dumps(order, ensure_ascii=False, allow_nan=False)


class _Rig:
    """Three guests behind a voter, and a fourth one that replays."""

    def __init__(self, node: NodeFixture) -> None:
        self._node = node

    @property
    def facts(self) -> Mapping[str, str]:
        facts = self._node.facts
        return {
            "accel": facts.accel,
            "qemu": facts.qemu,
            "image": facts.image,
            "history": "3 guests and a voter with a journal",
            "replay": "a fourth guest, reverted to its snapshot",
        }

    async def run(self, trial: Trial) -> Outcome:
        """Make a history, replay it, and compare what the predicate found with what was done."""
        exploited = bool(trial.parameters["exploited"])
        history = make_history(
            trial.seed, exploited=exploited, attempts=float(trial.parameters["attempts"])
        )
        done, live = await self._execute(history)
        planted = {(seq, user) for place, (seq, user, status) in enumerate(done)
                   if place in history.exploits and status == 200}  # fmt: skip
        if exploited and len(planted) < len(history.exploits):
            return Outcome(excluded="an exploit was not accepted")
        report = await self._replay(str(trial.parameters["predicate"]))
        found = {(each.seq, each.text) for each in report.matches}
        if trial.parameters["event"] == "exact":
            event = found == planted and report.agrees
        else:
            event = bool(found)
        return Outcome(
            event=event,
            values={
                "live_s": live,
                "replay_s": report.seconds,
                "live_per_replay": live / report.seconds,
                "differing_replies": float(report.differing),
                "replies_compared": float(report.compared),
                "digests_met": float(sum(each.same for each in report.digests)),
                "digests_missed": float(sum(not each.same for each in report.digests)),
                "missed_exploits": float(len(planted - found)),
                "false_reports": float(len(found - planted)),
            },
            detail={"planted": sorted(planted), "found": sorted(found)},
        )

    async def _execute(self, history: History) -> tuple[list[tuple[int, str, int]], float]:
        """Send the requests; return number, user and status of each, and the seconds it took."""
        voter = await self._node.start_voter("2/3", journal=True, limits=_LIMITS)
        done: dict[int, tuple[int, str, int]] = {}
        try:
            await voter.all_vote(PATIENCE)
            queue = iter(enumerate(history.requests))
            async with await Client.connect(self._node.client_address) as client:

                async def send() -> None:
                    for place, (user, body) in queue:
                        answer = await client.request(
                            "POST", "/transfer", body.encode(), headers=[("x-user", user)],
                            timeout=PATIENCE,
                        )  # fmt: skip
                        done[place] = answer.vote.seq, user, answer.status

                began = time.monotonic()
                async with asyncio.TaskGroup() as group:
                    for _ in range(CLIENTS):
                        group.create_task(send())
                seconds = time.monotonic() - began
            await _all_written(voter)
        finally:
            await self._node.end_voter()
        return [done[place] for place in sorted(done)], seconds

    async def _replay(self, predicate: str) -> ReplayReport:
        """Revert the fourth guest, and replay the journal in it."""
        reader = JournalReader(self._node.journal)
        job = Replay(
            reader, reader.checkpoints()[0], predicates=Predicates(_PREDICATES / predicate)
        )
        await self._node.machine(REPLAYER).restore()
        address = self._node.link_address(REPLAYER, proxied=False)
        async with Replica(address, ("ledger", 1)) as replica:
            return await job.run(replica)


async def _all_written(voter: MissionVoter) -> None:
    """Wait until the journal has all results.  Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while True:
            journal = (await voter.status())["journal"]
            if journal["synced"] >= journal["position"]:
                return
            await asyncio.sleep(0.01)  # nothing reports the last results: poll


@contextlib.asynccontextmanager
async def _open(directory: Path, progress: Callable[[str], None]) -> AsyncIterator[Rig]:
    spec = NodeSpec(service=str(Path(ledger.__file__)), guests=4, hang=10.0)
    async with NodeFixture.open(spec, directory / "n", progress) as node:
        yield _Rig(node)


_KNOWN = 1 - sum(Fraction(3, 4) ** count for count in range(1, MOST_EXPLOITS + 1)) / MOST_EXPLOITS
"""P(a signature that knows one of four forms finds an exploited history)."""

EXPERIMENT = Experiment(
    name="replay",
    title="Log and replay: was the flaw exploited, by whom, at which sequence numbers?",
    about=(
        "Histories of a ledger with a planted flaw, made by three guests behind a voter, and "
        "replayed from the journal in a fourth guest. A predicate that states the flaw's "
        "condition is compared with signatures of requests. A trial is one history of 300 writes."
    ),
    paper="section 3, monitoring and replay (ReVirt, IntroVirt)",
    arms=(
        Arm(
            name="exploited",
            label="exploited; the flaw's condition",
            trials=100,
            event="all exploits were found with user and number, and nothing else",
            parameters={
                "exploited": True, "attempts": 0.5, "predicate": "ledger_condition.py",
                "event": "exact",
            },
            predicted=1.0,
            source="a replay meets every reply, so the condition is met where it was met",
            margin=0.06,
        ),
        Arm(
            name="clean",
            label="not exploited; the flaw's condition",
            trials=100,
            event="an exploit was reported",
            parameters={
                "exploited": False, "attempts": 0.5, "predicate": "ledger_condition.py",
                "event": "any",
            },
            predicted=0.0,
            source="a rejected attempt does not meet the condition",
            margin=0.06,
        ),
        Arm(
            name="exploited-signature",
            label="exploited; the signature of one form in four",
            trials=100,
            event="an exploit was reported",
            parameters={
                "exploited": True, "attempts": 0.5, "predicate": "ledger_signature.py",
                "event": "any",
            },
            predicted=float(_KNOWN),
            source="1 to 3 exploits, each in one of four forms, of which one is known",
            margin=0.2,
        ),
        Arm(
            name="clean-signature",
            label="not exploited; the signature of any minus sign",
            trials=100,
            event="an exploit was reported",
            parameters={
                "exploited": False, "attempts": 0.5, "predicate": "ledger_minus.py",
                "event": "any",
            },
            predicted=0.5,
            basis="by construction",
            source="half of the histories contain failed attempts",
            margin=0.2,
        ),
    ),
    open_rig=_open,
    values={
        "live_s": "seconds of the live execution",
        "replay_s": "seconds of the replay, without its start",
        "live_per_replay": "seconds live for each second of the replay",
        "differing_replies": "replies that differ from the released ones",
        "replies_compared": "replies compared",
        "digests_met": "checkpoints whose voted digest the replay met",
        "digests_missed": "checkpoints whose voted digest it did not meet",
        "missed_exploits": "exploits that were not reported",
        "false_reports": "reports that were no exploits",
    },
)  # fmt: skip
