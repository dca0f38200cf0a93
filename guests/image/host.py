"""The host's side of an image build: the error, programs that the build runs, files of the cache.

Every file and directory of the cache appears whole or not at all: it is written under another name,
synchronized to disk and renamed.  ``lock`` serializes builders that share a cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guests.errors import CodedError

__all__ = [
    "ImageError",
    "ProgramMissing",
    "link_file",
    "lock",
    "new_directory",
    "prune",
    "replace_file",
    "require",
    "run",
]

_UNFINISHED = ".new"
_SHOWN = 15
"""Lines of a failed command's output that an error quotes."""


class ImageError(CodedError):
    """The guest image cannot be built or trusted."""


class ProgramMissing(ImageError):
    """A program that builds the guest image is not installed."""

    error_code = "TV0410"

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed, and the guest image needs it")
        self.program = program


def require(program: str) -> None:
    """Raise ProgramMissing if ``program`` is not installed."""
    if shutil.which(program) is None:
        raise ProgramMissing(program)


def run(argv: Sequence[str | Path], *, env: Mapping[str, str], deadline: float) -> None:
    """Run a command with exactly the environment ``env``, for at most ``deadline`` seconds.

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
        raise ImageError(f"cannot run `{shown}`: {error}", error_code="TV0413") from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"`{shown}` was ended: not done after {deadline:.0f} s\n{_tail(error.stdout)}",
            error_code="TV0413",
        ) from error
    if done.returncode != 0:
        raise ImageError(
            f"`{shown}` failed with status {done.returncode}:\n{_tail(done.stdout)}",
            error_code="TV0413",
        )


def _tail(output: bytes | None) -> str:
    lines = (output or b"").decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_SHOWN:])


@contextlib.contextmanager
def lock(cache: Path) -> Iterator[None]:
    """Hold the lock of a cache directory.  The kernel releases it if this process dies."""
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Give a directory that becomes ``target`` if the block succeeds, and is removed otherwise."""
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=_UNFINISHED, dir=target.parent))
    try:
        work.chmod(0o755)
        yield work
        for path in [*work.rglob("*"), work]:
            _sync(path)
        work.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(work)
        raise


def replace_file(path: Path, body: bytes, mode: int = 0o644) -> None:
    """Write ``body`` to ``path`` in one step: a reader sees the old file or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def link_file(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where a hard link is impossible."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, aside)
    except OSError:  # another file system, another owner's file, or no hard links there
        shutil.copyfile(source, aside)
    os.replace(aside, target)
    # Where both names are one file already, rename(2) does nothing and keeps the first name.
    aside.unlink(missing_ok=True)


def prune(cache: Path, prefix: str, *, keep: int) -> None:
    """Remove all but the ``keep`` last used directories ``prefix*``, and unfinished ones.

    Only the holder of the lock may call it: another build's directory looks unfinished.
    """
    directories = [path for path in cache.glob(f"{prefix}*") if path.is_dir()]
    unfinished = [path for path in directories if path.name.endswith(_UNFINISHED)]
    whole = [path for path in directories if path not in unfinished]
    whole.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [*unfinished, *whole[keep:]]:
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
