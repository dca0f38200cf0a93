"""Faults of a guest's memory, injected from outside: the guest's RAM is a file on the host.

``flip_ram`` flips bits uniformly over all of it, ``flip_region`` over the kernel's code or data.
The guest's kernel reports these addresses (/proc/iomem, over SSH), which differ after each boot.
In a guest with less than 2 GiB a physical address is an offset in the file.

``corrupt_state`` writes a *canary* through the voter: a random value under a key of its own.  So
whatever equals the value in a guest's RAM is a copy of it: the service's own, or one in a buffer.
Flipping a bit of each copy corrupts the one that counts, and nothing that is not the canary's.
Nothing is flipped before the service has its own copy: a damaged message on its way would only be
discarded by the guest, and sent again by the voter.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.node.interfaces import GuestPort
from faultinject.faults.bit_flips import Flips, Span, flip_file, require_read_back
from faultinject.faults.inside import Shell
from faultinject.faults.site import ActiveFault, NotApplied, Site

__all__ = [
    "REGIONS",
    "corrupt_state",
    "flip_copies",
    "flip_ram",
    "flip_region",
    "read_spans",
]

REGIONS: Mapping[str, tuple[str, ...]] = {
    "flip-kernel-code": ("Kernel code",),
    "flip-kernel-data": ("Kernel rodata", "Kernel data", "Kernel bss"),
}
"""By kind: the names in /proc/iomem of the region's parts.  Each bit of them is equally likely."""

_CANARY_SIZE = 32
"""Bytes of a canary's value: enough that no other bytes equal it by chance."""
_SEARCHES, _SEARCH_PAUSE = 20, 0.1
"""Searches for the canary in the guest's memory, and seconds between them: a guest that is slower
than the majority has the value once it has applied the write."""

_IOMEM_LINE = re.compile(r"^\s*([0-9a-f]+)-([0-9a-f]+) : (.+?)\s*$", re.MULTILINE)


async def flip_ram(machine: GuestPort, seed: int, dose: int) -> ActiveFault:
    """Flip ``dose`` bits, uniformly over all of a guest's RAM."""
    return ActiveFault(f"RAM: {await _flip(machine, seed, dose)}")


async def flip_region(
    kind: str, machine: GuestPort, shell: Shell, seed: int, dose: int
) -> ActiveFault:
    """Flip ``dose`` bits, uniformly over the region that ``kind`` names."""
    status, iomem = await shell.run("cat /proc/iomem", timeout=15.0)
    try:
        if status:
            raise ValueError(f"/proc/iomem cannot be read: status {status}")
        spans = read_spans(iomem, REGIONS[kind])
    except ValueError as error:
        raise NotApplied(f"{machine.name}'s memory: {error}") from error
    flips = await _flip(machine, seed, dose, spans)
    size = sum(end - first for first, end in spans)
    return ActiveFault(f"{', '.join(REGIONS[kind])} ({size:,} bytes): {flips}")


async def _flip(machine: GuestPort, seed: int, dose: int, spans: Sequence[Span] = ()) -> Flips:
    try:
        flips = await asyncio.to_thread(flip_file, machine.ram_file(), seed, dose, spans)
    except (OSError, ValueError) as error:
        raise NotApplied(f"{machine.name}'s memory: {error}") from error
    require_read_back(flips)
    return flips


def read_spans(iomem: str, names: Sequence[str]) -> list[Span]:
    """Return the spans of these parts in /proc/iomem, in bytes.

    Raises ValueError if a part is missing, or its address is hidden (as from users other than
    root).
    """
    found = {
        name: (int(low, 16), int(high, 16) + 1) for low, high, name in _IOMEM_LINE.findall(iomem)
    }
    missing = [name for name in names if found.get(name, (0, 1))[1] <= 1]
    if missing:
        raise ValueError(f"/proc/iomem does not show the address of {', '.join(missing)}")
    return [found[name] for name in names]


async def corrupt_state(name: str, site: Site) -> ActiveFault:
    """Write a canary, and flip a bit of each copy of it in a guest's RAM (service kv only)."""
    ram = await asyncio.to_thread(site.machine(name).ram_file)
    key, value = f"trivisor-canary-{secrets.token_hex(4)}", secrets.token_bytes(_CANARY_SIZE)
    status, _ = await site.send("PUT", f"/kv/{key}", value)
    if not 200 <= status < 300:
        raise NotApplied(f"the canary cannot be written: status {status}")
    for _ in range(_SEARCHES):
        try:
            offsets = await asyncio.to_thread(flip_copies, ram, value)
            break
        except LookupError:
            await asyncio.sleep(_SEARCH_PAUSE)  # a write to memory gives no event
    else:
        raise NotApplied(f"the canary did not appear in {name}'s memory")
    places = ", ".join(f"{offset:#x}" for offset in offsets[:4])
    return ActiveFault(
        f"key {key}: one bit of {len(offsets)} copies flipped and read back "
        f"(at {places}{', ...' if len(offsets) > 4 else ''})"
    )


def flip_copies(ram: Path, value: bytes) -> list[int]:
    """Flip a bit of the first byte of each copy of ``value``; return the offsets read back.

    Raises OSError, and LookupError if the service holds no copy yet; then nothing is flipped.
    """
    with ram.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), size) as memory:
            offsets = [match.start() for match in re.finditer(re.escape(value), memory)]
            if not any(_is_object(memory, offset, len(value)) for offset in offsets):
                raise LookupError(
                    f"no object in {ram} ({size} bytes) has the canary's value; "
                    f"{len(offsets)} copies are in buffers"
                )
            for offset in offsets:
                memory[offset] ^= 1
            return [offset for offset in offsets if memory[offset] == value[0] ^ 1]


def _is_object(memory: mmap.mmap, offset: int, size: int) -> bool:
    """Return whether the value is that of a CPython object, preceded by its size and its hash.

    The agent makes it of a request with a verified checksum, and the store keeps this object.
    """
    return offset >= 16 and memory[offset - 16 : offset - 8] == size.to_bytes(8, "little")
