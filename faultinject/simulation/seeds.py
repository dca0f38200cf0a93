"""The seeds to run: fresh ones, and those that once broke a promise."""

from __future__ import annotations

import subprocess
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import msgspec

from faultinject.simulation.plan import ROLES

__all__ = ["KnownSeed", "fresh", "known", "source_revision"]

_ROOT = Path(__file__).resolve().parents[2]


class KnownSeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A seed that once broke a promise.  ``cause`` names a section of docs/simulation.md."""

    seed: int
    promise: str
    fault: Literal["product", "simulation", "checker"]
    cause: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: list[KnownSeed]


@cache
def known() -> tuple[KnownSeed, ...]:
    """Return the seeds of ``known.toml``."""
    text = (Path(__file__).parent / "known.toml").read_bytes()
    return tuple(msgspec.toml.decode(text, type=_File).seed)


def source_revision() -> str:
    """Return the commit of this source tree, or ``unknown`` outside of a repository."""
    command = ["git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def fresh(count: int, revision: str, now_ns: int) -> range:
    """Return ``count`` consecutive seeds that no earlier run has used.

    The first is a hash of the revision and of the time in nanoseconds since 1970, one of 2^55
    numbers from ``ROLES`` on.  Two runs of a million seeds overlap with a probability of 10^-10.
    """
    digest = blake2b(f"{revision} {now_ns}".encode(), digest_size=8).digest()
    start = ROLES + int.from_bytes(digest) % (1 << 55)
    return range(start, start + count)
