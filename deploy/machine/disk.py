"""The disk that holds a guest's snapshots; the guest itself never uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deploy.errors import CannotRunHere, HypervisorFailed

__all__ = ["make_snapshot_disk"]


async def make_snapshot_disk(path: Path) -> None:
    """Make an empty qcow2 file, in place of whatever was there. It grows by a snapshot's size."""
    path.unlink(missing_ok=True)
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise CannotRunHere(
            "qemu-img is missing", remedy="install it: apt-get install qemu-utils"
        ) from error
    _, said = await process.communicate()
    if process.returncode != 0:
        raise HypervisorFailed(f"cannot make {path}: {said.decode(errors='replace').strip()}")
