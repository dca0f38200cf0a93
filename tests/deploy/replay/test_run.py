"""A replay by a process that stands in for the guest: what agrees, differs, matches, ends."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from deploy.replay.predicates import Predicates
from deploy.replay.replica import Replica
from deploy.replay.run import Replay, ReplayReport
from guests.answer import answer
from guests.context import Context
from guests.protocol.message import encode_request
from guests.service import load
from guests.services.kv import KeyValue
from tests.deploy.replay.journals import JournalMaker, make_journal, put
from tests.errors import raises
from tests.voter.node import EXEC_KV
from voter.journal import Directory
from voter.journal.reader import JournalReader
from voter.journal.revert import apply_revert, plan_revert

pytestmark = pytest.mark.asyncio

MORTAL = """
import os
from guests.service import Reply, Service

class Mortal(Service):
    name = "mortal"

    def __init__(self):
        self.count = 0

    def apply(self, request, context):
        if request.body == b"die":
            os._exit(3)
        self.count += 1
        return Reply(200, f"{self.count} {context.random.random()} {context.time}")

    def snapshot(self):
        yield b"%d" % self.count

    def restore(self, state):
        self.count = int(state or b"0")
"""


async def replay(
    directory: Path,
    *,
    start: int = 0,
    until: int | None = None,
    predicate: Path | None = None,
    state_every: int | None = None,
    link: str = EXEC_KV,
    service: tuple[str, int] | None = ("kv", 1),
) -> ReplayReport:
    """Replay a journal by a process."""
    reader = JournalReader(directory)
    chosen = next(each for each in reader.checkpoints() if each.seq == start)
    job = Replay(
        reader,
        chosen,
        until,
        predicates=Predicates(predicate) if predicate else None,
        state_every=state_every,
    )
    async with Replica(link, service) as replica:
        return await job.run(replica)


def steps(maker: JournalMaker, rounds: int = 5, each: int = 100) -> Iterable[None]:
    """Write rounds of requests with a checkpoint after each."""
    for number in range(rounds):
        for at in range(each):
            maker.write(put(f"key-{at % 7}", f"value-{number}-{at}"), f"client-{at % 3}")
        yield


async def test_an_honest_history_agrees_in_every_reply_and_digest(tmp_path: Path) -> None:
    await make_journal(tmp_path, steps)
    report = await replay(tmp_path)
    assert (report.writes, report.compared, report.differing) == (500, 500, 0)
    assert [each.seq for each in report.digests] == [101, 202, 303, 404, 505]
    assert report.agrees and report.matching == 0
    assert report.live_seconds == pytest.approx(0.5, abs=0.02)
    assert (report.start, report.last) == (0, 504)
    part = await replay(tmp_path, start=202, until=350)
    assert (part.writes, part.last, part.agrees) == (147, 350, True)
    assert [each.seq for each in part.digests] == [303]


async def test_a_released_lie_and_what_follows_from_it_are_reported(tmp_path: Path) -> None:
    def fill(maker: JournalMaker) -> Iterable[None]:
        maker.write(put("a", "1"))
        maker.write(put("a", "2"), "eve", lie=b"HTTP/1.1 200 OK\r\n\r\nlie")
        maker.write(put("a", "3"), settled=False)
        maker.write(put("b", "deadly"), void=True)
        yield

    await make_journal(tmp_path, fill)
    report = await replay(tmp_path)
    assert (report.writes, report.compared, report.voided, report.unsettled) == (4, 3, 1, 1)
    (found,) = report.differences
    assert (found.seq, found.caller, found.request, found.kind) == (2, "eve", "PUT /kv/a", "reply")
    assert "lie" in found.released and found.replayed.startswith("20")
    assert not report.agrees and report.digests[0].same


async def test_a_state_that_was_not_the_voted_one_is_reported(tmp_path: Path) -> None:
    def fill(maker: JournalMaker) -> Iterable[None]:
        maker.write(put("a", "1"))
        yield
        other = KeyValue()
        answer(other, put("a", "9"), Context(1, 0, bytes(8), "ann"))
        maker.service.restore(b"".join(other.snapshot()))  # damage that no reply shows
        maker.write(put("b", "1"))
        yield
        maker.write(put("c", "1"))

    await make_journal(tmp_path, fill)
    report = await replay(tmp_path)
    assert [(each.seq, each.same) for each in report.digests] == [(2, True), (4, False)]
    assert report.differing == 0 and not report.agrees


async def test_predicates_find_who_exploited_a_flaw_and_when(tmp_path: Path) -> None:
    def fill(maker: JournalMaker) -> Iterable[None]:
        for at in range(60):
            if at in (20, 41):
                maker.write(encode_request("PUT", "/kv/..%2Fpasswd", (), b"root"), "eve")
            else:
                maker.write(put("a", str(at)))
            if at % 30 == 29:
                yield

    await make_journal(tmp_path / "j", fill)
    predicate = tmp_path / "predicate.py"
    predicate.write_text(
        "def request(context):\n"
        "    if b'..' in context.path:\n"
        "        return f'traversal by {context.method}'\n"
        "def reply(context):\n"
        "    return context.status >= 500 or context.same is False\n"
        "def state(context):\n"
        "    return 'has passwd' if b'passwd' in context.state else ''\n"
    )
    report = await replay(tmp_path / "j", predicate=predicate, state_every=10)
    found = [(each.predicate, each.seq, each.caller) for each in report.matches]
    # The marker of the first checkpoint has a number, too: 31.
    assert [each for each in found if each[0] == "request"] == [
        ("request", 21, "eve"), ("request", 43, "eve"),
    ]  # fmt: skip
    states = [seq for name, seq, _ in found if name == "state"]
    assert states == [31, 41, 51, 62], "every 10 writes; the 30th and 60th are at a checkpoint"
    assert report.callers == {"eve": 2}
    assert report.matches[0].text == "traversal by PUT"
    assert report.agrees


async def test_a_predicate_that_fails_is_named_with_line_and_number(tmp_path: Path) -> None:
    await make_journal(tmp_path / "j", steps)
    predicate = tmp_path / "predicate.py"
    predicate.write_text("def reply(context):\n    if context.seq == 7:\n        return 1 / 0\n")
    with raises("TV0852", match=r"reply\(\) failed at sequence number 7: line 3: ZeroDivision"):
        await replay(tmp_path / "j", predicate=predicate)
    predicate.write_text("def reply(context:\n")
    with raises("TV0851", match="line 1: SyntaxError"):
        Predicates(predicate)
    predicate.write_text("def replies(context): pass\n")
    with raises("TV0851", match="none of the functions request, reply, state"):
        Predicates(predicate)


async def test_another_service_is_refused_before_anything_is_executed(tmp_path: Path) -> None:
    await make_journal(tmp_path, steps)
    with raises("TV0853", match="runs kv with state format 1, the journal was written by other"):
        await replay(tmp_path, service=("other", 1))


async def test_a_write_that_ends_the_service_is_found_and_the_rest_is_replayed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mortal.py"
    file.write_text(MORTAL)
    service = load(str(file))()

    def fill(maker: JournalMaker) -> Iterable[None]:
        for at in range(300):
            if at in (120, 200):  # the majority survived it
                maker.write(b"PUT / HTTP/1.1\r\ncontent-length: 3\r\n\r\ndie", void=at == 200)
            else:
                maker.write(encode_request("PUT", "/", (), b"x"))
            if at % 100 == 99:
                yield

    class Surviving(type(service)):  # type: ignore[misc]
        def apply(self, request, context):  # type: ignore[no-untyped-def]
            if request.body == b"die":
                request.body = b"live"
                self.count -= 1
            return super().apply(request, context)

    await make_journal(tmp_path / "j", fill, service=Surviving())
    link = EXEC_KV.replace("--service kv", f"--service {file}")
    assert sys.executable in link
    report = await replay(tmp_path / "j", link=link, service=("mortal", 1))
    assert [(each.seq, each.kind) for each in report.differences] == [(122, "ended")]
    assert (report.writes, report.voided, report.compared) == (300, 1, 299)
    assert [each.same for each in report.digests] == [True, True, True]


async def test_a_journal_that_was_reverted_is_replayed_as_the_guests_lived_it(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "j"
    await make_journal(directory, steps)
    plan = plan_revert(directory, 250)
    assert plan.checkpoint == 202
    files = Directory(directory)
    await apply_revert(files, directory, plan)
    files.close()
    state = KeyValue()
    _, kept = JournalReader(directory).load(JournalReader(directory).checkpoints()[-1])
    state.restore(kept)

    def more(maker: JournalMaker) -> Iterable[None]:
        maker.seq = plan.seq
        for at in range(50):
            maker.write(put(f"key-{at % 7}", f"after-{at}"))
        yield

    await make_journal(directory, more, service=state)
    report = await replay(directory)
    assert (report.reverts, report.writes, report.agrees) == ([plan.seq], 550, True)
    assert [each.seq for each in report.digests] == [101, 202, 303, 404, 505, plan.seq + 51]
    later = await replay(directory, start=plan.seq)
    assert (later.reverts, later.writes, later.agrees) == ([], 50, True)


async def test_a_replica_that_ends_each_time_or_says_nothing_is_an_error(tmp_path: Path) -> None:
    await make_journal(tmp_path, steps)
    reader = JournalReader(tmp_path)
    job = Replay(reader, reader.checkpoints()[0])
    async with Replica("exec:sleep 1000", None, silence=0.2) as replica:
        with raises("TV0854", match="has not answered for"):
            await job.run(replica)
