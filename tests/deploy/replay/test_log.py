"""The writes of a journal, each with its result, although results come later."""

from __future__ import annotations

from deploy.replay.log import logged_writes
from voter.core.entries import Entry, Record, SequenceReservation, Settled, Void


def record(seq: int) -> Record:
    return Record(seq, b"request", b"ann", seq, bytes(8), bytes(8), False)


def seqs(entries: list[Entry], until: int | None = None, **more: int) -> list[tuple[int, bytes]]:
    found = logged_writes(entries, until, **more)
    return [(each.record.seq, each.tag or b"none") for each in found]


def test_each_write_has_the_result_that_came_later() -> None:
    entries: list[Entry] = [record(1), record(2), Settled(2, b"b"), record(3), Settled(1, b"a")]
    assert seqs([*entries, Settled(3, b"c")]) == [(1, b"a"), (2, b"b"), (3, b"c")]
    assert seqs(entries) == [(1, b"a"), (2, b"b"), (3, b"none")]


def test_void_writes_are_marked_and_results_without_a_write_are_skipped() -> None:
    entries: list[Entry] = [Settled(1, b"old"), record(2), SequenceReservation(99), Void(2)]
    (write,) = logged_writes([*entries, Settled(2, b"x")])
    assert write.void and write.tag == b"x"


def test_it_stops_at_the_last_number_that_is_asked_for() -> None:
    entries: list[Entry] = []
    for seq in range(1, 10):
        entries += [record(seq), Settled(seq, b"%d" % seq)]
    reading = iter(entries)
    assert [each.record.seq for each in logged_writes(reading, 4)] == [1, 2, 3, 4]
    assert len(list(reading)) == 9, "it reads little beyond"
    late: list[Entry] = [record(1), record(2), record(3), record(5), Settled(1, b"a")]
    assert seqs(late, until=3) == [(1, b"a"), (2, b"none"), (3, b"none")]


def test_a_write_without_a_result_does_not_hold_up_the_others_for_ever() -> None:
    entries: list[Entry] = [record(1)]
    for seq in range(2, 50):
        entries += [record(seq), Settled(seq, b"x")]
    taken = logged_writes(iter(entries), lookahead=5)
    first = next(taken)
    assert (first.record.seq, first.tag) == (1, None)
    assert [each.record.seq for each in taken] == list(range(2, 50))
    assert [seq for seq, _ in seqs(entries, until=1, lookahead=5)] == [1]
