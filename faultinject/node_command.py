"""``trivisor`` as a process of its own, on a node that a bench or an experiment has made."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deploy.host.spawn import python_command, python_environment
from voter.commands.terminal import CommandError, ExitCode

__all__ = ["run_trivisor"]


async def run_trivisor(place: Path, *words: str) -> bytes:
    """Run a command on the node; return its output.  Raises CommandError with its message."""
    process = await asyncio.create_subprocess_exec(
        *python_command("trivisor", *words, "--dir", place), env=python_environment(),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    gone = words[0] == "down" and process.returncode == ExitCode.NOT_UP  # interrupted before
    if process.returncode and not gone:
        problem = errors.decode(errors="replace").strip()
        raise CommandError(f"trivisor {words[0]}: {problem}", error_code="TV0841")
    return output
