"""What a node promises to keep: the three durabilities, and each one's promise in words."""

from __future__ import annotations

from typing import Literal

__all__ = ["PROMISES", "Durability"]

Durability = Literal["fsync", "os", "none"]

PROMISES: dict[str, str] = {
    "fsync": "a reply goes out once its request and all before it are on disk: "
    "what was acknowledged survives the loss of power",
    "os": "a request is handed to the operating system before any guest gets it: what was "
    "acknowledged survives the death of every process, but the last seconds of it not the loss of "
    "power",
    "none": "nothing is written: a voter that dies takes with it all that was acknowledged",
}
