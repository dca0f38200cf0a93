"""Plans: pure, repeatable, drawn as specified, in a random order, and fast."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice

import pytest
from scipy.stats import chisquare

from faultinject.campaign.planning.plan import LIARS, CampaignPlan, missions_for, plan
from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.records import MissionPlan
from faultinject.estimate.intervals import clopper_pearson
from tests.faultinject.campaign.specs import SMALL, small_plan

__all__: list[str] = []


def of(planned: CampaignPlan, name: str) -> list[MissionPlan]:
    """Return the missions of one cell."""
    return [mission for mission in planned.missions if mission.stratum == name]


def even(values: Counter[str] | Counter[int]) -> bool:
    """Return whether all values are equally frequent; the draws are fixed."""
    return bool(chisquare(list(values.values())).pvalue > 1e-3)


def test_plan_is_a_function_of_spec_and_seed() -> None:
    assert list(small_plan().missions) == list(small_plan().missions)
    assert list(small_plan(2).missions) != list(small_plan(1).missions)


def test_plan_has_each_mission_once() -> None:
    planned = small_plan()
    assert [mission.index for mission in planned.missions] == list(range(planned.total))
    order = list(planned.in_order())
    assert [mission.order for mission in order] == list(range(planned.total))
    assert sorted(mission.index for mission in order) == list(range(planned.total))
    assert [planned.index_at(place) for place in range(planned.total)] == [m.index for m in order]


def test_mission_refuses_a_number_that_is_not_planned() -> None:
    for index in (-1, small_plan().total):
        with pytest.raises(IndexError, match="numbered from 0"):
            small_plan().mission(index)


def test_plan_has_the_cells_of_the_spec() -> None:
    planned = small_plan()
    assert {cell.name: cell.missions for cell in planned.cells} == {
        "f0": 20, "f1": 30, "f1-repair": 30, "f2": 40, "f3": 10, "f0-repair": 5, "f2-repair": 5,
        "f3-repair": 5, "g1": 8, "nv1": 6, "dose-flip-ram-0": 2, "dose-flip-ram-0-nv": 2,
        "dose-flip-ram-50": 7, "dose-flip-ram-50-nv": 9, "shot-flip-all-5": 4,
        "shot-flip-all-5-nv": 3, "shot-host-crash": 2,
    }  # fmt: skip
    counts = Counter(mission.stratum for mission in planned.missions)
    assert counts == {cell.name: cell.missions for cell in planned.cells}
    for mission in planned.missions:
        cell = planned.cell_of(mission.index)
        assert (cell.name, cell.design, cell.repair, cell.k, cell.voter_hit) == (
            mission.stratum, mission.design, mission.repair, mission.k, mission.voter_hit,
        )  # fmt: skip


def test_missions_of_a_stratum_hit_its_number_of_guests() -> None:
    planned = small_plan()
    for mission in planned.missions:
        if not planned.cell_of(mission.index).forced:
            continue
        guests = [hit.target for hit in mission.injections if hit.target != "voter"]
        assert len(guests) == len(set(guests)) == mission.k
        assert ("voter" in {hit.target for hit in mission.injections}) == mission.voter_hit
        assert [hit.at for hit in mission.injections] == sorted(
            hit.at for hit in mission.injections
        )
        assert all(0 <= hit.at < mission.length == 20 for hit in mission.injections)
        assert all(hit.target == "g1" for hit in mission.injections if mission.design == "nv")


def big(text: str = SMALL) -> CampaignPlan:
    """Return a plan of many missions with one or two guests hit."""
    text = text.replace("missions = 30", "missions = 6000").replace("missions = 40",
                                                                     "missions = 6000")  # fmt: skip
    return plan(parse(text), 1)


def test_guests_kinds_and_moments_are_drawn_uniformly() -> None:
    hits = [mission.injections[0] for mission in of(big(), "f1")]
    assert even(Counter(hit.target for hit in hits))
    assert even(Counter(hit.at for hit in hits))
    kinds = Counter(hit.kind for hit in hits)
    assert chisquare([kinds["crash"], kinds["corrupt-reply"]], [1500, 4500]).pvalue > 1e-3
    assert len({hit.seed for hit in hits}) == len(hits)
    assert all(0 <= hit.seed < 1 << 63 for hit in hits)


def test_faults_of_two_guests_are_drawn_independently() -> None:
    missions = of(big(), "f2")
    assert even(Counter("".join(h.target for h in sorted(m.injections, key=lambda h: h.target))
                        for m in missions))  # fmt: skip
    kinds = Counter(tuple(sorted(hit.kind for hit in mission.injections)) for mission in missions)
    expected = {("corrupt-reply", "crash"): 6 / 16, ("crash", "crash"): 1 / 16,
                ("corrupt-reply", "corrupt-reply"): 9 / 16}  # fmt: skip
    seen = [kinds[key] for key in expected]
    assert chisquare(seen, [6000 * share for share in expected.values()]).pvalue > 1e-3


def test_lying_guests_tell_the_same_lie_in_the_specified_share() -> None:
    """Alike: one lie at one moment.  Apart: each guest its own."""
    planned = big()
    lying = [m for m in of(planned, "f2") if sum(h.kind in LIARS for h in m.injections) == 2]
    assert all(m.alike is not None for m in lying)
    alike = [m for m in lying if m.alike]
    for mission in alike:
        assert len({(hit.kind, hit.at, hit.seed) for hit in mission.injections}) == 1
    assert all(len({hit.seed for hit in m.injections}) == 2 for m in lying if not m.alike)
    assert chisquare([len(alike), len(lying) - len(alike)]).pvalue > 1e-3
    others = [m for m in planned.missions if sum(h.kind in LIARS for h in m.injections) < 2]
    assert all(mission.alike is None for mission in others)


def test_dose_spreads_its_flips_over_the_mission_in_each_guest() -> None:
    planned = small_plan()
    for mission in of(planned, "dose-flip-ram-50"):
        for name in ("g1", "g2", "g3"):
            mine = [hit for hit in mission.injections if hit.target == name]
            assert sum(hit.dose for hit in mine) == 50
            assert len({hit.at for hit in mine}) == len(mine) > 10
        assert len({hit.seed for hit in mission.injections}) == len(mission.injections)
    for mission in of(planned, "dose-flip-ram-50-nv"):
        assert {hit.target for hit in mission.injections} == {"g1"}
        assert sum(hit.dose for hit in mission.injections) == 50
    assert all(not m.injections and m.k == 0 for m in of(planned, "dose-flip-ram-0"))


def test_shot_is_one_cause_for_all_guests() -> None:
    planned = small_plan()
    (hit,) = of(planned, "shot-flip-all-5")[0].injections
    assert (hit.target, hit.kind, hit.dose) == ("host", "flip-all", 5)
    (hit,) = of(planned, "shot-host-crash")[0].injections
    assert (hit.target, hit.kind) == ("host", "host-crash")
    text = SMALL.replace('kind = "flip-all"', 'kind = "flip-ram"')
    hits = of(plan(parse(text), 1), "shot-flip-ram-5")[0].injections
    assert [hit.target for hit in hits] == ["g1", "g2", "g3"]
    assert len({(hit.kind, hit.at, hit.seed, hit.dose) for hit in hits}) == 1


def test_missions_of_a_stratum_do_not_depend_on_other_strata() -> None:
    """A stratum's missions are drawn from its own name."""
    more = SMALL.replace("missions = 20", "missions = 77")
    for name in ("f2", "g1", "dose-flip-ram-50"):
        before, after = of(small_plan(), name), of(plan(parse(more), 1), name)
        assert [m.injections for m in before] == [m.injections for m in after]


