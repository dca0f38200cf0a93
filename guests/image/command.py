"""Running the programs that the build needs; an error shows what was run and what it said."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from guests.image.errors import ImageError

__all__ = ["require", "run"]

_SHOWN = 15
"""Lines of a failed command's output that an error quotes."""


def require(program: str, package: str) -> None:
    """Raises ImageError with the line to type if `program` is not installed."""
    if shutil.which(program) is None:
        raise ImageError(
            f"{program} is not installed, and the guest image needs it: `apt-get install {package}`"
        )


def run(argv: Sequence[str | Path], *, env: Mapping[str, str], deadline: float) -> None:
    """Runs `argv` to its end, in at most `deadline` seconds, with exactly the environment `env`.

    Raises ImageError that quotes the command and its last lines if it fails or takes too long.
    """
    shown = shlex.join(str(part) for part in argv)
    try:
        done = subprocess.run(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline,
            check=False,
        )
    except OSError as error:
        raise ImageError(f"cannot run `{shown}`: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"`{shown}` was ended: not done after {deadline:.0f} s\n{_tail(error.stdout)}"
        ) from error
    if done.returncode != 0:
        raise ImageError(f"`{shown}` failed with status {done.returncode}:\n{_tail(done.stdout)}")


def _tail(output: bytes | None) -> str:
    lines = (output or b"").decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_SHOWN:])
