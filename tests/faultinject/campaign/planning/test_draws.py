"""Named random draws: repeatable, independent of each other, uniform."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from faultinject.campaign.planning.draws import Draws, permutation

__all__: list[str] = []


def test_a_stream_is_the_same_on_every_machine() -> None:
    """Exactly these numbers: one host replays what another planned."""
    draws = Draws(7, "f1", 3)
    assert [draws.word(), draws.word()] == [2609334249608689518, 11193969298058780297]
    again = Draws(7, "f1", 3)
    assert [again.below(20), again.part(), again.seed()] == [
        18, 0.6068262915845682, 8833148136869171313,
    ]  # fmt: skip
    assert permutation(7, "order", 8) == [2, 7, 5, 3, 0, 1, 4, 6]


def test_streams_of_other_names_differ() -> None:
    names = [(7, "f1", 3), (8, "f1", 3), (7, "f1", 4), (7, "f13"), (7, "f", 13)]
    assert len({Draws(*name).word() for name in names}) == len(names)  # type: ignore[arg-type]


def fair(counts: Counter[str] | Counter[int], shares: dict[str, float] | dict[int, float]) -> bool:
    """Return whether counts fit shares; the draws are fixed, so the test is stable."""
    total = sum(counts.values())
    expected = [share * total for share in shares.values()]
    return bool(chisquare([counts[key] for key in shares], expected).pvalue > 1e-3)  # type: ignore[index]


@given(st.integers(0, 3000), st.integers(1, 256), st.integers(0, 1000))
def test_spread_distributes_all(count: int, slots: int, seed: int) -> None:
    spread = Draws(seed, "spread").spread(count, slots)
    assert sum(number for _, number in spread) == count
    assert all(0 <= slot < slots and number > 0 for slot, number in spread)
    assert [slot for slot, _ in spread] == sorted({slot for slot, _ in spread})


def test_spread_is_uniform_over_slots() -> None:
    counts = Counter(dict(Draws(1, "spread").spread(40_000, 20)))
    assert fair(counts, dict.fromkeys(range(20), 1 / 20))


@given(st.integers(0, 2**63 - 1), st.integers(0, 500))
def test_permutation_has_each_number_once(seed: int, count: int) -> None:
    assert sorted(permutation(seed, "order", count)) == list(range(count))


def test_permutation_is_uniform() -> None:
    counts = Counter("".join(map(str, permutation(seed, "order", 3))) for seed in range(3_000))
    orders = ("012", "021", "102", "120", "201", "210")
    assert fair(counts, dict.fromkeys(orders, 1 / 6))