def test_missions_share_a_workload_only_when_it_has_a_seed() -> None:
    assert len({mission.seed for mission in small_plan().missions}) == small_plan().total
    one = plan(parse(f"{SMALL}\n[workload]\nseed = 5\nlength = 7\n"), 1)
    assert {(mission.seed, mission.length) for mission in one.missions} == {(5, 7)}


def test_order_is_random_over_strata() -> None:
    """In the first half of the order there are about half of the missions of each stratum."""
    planned = big()
    half = Counter(m.stratum for m in islice(planned.in_order(), planned.total // 2))
    for cell in planned.cells:
        if cell.missions > 1000:
            assert abs(half[cell.name] / cell.missions - 0.5) < 0.03


def test_extension_adds_missions_and_changes_none() -> None:
    spec = parse(f"extension = 0.5\n{SMALL}")
    short, long = plan(spec, 1), plan(spec, 1, extended=True)
    assert short.first == short.total == long.first
    assert [long.mission(m.index) for m in short.missions] == list(short.missions)
    counts = Counter(mission.stratum for mission in long.missions)
    assert counts["f1"] == 45 and counts["dose-flip-ram-50"] == 7 + 4
    assert {cell.name: cell.missions for cell in long.cells} == counts
    seeds = [mission.seed for mission in long.missions]
    assert len(set(seeds)) == len(seeds)
    assert sorted(m.index for m in long.in_order()) == list(range(long.total))


def test_plan_refuses_a_seed_of_more_than_63_bits() -> None:
    with pytest.raises(ValueError, match="2\\^63"):
        plan(parse(SMALL), 1 << 63)


def test_missions_for_matches_the_exact_interval() -> None:
    missions = missions_for(0.001, 0.05, 4)
    fewer = clopper_pearson(0, missions - 1, 0.05 / 4)
    assert clopper_pearson(0, missions, 0.05 / 4).high <= 0.001 < fewer.high
    bound = plan(parse(SMALL.replace("missions = 20", "bound = 0.01")), 1)
    assert bound.cells[0].missions == missions_for(0.01, 0.05, 9)


def test_plan_of_a_million_missions_takes_seconds() -> None:
    text = SMALL.replace("missions = 20", "missions = 950_000")
    planned = plan(parse(text), 1)
    began = time.process_time()
    assert planned.order_of(planned.total - 1) >= 0
    for index in range(0, planned.total, 100):
        planned.mission(index)
    spent = time.process_time() - began
    assert spent < 10, f"{spent:.1f} s of processor time for the order and a hundredth of them"
