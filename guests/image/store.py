"""Files that are whole or not there: made aside, put on disk, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["make_aside", "link_file", "lock", "prune", "replace_file"]

_UNFINISHED = ".new"


@contextlib.contextmanager
def lock(cache: Path) -> Iterator[None]:
    """Holds the lock of the directory `cache`, waiting for it; the kernel frees it if we die."""
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def make_aside(target: Path) -> Iterator[Path]:
    """A directory that becomes `target`, whole and on disk, if the block ends well, else goes."""
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
    """Puts `body` at `path` in one step: a reader sees the old file or the new one, never half."""
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
    """Puts `source` at `target` too: the same file where it can be, else a copy, in one step."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, aside)
    except OSError:  # another file system, another owner's file, or no links there
        shutil.copyfile(source, aside)
    os.replace(aside, target)
    # Where both names are one file already, rename(2) does nothing and leaves the first name.
    aside.unlink(missing_ok=True)


def prune(cache: Path, prefix: str, *, keep: int) -> None:
    """Removes all but the `keep` last used of the directories `prefix`*, and what builds left.

    Only the holder of the lock may call it: to anyone else, another's build looks abandoned.
    """
    directories = [path for path in cache.glob(f"{prefix}*") if path.is_dir()]
    left = [path for path in directories if path.name.endswith(_UNFINISHED)]
    whole = [path for path in directories if path not in left]
    whole.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [*left, *whole[keep:]]:
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
