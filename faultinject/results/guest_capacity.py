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
    """The plan of a run: nodes of 1 to ``most`` guests with ``memory`` MiB each."""

    most: int
    memory: int
    service: str
    accel: Literal["auto", "kvm", "tcg"]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of several processes together, bytes (proc(5), smaps_rollup)."""

    rss: int
    pss: int
    private: int
    swapped: int

    @property
    def shared(self) -> int:
        """Additional memory that private copies of all shared pages would need."""
        return self.rss - self.pss


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """A node of ``guests`` guests: seconds until each was ready (booted, connected, snapshot taken)
    and until all were, their memory, and the processors they use while idle.
    """

    guests: int
    ready: tuple[float, ...]
    seconds: float
    memory: Memory
    taken: int  # decrease of the host's available memory, bytes
    idle: float


class CrowdReport(msgspec.Struct, frozen=True, kw_only=True):
    """The measured nodes.  ``each``: PSS of one more guest, bytes.  ``fit``: guests that fit into
    the available memory without swap, with a tenth of the host's memory left free.
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
