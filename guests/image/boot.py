"""How a guest is to be booted."""

from __future__ import annotations

__all__ = ["COMMAND_LINE"]

COMMAND_LINE = "console=ttyS0 quiet panic=0 mitigations=off cryptomgr.notests"
"""What the kernel must be told; a caller may add to it. `panic=0`: a panicking guest hangs, so
that its QEMU lives and a snapshot can be put back, in 0.1 s where a cold start takes seconds."""
