"""Chance by name: repeatable, independent of its neighbours, and fair."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from faultinject.campaign.planning.draws import Draws, Mix, permutation

__all__: list[str] = []


def test_a_stream_is_its_name_on_every_machine() -> None:
    """These very numbers: a campaign planned by one host is replayed by another."""
    draws = Draws(7, "f1", 3)
    assert [draws.word(), draws.word()] == [2609334249608689518, 11193969298058780297]
    again = Draws(7, "f1", 3)
    assert [again.below(20), again.part(), again.seed()] == [
        18, 0.6068262915845682, 8833148136869171313,
    ]  # fmt: skip
    assert permutation(7, "order", 8) == [2, 7, 5, 3, 0, 1, 4, 6]


def test_other_names_and_seeds_draw_otherwise() -> None:
    names = [(7, "f1", 3), (8, "f1", 3), (7, "f1", 4), (7, "f13"), (7, "f", 13)]
    assert len({Draws(*name).word() for name in names}) == len(names)  # type: ignore[arg-type]


def fair(counts: Counter[str] | Counter[int], shares: dict[str, float] | dict[int, float]) -> bool:
    """Whether counts fit shares; the draws are fixed, so that this never changes its mind."""
    total = sum(counts.values())
    expected = [share * total for share in shares.values()]
    return bool(chisquare([counts[key] for key in shares], expected).pvalue > 1e-3)  # type: ignore[index]


def test_below_is_even() -> None:
    draws = Draws(1, "below")
    counts = Counter(draws.below(7) for _ in range(14_000))
    assert fair(counts, dict.fromkeys(range(7), 1 / 7))


def test_a_mix_follows_its_weights_and_leaves_out_what_has_none() -> None:
    mix, draws = Mix({"crash": 1, "never": 0, "hang": 3}), Draws(1, "mix")
    counts = Counter(draws.pick(mix) for _ in range(8_000))
    assert fair(counts, {"crash": 0.25, "hang": 0.75})
    assert counts["never"] == 0


def test_a_mix_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight above 0"):
        Mix({"crash": 0.0})


def test_samples_are_even_over_sets() -> None:
    draws = Draws(1, "sample")
    counts = Counter("".join(draws.sample("abc", 2)) for _ in range(6_000))
    assert fair(counts, {"ab": 1 / 3, "ac": 1 / 3, "bc": 1 / 3})


@given(st.integers(0, 3000), st.integers(1, 256), st.integers(0, 1000))
def test_what_is_thrown_lands_somewhere(count: int, slots: int, seed: int) -> None:
    thrown = Draws(seed, "spread").spread(count, slots)
    assert sum(number for _, number in thrown) == count
    assert all(0 <= slot < slots and number > 0 for slot, number in thrown)
    assert [slot for slot, _ in thrown] == sorted({slot for slot, _ in thrown})


def test_throws_are_even_over_slots() -> None:
    counts = Counter(dict(Draws(1, "spread").spread(40_000, 20)))
    assert fair(counts, dict.fromkeys(range(20), 1 / 20))


def test_slots_are_1_to_256() -> None:
    with pytest.raises(ValueError, match="257 slots"):
        Draws(1, "spread").spread(1, 257)


@given(st.integers(0, 2**63 - 1), st.integers(0, 500))
def test_a_permutation_has_each_number_once(seed: int, count: int) -> None:
    assert sorted(permutation(seed, "order", count)) == list(range(count))


def test_permutations_are_even() -> None:
    counts = Counter("".join(map(str, permutation(seed, "order", 3))) for seed in range(3_000))
    orders = ("012", "021", "102", "120", "201", "210")
    assert fair(counts, dict.fromkeys(orders, 1 / 6))
