"""The console: lines, limits, no control sequences, listeners."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from deploy.machine.console import Console


def test_lines_are_assembled_from_pieces() -> None:
    console = Console()
    for piece in (b"on", b"e\r\ntw", b"o\n", b"three"):
        console.feed(piece)
    assert console.tail() == ["one", "two", "three"]
    assert console.tail(2) == ["two", "three"]
    assert console.tail(0) == []


def test_control_sequences_are_removed() -> None:
    console = Console()
    console.feed(b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \xff\xfe\x00bell\n")
    assert console.tail() == ["red ]0;title bell"]


@given(st.lists(st.binary(max_size=3000), max_size=40))
def test_memory_is_bounded_for_any_output(pieces: list[bytes]) -> None:
    console = Console(limit=4096)
    for piece in pieces:
        console.feed(piece)
    lines = console.tail(10**6)
    assert sum(len(line) + 1 for line in lines) <= 4096 + 1024 + 1
    assert all(len(line) <= 1024 for line in lines)


def test_listener_gets_each_whole_line_of_the_guest_until_it_stops() -> None:
    console, heard = Console(), list[str]()
    stop = console.listen(heard.append)
    console.feed(b"one\r\ntwo\nthr")
    assert heard == ["one", "two"]
    console.mark("started")
    console.feed(b"four\n")
    assert heard == ["one", "two", "four"]
    stop()
    console.feed(b"five\n")
    assert heard == ["one", "two", "four"]


async def test_console_reads_until_its_connection_is_closed() -> None:
    console = Console()
    reader = asyncio.StreamReader()
    reader.feed_data(b"a\nb")
    reader.feed_eof()

    class Writer:
        closed = False

        def close(self) -> None:
            self.closed = True

    writer = Writer()
    await console.take(reader, writer)  # type: ignore[arg-type]
    assert console.tail() == ["a", "b"]
    assert writer.closed


def test_hosts_mark_has_its_own_line() -> None:
    console = Console()
    console.feed(b"half a li")
    console.mark("started")
    console.feed(b"ne\n")
    assert console.tail() == ["half a li", "--- started ---", "ne"]
