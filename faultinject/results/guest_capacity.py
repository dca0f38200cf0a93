"""How many guests fit on a host: the results of ``trivisor bench guests`` (``guests.json``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from faultinject.host_facts import Host
from faultinject.results.findings import FindingsFileError

__all__ = ["FILE", "Crowd", "CrowdPlan", "CrowdReport", "Memory", "read_guest_capacity"]

FILE = "guests.json"


class CrowdPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked for: nodes of 1 to ``most`` guests with ``memory`` MiB each."""

    most: int
    memory: int
    service: str
    accel: Literal["auto", "kvm", "tcg"]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Of several processes together, bytes (proc(5), smaps_rollup)."""

    rss: int
    pss: int
    private: int
    swapped: int

    @property
    def shared(self) -> int:
        """What would be needed besides, had each process its pages for itself."""
        return self.rss - self.pss


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """A node of so many guests: seconds until each was ready (booted, greeted, snapshot taken) and
    until all were, their memory, and the processors they kept busy with nothing to do.
    """

    guests: int
    ready: tuple[float, ...]
    seconds: float
    memory: Memory
    taken: int  # by how much the host's available memory fell, bytes
    idle: float


class CrowdReport(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes; ``each``: PSS, in bytes, of one guest more; ``fit``: how many fit in the memory
    that was available, leaving a tenth of the host's, without swap.
    """

    plan: CrowdPlan
    host: Host
    total: int
    available: int
    ksm: bool  # the kernel merges equal pages of several guests
    crowds: tuple[Crowd, ...]
    each: int
    fit: int


def read_guest_capacity(path: Path) -> CrowdReport | None:
    """Return the stored results, or None without such a file.  Raises FindingsFileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CrowdReport)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise FindingsFileError(
            f"{path}: {error}; create it again: trivisor bench guests --out {path}"
        ) from error
