"""Campaign files: shipped ones are valid; problems are reported with line and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.strict_toml import SpecError
from faultinject.campaign.planning.spec import Points, Range
from faultinject.campaign.planning.spec_file import load, parse, shipped
from faultinject.faults import CATALOGUE, FaultLayer
from tests.errors import raises
from tests.faultinject.campaign.specs import SMALL

__all__: list[str] = []


def refusal(text: str) -> str:
    """Return the message about an invalid file."""
    with pytest.raises(SpecError) as caught:
        parse(text, "mine.toml")
    return str(caught.value)


def line_of(text: str, words: str, number: int = 0) -> int:
    """Return the line that contains some words."""
    return [n for n, line in enumerate(text.splitlines(), 1) if words in line][number]


@pytest.mark.parametrize("name", shipped())
def test_load_reads_a_shipped_campaign_by_name(name: str) -> None:
    spec, text = load(name)
    assert parse(text) == spec
    assert name in shipped()
    assert load(f"{name}.toml")[0] == spec


def test_inequality4_has_the_reference_strata() -> None:
    spec, _ = load("inequality4")
    off = [s for s in spec.strata if s.repair is None and s.design == "voted"]
    assert [s.missions for s in off] == [8000, 6000, 1500, 700, 500, 500]
    assert [(s.guests_hit, s.voter_hit) for s in off[4:]] == [(0, True), (1, True)]
    assert {s.guests_hit for s in spec.strata if s.repair == "on"} == {0, 1, 2, 3}
    links = sum(w for kind, w in spec.faults.items() if CATALOGUE[kind].layer is FaultLayer.LINK)
    assert links <= sum(spec.faults.values()) / 2, "at least half of the hits on guests themselves"


def test_hash_depends_on_the_meaning_only() -> None:
    spec = parse(SMALL)
    assert parse(f"# a comment\nworkers = 7\n{SMALL}\n").hash == spec.hash
    assert parse(SMALL.replace("missions = 30", "missions = 31")).hash != spec.hash
    assert parse(SMALL.replace("alike = 0.5", "alike = 0.4")).hash != spec.hash


def test_kinds_are_those_that_missions_may_have() -> None:
    assert parse(SMALL).kinds == {
        "crash", "corrupt-reply", "voter-kill", "flip-ram", "flip-all", "host-crash",
    }  # fmt: skip


def test_alpha_look_is_halved_by_an_extension() -> None:
    assert parse(SMALL).alpha_per_analysis == 0.05
    assert parse(f"extension = 0.5\n{SMALL}").alpha_per_analysis == 0.025


def test_range_includes_both_ends() -> None:
    points = Points(rm=Range(start=0.1, stop=0.5, step=0.1), rv=(0.9,), rh=(1.0, 0.99))
    assert points.axis("rm") == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert points.grid()[:2] == ((0.1, 0.9, 1.0), (0.1, 0.9, 0.99))
    with pytest.raises(ValueError, match="step above 0"):
        Range(start=0, stop=1, step=0)


def test_load_suggests_a_name_when_there_is_no_such_file(tmp_path: Path) -> None:
    with raises("TV0521", match="did you mean 'quick'"):
        load("qick.toml")
    with raises("TV0521", match="cannot be read"):
        load(tmp_path)


def test_parse_reports_all_problems_together() -> None:
    words = refusal(SMALL.replace("alike = 0.5", "alike = 1.5").replace("crash = 1", "crsh = 1"))
    assert len(words.splitlines()) == 2


# (text of SMALL, its replacement, the message)
WRONG = [
    ("alike = 0.5", "alike = -1", "alike -1.0: 0 to 1 (a share)"),
    ("alike = 0.5", "alpha = 0.9", "alpha 0.9: 0.000001 to 0.5"),
    ("alike = 0.5", "alpa = 0.9", "unknown key `alpa`"),
    ("alike = 0.5", "workers = 0", "workers 0: 1 to 1024"),
    ("alike = 0.5", "extension = 2", "extension 2.0: 0 to 1"),
    ("alike = 0.5", 'question = "why"', "not TOML"),  # a key twice
    ('vote = "2/3"', 'vote = "2/4"', "two different replies could both win"),
    ('vote = "2/3"', 'vote = "3/5"', "needs 5 guests, not 3"),
    ("guests = 3", "guests = 3\nmemory = 3", "64 to 65536 MiB"),
    ("guests = 3", "guests = 3\nhang = 9.0", "below deadline (6.0 s)"),
    ("guests = 3", 'guests = 3\nservice = "kw"', "no service 'kw': give one of kv, poisoned"),
    ("guests = 3", "guests = 3\nssh = 1", "expected `bool`, got `int`"),
    ("crash = 1", "crsh = 1", "no fault 'crsh': did you mean 'crash'?"),
    ("crash = 1", "crash = -1", "a weight is 0 or more"),
    ("crash = 1", "slow = 1", "slow need not make the guest fail"),
    ("crash = 1", "flip-ram = 1", "give one of crash, hang"),
    ("crash = 1", "flip-ram = 1", "or use it as a dose"),
    ("voter-kill = 1", "voter-flip = 1", 'use it with question = "softerrors"'),
    ("crash = 1", "voter-kill = 1", "does not hit a guest but a voter"),
    ("crash = 1", "service-stop = 1", "set ssh = true in [station]"),
    ("voter-kill = 1", "crash = 1", "does not hit a voter but a guest"),
    ("guests_hit = 3", "guests_hit = 4", "the node has 3 guests, give 0 to 3"),
    ("missions = 20", "missions = 0", "missions 0: 1 to"),
    ("missions = 20", "missions = 20\nbound = 0.01", "give either missions"),
    ("missions = 20", 'missions = "a"', "expected `int | null`, got `str`"),
    ("missions = 20", "missons = 20", "unknown key `missons`"),
    ("voter_hit = true", "voter_hit = false", "the same stratum as number"),
    ('design = "nv"', 'design = "nv"\nvoter_hit = true', "no voter to hit"),
    ('design = "nv"', 'design = "nv"\nrepair = "on"', "has no repair"),
    ("flips = 50", "flips = -1", "flips -1: 0 to"),
    ("flips = 50", "flips = 0", "is there already"),
    ("flips = 50", 'flips = 50\nkind = "crash"', "crash has no dose: give one of flip-ram"),
    ('kind = "flip-all"', 'kind = "voter-kill"', "hits the voter alone"),
    ('kind = "flip-all"', 'kind = "poison"', "set service = 'poisoned' in [station]"),
    ("flips = 5\n", "flips = 0\n", "flips 0: 1 to"),
]


@pytest.mark.parametrize(
    ("there", "replacement", "message"), WRONG, ids=[message for *_, message in WRONG]
)
def test_parse_reports_a_problem(there: str, replacement: str, message: str) -> None:
    assert there in SMALL
    assert message in refusal(SMALL.replace(there, replacement, 1))


def test_parse_reports_the_line_in_the_right_table() -> None:
    text = SMALL.replace("missions = 10", "missions = -10")
    assert f"line {line_of(text, 'missions = -10')}: missions -10" in refusal(text)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("rm = [0.5, 1.2]", "rm 1.2: 0 to 1 (a probability)"),
        ("rv = []", "rv: no value"),
        ("rh = {start = 0.5, stop = 0.4, step = 0.1}", "a grid needs a step above 0"),
    ],
)
def test_parse_reports_invalid_operating_points(points: str, message: str) -> None:
    text = f"{SMALL}\n[points]\n{points}\n"
    words = refusal(text)
    assert message in words
    assert re.search(rf"line ({line_of(text, points)}|{line_of(text, '[points]')}):", words)


def test_parse_reports_invalid_margins() -> None:
    assert "a margin above 0" in refusal(f"{SMALL}\n[margins]\nu = 0.0\n")
    assert "the lower first" in refusal(f"{SMALL}\n[margins]\nq = [0.5, 0.1]\n")


def test_parse_reports_strata_that_cannot_be_combined() -> None:
    words = refusal(SMALL.replace("guests_hit = 3\nmissions", "guests_hit = 3\nvoter_hit = true\n"
                                  "missions"))  # fmt: skip
    assert "without guests_hit (with function_hit) = 3 (voter not hit, repair off)" in words


def test_parse_reports_hits_without_a_mix_of_faults() -> None:
    text = SMALL.replace("[faults]\ncrash = 1\ncorrupt-reply = 3\n", "")
    assert "there is no [faults] with kinds and weights" in refusal(text)
    text = SMALL.replace("[voter_faults]\nvoter-kill = 1\n", "")
    assert "there is no [voter_faults]" in refusal(text)


def test_parse_reports_missions_that_cannot_answer_the_question() -> None:
    head = 'title = "t"\nquestion = "{}"\n'
    assert "give [[doses]] with both voted and nv" in refusal(head.format("softerrors"))
    assert "needs [[shots]] with missions" in refusal(head.format("commoncause"))
    assert "needs [[strata]] without voter_hit" in refusal(head.format("inequality4"))


def test_parse_reports_a_canary_without_a_store() -> None:
    text = SMALL.replace("guests = 3", 'guests = 3\nservice = "static"')
    assert "corrupt-state writes a canary key" in refusal(
        text.replace('kind = "host-crash"', 'kind = "corrupt-state"')
    )


def test_mix_of_requests_changes_the_hash_only_when_given() -> None:
    before = parse(SMALL)
    with_mix = parse(SMALL + "\n[workload]\nmix = {get = 1, put = 3}\n")
    assert before.node == before.station
    assert with_mix.node.mix == {"get": 1, "put": 3}
    assert with_mix.hash != before.hash
    assert parse(SMALL + "\n[workload]\nlength = 20\n").hash == before.hash


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("{gett = 1}", "no request 'gett': did you mean 'get'?"),
        ("{get = -1, put = 1}", "get = -1.0: a weight is 0 or more"),
        ("{get = 0}", "give at least one kind a weight above 0"),
    ],
)
def test_parse_reports_an_invalid_mix_of_requests(mix: str, message: str) -> None:
    assert message in refusal(f"{SMALL}\n[workload]\nmix = {mix}\n")
    assert "put it under [workload]" in refusal(
        SMALL.replace("guests = 3", "guests = 3\nmix = {get = 1}")
    )


EVERY_NUMBER = """\
title = "x"
question = "inequality4"
alike = 0.5
alpha = 0.05
extension = 0.1
workers = 2
[station]
guests = 3
vote = "2/3"
memory = 128
keys = 100
size = 64
deadline = 5.0
hang = 1.0
[workload]
length = 20
seed = 5
mix.get = 1
[faults]
crash = 1
[voter_faults]
voter-kill = 1
[points]
rm = [0.5, 0.9]
rv = {start = 0.5, stop = 0.9, step = 0.1}
rh = [1.0]
[margins]
u = 0.1
q = [0.05, 0.5]
rv = 0.005
[[strata]]
guests_hit = 0
missions = 10
function_hit = 0
[[strata]]
guests_hit = 1
missions = 10
[[strata]]
guests_hit = 2
bound = 0.1
[[strata]]
guests_hit = 3
missions = 10
[[doses]]
flips = 100
voted = 5
nv = 5
[[shots]]
kind = "flip-all"
missions = 5
nv = 5
flips = 1
"""
"""A campaign with each key that is a number."""


NUMBERS = list(re.finditer(r"(?<![\w\"/.])\d[\d.]*(?![\w\"/.])", EVERY_NUMBER))


@pytest.mark.parametrize("place", NUMBERS, ids=lambda found: str(found.start()))
def test_absurd_number_is_an_error_of_its_line(place: re.Match[str]) -> None:
    parse(EVERY_NUMBER)
    line = EVERY_NUMBER.count("\n", 0, place.start()) + 1
    for absurd in ("nan", "inf", "-inf", "-1", "1e400", str(10**30), str(2**63)):
        text = EVERY_NUMBER[: place.start()] + absurd + EVERY_NUMBER[place.end() :]
        with raises("TV0520", match=rf"campaign(, line {line}\b|: points)"):
            parse(text)


OWN_SERVICE = """
from guests.service import Reply, Service

CHECK_REQUESTS = [("GET", "/", b"")]

class Own(Service):
    def apply(self, request, context):
        return Reply(200)
"""


@pytest.mark.parametrize(
    ("source", "mix", "found"),
    [
        (OWN_SERVICE, "", None),
        (OWN_SERVICE, "mix = { get = 1 }", r"line \d+: mix: the requests are"),
        (OWN_SERVICE.replace('b"")]', '1, 2, 3)]'), "", r"line \d+: CHECK_REQUESTS: .*is not"),
        ("import nothing_of_that_name", "", r"line \d+: .*own.py, line 1, cannot be imported"),
    ],
)  # fmt: skip
def test_service_of_a_campaign_may_be_a_file_with_its_own_requests(
    tmp_path: Path, source: str, mix: str, found: str | None
) -> None:
    (tmp_path / "own.py").write_text(source)
    station = f'[station]\nservice = "{tmp_path / "own.py"}"'
    text = SMALL.replace("[station]", station) + f"\n[workload]\n{mix}\n"
    text = text.replace("corrupt-state = 1\n", "")
    if found is None:
        assert parse(text).station.service.endswith("own.py")
    else:
        assert re.search(found, refusal(text))
