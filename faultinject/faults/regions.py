"""Flips in a named region of a guest's memory: its kernel's code, or its kernel's data.

Where these are its kernel tells (/proc/iomem, over SSH): it lies elsewhere after each boot.  The
bits are flipped from outside, in the file that is the guest's RAM; with less than 2 GiB of it an
address of the guest is a place in that file.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

from faultinject.faults.flips import Span, flip_file
from faultinject.faults.inside import Shell
from faultinject.faults.machines import require_held
from faultinject.faults.site import Applied, FaultTarget, NotApplied

__all__ = ["REGIONS", "flip_region", "read_spans"]

REGIONS: Mapping[str, tuple[str, ...]] = {
    "flip-kernel-code": ("Kernel code",),
    "flip-kernel-data": ("Kernel rodata", "Kernel data", "Kernel bss"),
}
"""By kind, what the kernel calls the parts that are struck, each bit of them as likely."""

_LINE = re.compile(r"^\s*([0-9a-f]+)-([0-9a-f]+) : (.+?)\s*$", re.MULTILINE)


def read_spans(iomem: str, names: Sequence[str]) -> list[Span]:
    """Return [first, end) of the parts of these names, in bytes, as /proc/iomem has them.

    Raises ValueError if one is missing, or its place is not told (as to others than root).
    """
    found = {name: (int(low, 16), int(high, 16) + 1) for low, high, name in _LINE.findall(iomem)}
    lacking = [name for name in names if found.get(name, (0, 1))[1] <= 1]
    if lacking:
        raise ValueError(f"/proc/iomem does not tell where {', '.join(lacking)} is")
    return [found[name] for name in names]


async def flip_region(
    kind: str, machine: FaultTarget, shell: Shell, seed: int, dose: int
) -> Applied:
    """Flip bits of the region that ``kind`` names, uniformly over all of it.  Raises NotApplied."""
    status, iomem = await shell.run("cat /proc/iomem", timeout=15.0)
    try:
        if status:
            raise ValueError(f"/proc/iomem cannot be read: status {status}")
        spans = read_spans(iomem, REGIONS[kind])
        flipped = await asyncio.to_thread(flip_file, machine.ram_file(), seed, dose, spans)
    except (OSError, ValueError) as error:
        raise NotApplied(f"{machine.name}'s memory: {error}") from error
    require_held(flipped)
    size = sum(end - first for first, end in spans)
    return Applied(f"{', '.join(REGIONS[kind])} ({size:,} bytes): {flipped}")
