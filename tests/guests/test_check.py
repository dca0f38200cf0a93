"""``service check``: shipped services pass; every planted non-determinism is found and named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from guests.check import CheckResult, ServiceFacts, check, describe, format_result
from guests.check.plan import make_workload
from guests.protocol.message import Request, encode_request
from guests.service import ServiceError
from tests.errors import raises
from voter.commands.service import service as command
from voter.commands.terminal import CommandError

EXAMPLES = Path(__file__).parents[2] / "examples"

# A deterministic service; each test changes some lines of it.
CORRECT = """
import datetime, os, random, secrets, time, uuid
from guests.service import Reply, Service

CHECK_REQUESTS = [
    ("POST", "/notes", b"one"), ("POST", "/notes", b"two"), ("POST", "/notes", b"three"),
    ("GET", "/notes", b""), ("GET", "/other", b""),
]
SHARED = []

class Notes(Service):
    name = "notes"

    def __init__(self):
        self.notes = set()
        self.count = 0
        self.extra = 0

    def apply(self, request, context):
        if request.method == "POST":
            self.notes.add(request.body)
            self.count += 1
            #write
            return Reply(201, f"{self.count}")
        #read
        return Reply(200, b",".join(sorted(self.notes)) + b" %d" % self.count)

    def snapshot(self):
        yield b"%d\\n" % self.count
        for note in sorted(self.notes):
            yield note.hex().encode() + b"\\n"

    def restore(self, state):
        count, *notes = state.splitlines()
        self.count, self.notes = int(count), {bytes.fromhex(n.decode()) for n in notes}
