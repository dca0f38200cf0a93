"""Labels next to points, placed so that they do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from faultinject.plotting import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Box", "place", "write_labels"]

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def write_labels(
    axes: Axes, points: Sequence[tuple[float, float, str]], letter: tuple[float, float]
) -> None:
    """Write each (x, y, text) next to its point; ``letter`` is a letter's width and height.

    All in the axes' units, whose data lie in [0, 1] both ways.  Labels without a free place are
    omitted; the table has them all.
    """
    for (x, y, text), box in zip(points, place(points, letter), strict=True):
        if box is not None:
            axes.text(box[0], box[1], text, color=FAINT, fontsize=10, va="bottom")
            near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            if (
                math.dist((x, y), near) > 1.5 * letter[1]
            ):  # too far away to belong to the point visibly
                axes.plot([x, near[0]], [y, near[1]], color=FAINT, linewidth=0.5)


def place(
    points: Sequence[tuple[float, float, str]], letter: tuple[float, float]
) -> list[Box | None]:
    """Return a box for each point's label that overlaps no other label and no point."""
    wide, high = letter
    gap = 0.6 * high
    taken: list[Box] = [(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y, _ in points]
    found: list[Box | None] = []
    for x, y, text in points:
        width = wide * len(text)
        places = [
            (left, y + down * high * 1.1 - (high + gap if down <= 0 else -gap))
            for down in (0, 1, -1, 2, -2, 3, 4, 5, 6)
            for left in ((x + gap, x - gap - width) if x < 0.8 else (x - gap - width, x + gap))
        ]
        boxes = [(left, low, left + width, low + high) for left, low in places]
        free = [box for box in boxes if _inside(box) and not any(_meet(box, o) for o in taken)]
        found.append(free[0] if free else None)
        taken += free[:1]
    return found


def _inside(box: Box) -> bool:
    return box[0] >= 0.0 and box[2] <= 1.01 and box[1] >= -0.01 and box[3] <= 1.01


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
