"""Places that no request took are found, and old ones are dropped."""

from __future__ import annotations

from faultinject.soak.places import SequenceGaps


def test_holes_are_the_places_that_no_request_took() -> None:
    places = SequenceGaps()
    for place in (5, 3, 4, 8, 7):
        places.add(place)
    assert places.newest == 8
    assert places.holes(2, 8) == [6]
    assert places.holes(5, 9) == [6, 9]
    assert 7 in places
    assert 6 not in places


def test_time_of_a_reply_is_that_of_its_first_release() -> None:
    times = iter((1.0, 2.0, 3.0))
    places = SequenceGaps(lambda: next(times))
    for place in (4, 5, 4):
        places.add(place)
    assert (places.when(4), places.when(5), places.when(6)) == (1.0, 2.0, None)


def test_forgotten_places_are_gone_and_later_ones_stay() -> None:
    places = SequenceGaps()
    for place in (1, 2, 3):
        places.add(place)
    places.forget(2)
    assert 2 not in places
    assert places.holes(2, 3) == []
