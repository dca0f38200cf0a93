"""The cast at the README's top is a recording of the demo, and its SVG follows from it."""

from __future__ import annotations

import json
import sys

from docs.cast import CAST, SPEED, SVG, draw, record

MOST_BYTES = 300_000


def test_svg_is_drawn_from_the_kept_recording() -> None:
    cast = CAST.read_text()
    assert "11 of 11 claims hold" in "".join(json.loads(line)[2] for line in cast.splitlines()[1:])
    assert SVG.read_text() == draw(cast), "run `python docs/cast.py`"
    assert len(SVG.read_bytes()) < MOST_BYTES
    assert len(CAST.read_bytes()) < MOST_BYTES
    assert "url(http" not in SVG.read_text()


def test_recorded_lines_appear_at_their_times() -> None:
    words = [sys.executable, "-c", "print('first'); print('\\rsecond')"]
    cast = record(words)
    header, *events = cast.splitlines()
    assert json.loads(header)["version"] == 2
    late = json.dumps([8.0, "o", "third\r\n"])
    svg = draw("\n".join([header, *events, late]) + "\n")
    assert all(word in svg for word in ("first", "second", "third"))
    assert f"animation-delay: {8 / SPEED:.1f}s" in svg
