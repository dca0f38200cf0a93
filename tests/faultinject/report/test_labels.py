"""Labels next to points do not overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from faultinject.report.labels import Box, place

__all__: list[str] = []

SPOT = st.tuples(
    st.floats(0, 1), st.floats(0, 1), st.text("abc", min_size=1, max_size=16)
)  # fmt: skip


def meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@given(st.lists(SPOT, max_size=12))
def test_labels_do_not_overlap(points: list[tuple[float, float, str]]) -> None:
    boxes = [box for box in place(points, (0.01, 0.03)) if box is not None]
    assert not any(meet(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    assert all(box[0] >= 0 and box[2] <= 1.01 for box in boxes)


def test_label_is_next_to_its_point() -> None:
    (box,) = place([(0.4, 0.5, "1,000")], (0.01, 0.03))
    assert box is not None
    assert 0.4 < box[0] < 0.45
