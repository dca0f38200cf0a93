"""Strata of the function f, in guests, and of F, on the host: from the file to the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultinject.campaign.assessment import assign_stratum
from faultinject.campaign.planning.plan import plan
from faultinject.campaign.planning.spec_file import load, parse, shipped
from faultinject.campaign.planning.summary import summarize
from faultinject.campaign.records import InjectionResult, MissionPlan
from faultinject.campaign.store.store import Store
from faultinject.faults import FaultLayer, find
from faultinject.report.gather import gather
from faultinject.results.outcome import Outcome
from tests.errors import raises
from tests.faultinject.campaign.specs import campaign_of, results_of, small_plan

__all__: list[str] = []

GUEST = """
title = "C1"
question = "designs"
[station]
service = "static"
vote = "1/3"
guests = 3
function = "guest"
[faults]
hang = 1
[function_faults]
function-crash = 1
[[strata]]
vote = "1/2"
guests_hit = 0
missions = 20
[[strata]]
vote = "1/2"
guests_hit = 0
function_hit = 1
missions = 20
[[strata]]
vote = "1/2"
guests_hit = 0
function_hit = 2
missions = 20
[[strata]]
vote = "1/2"
guests_hit = 1
function_hit = 1
missions = 20
"""
HOST = """
title = "C2"
question = "designs"
[station]
service = "static"
vote = "1/2"
guests = 2
function = "host"
[faults]
hang = 1
[host_function_faults]
host-function-kill = 1
[[strata]]
vote = "1/2"
guests_hit = 0
missions = 20
[[strata]]
vote = "1/2"
guests_hit = 1
missions = 20
[[strata]]
vote = "1/2"
guests_hit = 2
missions = 20
[[strata]]
vote = "1/2"
guests_hit = 0
host_function_hit = true
missions = 20
"""

KEPT = {
    "commoncause": "b4c9851096e7d6de",
    "inequality4": "fa051d52b3af5ba7",
    "quick": "3a1712d7633b3026",
    "small": "24073460ceddbc25",
    "softerrors": "7249e0055d253933",
}
"""Fingerprints from before there was a function f."""
RESULTS = Path(__file__).parents[4] / "docs" / "results"


@pytest.mark.parametrize("name", KEPT)
def test_fingerprint_of_older_campaigns_stays_the_same(name: str) -> None:
    planned = small_plan() if name == "small" else plan(load(name)[0], 1)
    assert planned.fingerprint[:16] == KEPT[name]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/spec.toml")))
def test_shipped_campaign_is_that_of_the_kept_results(name: str) -> None:
    shipped, kept = load(name)[0], load(RESULTS / name / "spec.toml")[0]
    assert shipped.hash == kept.hash


def test_missions_hit_f_of_further_guests() -> None:
    planned = plan(parse(GUEST), 1)
    assert [cell.name for cell in planned.cells] == [
        "1of2-f0", "1of2-f0-function1", "1of2-f0-function2", "1of2-f1-function1",
    ]  # fmt: skip
    for mission in planned.missions:
        kinds = [find(hit.kind).layer for hit in mission.injections]
        assert kinds.count(FaultLayer.GUEST_FUNCTION) == mission.function_k
        assert (
            len(kinds)
            == mission.k + mission.function_k
            == len({h.target for h in mission.injections})
        )
    words = [each.description for each in summarize(planned).cells]
    assert words[3] == "voted 1/2: 1 guest and f in 1 guest hit"


def test_missions_hit_f_on_the_host() -> None:
    planned = plan(parse(HOST), 1)
    [cell] = [cell for cell in planned.cells if cell.host_function_hit]
    assert cell.name == "1of2-f0-moved"
    missions = [mission for mission in planned.missions if mission.host_function_hit]
    assert len(missions) == 20
    assert {(hit.target, hit.kind) for m in missions for hit in m.injections} == {
        ("function", "host-function-kill")
    }


@pytest.mark.parametrize(
    ("text", "there", "replacement", "message"),
    [
        (GUEST, 'function = "guest"', 'function = "host"', "set function = 'guest'"),
        (GUEST, 'function = "guest"', "", "needs the function f in each guest"),
        (HOST, 'function = "host"', "", "set function = 'host'"),
        (GUEST, "[function_faults]\nfunction-crash = 1", "", r"no \[function_faults\]"),
        (GUEST, "[faults]\nhang = 1", "[faults]\nfunction-hang = 1", r"under \[function_faults\]"),
        (GUEST, "function-crash = 1", "hang = 1", r"does not hit f.*under \[faults\]"),
        (HOST, "host-function-kill = 1", "function-crash = 1", "does not hit a function"),
        (HOST, 'question = "designs"', 'question = "inequality4"', "has no function"),
        (GUEST, "guests_hit = 1\nfunction_hit = 1", "guests_hit = 1\nfunction_hit = 2",
         "give 0 to 1"),
        (GUEST, "guests_hit = 0\nfunction_hit = 1", "guests_hit = 0\nfunction_hit = -1",
         "0 or more"),
        (GUEST, "function_hit = 2", "function_hit = 2\nvoter_hit = true", "without guests_hit"),
        (HOST, 'vote = "1/2"\nguests_hit = 0\nmissions', 'design = "nv"\nguests_hit = 0\nmissions',
         "has no F, and its guest no f"),
    ],
)  # fmt: skip
def test_parse_reports_a_problem_with_a_function(
    text: str, there: str, replacement: str, message: str
) -> None:
    assert there in text
    changed = text.replace(there, replacement, 1)
    if "without" in message:  # else the mixed stratum assigned for it
        changed = changed[: changed.index('[[strata]]\nvote = "1/2"\nguests_hit = 1')]
    with raises("TV0520", match=f"(?s){message}"):
        parse(changed)


def _only(mission: MissionPlan, count: int) -> tuple[InjectionResult, ...]:
    results = results_of(mission)
    lost = tuple(results_of(mission, applied=False)[count:])
    return (*results[:count], *lost)


def test_assign_stratum_counts_f_and_never_changes_the_policy() -> None:
    other = GUEST.replace('vote = "1/2"\nguests_hit = 0\nmissions', 'vote = "1/1"\nguests_hit = 0\n'
                          'missions', 1)  # fmt: skip
    text = f'{other}[[strata]]\nvote = "1/1"\nguests_hit = 1\nmissions = 5\n' + "".join(
        f'[[strata]]\nvote = "1/2"\nguests_hit = {k}\nmissions = 5\n' for k in (0, 1)
    )
    planned = plan(parse(text), 1)
    both = next(m for m in planned.missions if (m.k, m.function_k) == (1, 1))
    assigned = assign_stratum(both, _only(both, 1), (), planned.cells)
    first = find(both.injections[0].kind).layer is FaultLayer.GUEST_FUNCTION
    assert assigned.stratum == ("1of2-f0-function1" if first else "1of2-f1")
    assert not assigned.excluded


@pytest.mark.parametrize("name", ["moved-guest", "moved-host", "moved-lies"])
def test_shipped_relocation_campaigns_have_all_strata(name: str) -> None:
    assert name in shipped()
    spec, _ = load(name)
    for vote in {stratum.vote for stratum in spec.strata}:
        here = [s for s in spec.strata if s.vote == vote]
        pure = {s.function_hit if name != "moved-host" else s.guests_hit for s in here
                if not s.host_function_hit and 0 in (s.guests_hit, s.function_hit)}  # fmt: skip
        assert pure == set(range(spec.guests_of(vote or "") + 1))
        assert (name == "moved-host") == any(s.host_function_hit for s in here)


def store_of(directory: Path, text: str, wrong: str = "") -> Store:
    """Return a campaign that ended as the paper predicts, except one stratum's missions failed."""
    spec = parse(text)

    def outcome(m: MissionPlan) -> Outcome:
        works = m.k + m.function_k < spec.guests_of(m.vote) and not m.host_function_hit
        return Outcome.CORRECT if works and m.stratum != wrong else Outcome.DETECTED

    return campaign_of(directory, text, outcome)


def test_report_counts_a_guest_whose_f_fails_as_failed(tmp_path: Path) -> None:
    store_of(tmp_path / "c", GUEST).close()
    found = gather(tmp_path / "c")
    [node] = found.designs
    assert [(share.count, share.of) for share in node.failed] == [(0, 20), (0, 20), (40, 40)]
    labels = {each.name: each.label for each in found.strata}
    assert labels["1of2-f1-function1"] == "f_2 1/2"
    assert {kind.kind for kind in found.kinds} == {"hang", "function-crash"}


def test_report_counts_f_on_the_host_as_the_layer_under_the_guests(tmp_path: Path) -> None:
    store_of(tmp_path / "c", HOST).close()
    found = gather(tmp_path / "c")
    [node] = found.designs
    assert [(share.count, share.of) for share in node.failed] == [(0, 20), (0, 20), (20, 20)]
    [stratum] = [each for each in found.strata if each.host_function_hit]
    assert (stratum.label, stratum.paper, stratum.failed.count) == ("g_0 1/2", 1.0, 20)
    [kind] = [each for each in found.kinds if each.hit == "voter"]
    assert kind.kind == "host-function-kill"