"""


@pytest.fixture
def planted(tmp_path: Path) -> object:
    def plant(*changes: tuple[str, str]) -> str:
        source = CORRECT
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        file = tmp_path / "notes.py"
        file.write_text(source)
        return str(file)

    return plant


def run(file: str) -> CheckResult:
    return check(file, requests=60, stop_early=True)


@pytest.mark.parametrize(
    "service", ["kv", "static", str(EXAMPLES / "counter.py"), str(EXAMPLES / "bank.py")]
)
def test_shipped_services_and_examples_pass(service: str) -> None:
    result = check(service, requests=150, seed=3)
    assert result.ok, format_result(result)
    assert result.differences == ()
    assert sum(result.statuses.values()) == 150
    assert "500" not in result.statuses


def test_deterministic_service_passes(planted) -> None:  # type: ignore[no-untyped-def]
    result = run(planted())
    assert result.ok, format_result(result)
    assert "no difference under 14 conditions" in format_result(result)


@pytest.mark.parametrize(
    "condition, new",
    [
        pytest.param("hash seed", "return Reply(200, b','.join(self.notes))", id="set-order"),
        pytest.param("hash seed", "return Reply(200, str(hash(request.path)))", id="hash"),
        pytest.param("clock", "return Reply(200, str(time.time()))", id="time"),
        pytest.param("clock", "return Reply(200, str(time.monotonic_ns()))", id="monotonic"),
        pytest.param("clock", "return Reply(200, time.strftime('%Y'))", id="strftime"),
        pytest.param("clock", "return Reply(200, str(datetime.datetime.now()))", id="now"),
        pytest.param("clock", "return Reply(200, str(datetime.date.today()))", id="today"),
        pytest.param("clock", "return Reply(200, str(datetime.datetime.now().hour))", id="hour"),
        pytest.param("random state", "return Reply(200, str(random.random()))", id="random"),
        pytest.param("random state", "return Reply(200, os.urandom(4))", id="urandom"),
        pytest.param("random state", "return Reply(200, secrets.token_hex())", id="secrets"),
        pytest.param("random state", "return Reply(200, str(uuid.uuid4()))", id="uuid4"),
        pytest.param("restart", "return Reply(200, str(uuid.uuid1()))", id="uuid1"),
        pytest.param("restart", "return Reply(200, str(random.Random().random()))", id="unseeded"),
        pytest.param("restart", "return Reply(200, str(id(self)))", id="id"),
        pytest.param("restart", "return Reply(200, repr(self))", id="repr"),
        pytest.param("restart", "return Reply(200, str(os.getpid()))", id="pid"),
        pytest.param(
            "restart",
            "return Reply(200, str([id(o) for o in {object() for _ in range(9)}]))",
            id="objects",
        ),
    ],
)
def test_reply_that_depends_on_the_machine_is_found(planted, condition: str, new: str) -> None:  # type: ignore[no-untyped-def]
    result = run(planted(("#read", new)))
    assert not result.ok
    first = result.first
    assert first is not None
    assert first.condition.startswith(condition), format_result(result)
    assert first.what == "the replies differ"
    assert first.request.startswith("GET /")
    assert first.expected != first.got
    assert first.hint


def test_first_differing_request_is_shown(planted) -> None:  # type: ignore[no-untyped-def]
    file = planted(("return Reply(201", "return Reply(201, b','.join(self.notes))\n#"))
    result = run(file)
    first = result.first
    assert first is not None
    # A set of one note has one order; the second POST is the first request that can differ.
    assert first.request_number in (2, 3)
    assert first.request.splitlines()[0] == "POST /notes HTTP/1.1"
    text = format_result(result)
    for part in ("NOT deterministic", "condition: hash seed", "one", "two", "sort before use"):
        assert part in text


@pytest.mark.parametrize(
    "condition, what, change",
    [
        pytest.param(
            "plain run", "only reads changed the state", ("#read", "self.count += 1"), id="get"
        ),
        pytest.param(
            "reads left out",
            "the replies differ",
            ("#read", "self.extra += 1; return Reply(200, str(self.extra))"),
            id="hidden-get",
        ),
        pytest.param(
            "restore",
            "the replies differ",
            ("#write", "self.extra += 1; return Reply(201, str(self.extra))"),
            id="forgotten-field",
        ),
        pytest.param(
            "restore",
            "the replies differ",
            ("#write", "SHARED.append(1); return Reply(201, str(len(SHARED)))"),
            id="module-state",
        ),
        pytest.param(
            "restore", "restored state differs", ("int(count)", "int(count) + 1"), id="restore"
        ),
        pytest.param("restore", "restore() failed", ("int(count)", "int(n)"), id="restore-raises"),
        pytest.param(
            "hash seed", "the states (digests) differ", ("in sorted(self", "in (self"), id="order"
        ),
        pytest.param(
            "clock",
            "the states (digests) differ",
            ("#write", "self.count = int(time.time()) // 1000; return Reply(201)"),
            id="time-in-state",
        ),
        pytest.param(
            "plain run",
            "the run ended early",
            ("def restore", "def digest(self): return bytes(32)\n    def restore"),
            id="digest-of-its-own",
        ),
    ],
)
def test_incomplete_state_is_found(  # type: ignore[no-untyped-def]
    planted, condition: str, what: str, change: tuple[str, str]
) -> None:
    result = run(planted(change))
    found = [d for d in result.differences if d.condition.startswith(condition)]
    assert found, format_result(result)
    assert what in found[0].what, format_result(result)


def test_difference_of_states_is_shown(planted) -> None:  # type: ignore[no-untyped-def]
    result = run(planted(("in sorted(self", "in (self")))
    assert result.first is not None
    assert "the snapshots differ from byte" in result.first.detail


def test_request_is_named_when_it_hangs_or_ends_the_process(planted) -> None:  # type: ignore[no-untyped-def]
    result = check(planted(("#read", "time.sleep(99)")), requests=20, timeout=6, stop_early=True)
    assert result.first is not None
    assert "no end within 6 s" in result.first.got
    assert result.first.request.startswith("GET /notes")
    result = check(planted(("#read", "os._exit(7)")), requests=20)
    assert result.first is not None
    assert "ended with status 7" in result.first.got
    assert result.conditions == ("plain run",)
    assert result.first.request_number == 4


def test_weaknesses_of_the_check_are_noted(planted) -> None:  # type: ignore[no-untyped-def]
    result = run(planted(("if request.method", "return Reply(404)\n        if request.method")))
    assert any("define CHECK_REQUESTS" in note for note in result.notes)
    assert any("no request changed the state" in note for note in result.notes)
    result = run(planted(("#read", "raise KeyError")))
    assert any("raise an exception (500)" in note for note in result.notes)


def test_given_workload_replaces_the_generated_one(planted) -> None:  # type: ignore[no-untyped-def]
    workload = [encode_request("POST", "/notes", (), b"x"), b"nonsense"]
    result = check(planted(), workload=workload)
    assert result.ok
    assert result.statuses == {"201": 1, "400": 1}
    with pytest.raises(ValueError, match="at least one"):
        check(planted(), workload=[])


def test_service_that_cannot_be_checked_is_an_error(planted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with raises("TV0407", match=r"absent\.py"):
        check(str(tmp_path / "absent.py"))
    with raises("TV0407", match=r"CHECK_REQUESTS: .* is not"):
        check(planted(('("GET", "/other", b""),', '("GET", "/a b", b""),')))
    with pytest.raises(ServiceError, match=r"CHECK_REQUESTS: 5 is not"):
        check(planted(('("GET", "/other", b""),', "5,")))
    with pytest.raises(ServiceError, match="RuntimeError: no"):
        check(
            planted(
                ("def __init__(self):", "def __init__(self):\n        raise RuntimeError('no')")
            )
        )


def test_workload_is_a_function_of_its_seed() -> None:
    assert make_workload(5, 50) == make_workload(5, 50)
    assert make_workload(5, 50) != make_workload(6, 50)
    own = [encode_request("GET", "/own")]
    assert make_workload(5, 50, own)[0] == own[0]
    for data in make_workload(7, 300, (), ["/items/", "/x?y=1"]):
        Request.decode(data)


def test_command_prints_the_result(planted) -> None:  # type: ignore[no-untyped-def]
    def run_command(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["check", *arguments], standalone_mode=False)

    done = run_command(planted(), "--requests", "20", "--json")
    printed = json.loads(done.output)
    assert (done.return_value, printed["ok"]) == (0, True)
    assert set(printed) == {item.name for item in dataclasses.fields(CheckResult)}
    different = planted(("#read", "return Reply(200, str(os.getpid()))"))
    done = run_command(different, "--requests", "20")
    assert done.return_value == 1
    assert "os.getpid()" in done.output
    assert isinstance(run_command("nothing-of-this-name").exception, CommandError)


def test_service_is_described_without_being_loaded_here(tmp_path: Path) -> None:
    file = tmp_path / "s.py"
    file.write_text(CORRECT.replace('name = "notes"', 'name = "notes"\n    state_format = 7'))
    assert describe(str(file)) == ServiceFacts(name="notes", state_format=7)
    assert describe("kv") == ServiceFacts(name="kv", state_format=1)
    file.write_text("import os\nos._exit(3)\n")
    with raises("TV0407", match="status 3"):
        describe(str(file))
