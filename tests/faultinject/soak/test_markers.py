"""Markers are found as gaps between the places of replies."""

from __future__ import annotations

from faultinject.soak.markers import SequenceGaps


def test_gaps_are_the_places_that_no_reply_has() -> None:
    places = SequenceGaps()
    for place in (5, 3, 4, 8, 7):
        places.add(place)
    assert places.newest == 8
    assert places.gaps(2, 8) == [6]
    assert places.gaps(5, 9) == [6, 9]
    assert 7 in places
    assert 6 not in places


def test_time_of_a_place_is_that_of_its_first_reply() -> None:
    times = iter((1.0, 2.0, 3.0))
    places = SequenceGaps(lambda: next(times))
    for place in (4, 5, 4):
        places.add(place)
    assert (places.when(4), places.when(5), places.when(6)) == (1.0, 2.0, None)


def test_forget_drops_places_up_to_one_and_keeps_later_ones() -> None:
    places = SequenceGaps()
    for place in (1, 2, 3):
        places.add(place)
    places.forget(2)
    assert 2 not in places
    assert places.gaps(2, 3) == []
