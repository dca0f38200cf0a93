"""Reading newc archives back, independently of the writer: only for tests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Read", "read_archives"]


@dataclass(frozen=True)
class Read:
    """One file as found in an archive."""

    name: str
    mode: int
    owner: tuple[int, int]
    time: int
    device: tuple[int, int]
    body: bytes


def read_archives(data: bytes) -> list[Read]:
    """All files of one or more archives that follow each other, as the kernel reads them."""
    found = []
    position = 0
    while position < len(data):
        if data[position] == 0:  # padding between archives
            position += 1
            continue
        assert data[position : position + 6] == b"070701"
        assert position % 4 == 0
        field = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        name_end = position + 110 + field[11]
        name = data[position + 110 : name_end - 1].decode()
        body_start = -(-name_end // 4) * 4
        body = data[body_start : body_start + field[6]]
        position = -(-(body_start + field[6]) // 4) * 4
        if name != "TRAILER!!!":
            found.append(
                Read(name, field[1], (field[2], field[3]), field[5], (field[9], field[10]), body)
            )
    return found
