"""Whether this host has the memory for one more VM."""

from __future__ import annotations

from deploy.errors import DeployError
from deploy.host.memory import available_memory
from deploy.machine.spec import GuestSpec

__all__ = ["NotEnoughMemory", "require_memory"]

_QEMU_MIB = 64
"""What a QEMU needs beside its guest's memory and its translated code; 40 to 50 were measured."""


class NotEnoughMemory(DeployError):
    """Another VM would make this host swap, or end a process."""

    error_code = "TV0150"


def require_memory(guest: GuestSpec) -> None:
    """Raise NotEnoughMemory if this guest does not fit into the host's free memory."""
    code = 0 if guest.accel == "kvm" else guest.translation_mib
    needed, available = guest.memory_mib + code + _QEMU_MIB, available_memory()
    if available is not None and available < needed << 20:
        raise NotEnoughMemory(
            f"another guest needs up to {needed} MiB, and this host has {available >> 20} MiB of "
            "memory available",
            remedy="free some memory; or use --in-place, which needs no other guest",
        )
