"""Debian packages for the image of one node: newer versions of its files, or further modules.

The base image stays as it is: the files of the packages come into an overlay, which the kernel
unpacks behind it.  Of a package this takes

- the files that the base image has too, such as a library with a security fix;
- Python modules of ``dist-packages``, which get into the guest's library directory;
- shared libraries, and programs of the base image.

Documentation, scripts of the package and everything else is left out.  What a package needs is
fetched with it, but only the named packages' files are taken: name the others too.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from guests.image.host import ImageError
from guests.image.packages import (
    FILE_LIST,
    PACKAGE_LIST,
    Package,
    fetch_archive,
    read_packages,
)
from guests.image.recipe import MULTIARCH, PYTHON, wanted

__all__ = ["Additions", "check_names", "fetch_additions"]

MOST_PACKAGES = 20
MOST_BYTES = 64 << 20
"""Bytes of all files that are added: a guest holds them in its memory."""
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_LIBRARIES = f"lib/{MULTIARCH}/"
_PYTHON_LIBRARY = f"lib/{PYTHON}/"
_MODULES = "lib/python3/dist-packages/"
_DESCRIPTIONS = re.compile(r"\.(dist|egg)-info(/|$)|/__pycache__/|\.pyc$")


class Additions(msgspec.Struct, frozen=True, kw_only=True):
    """Files by their path in the guest; those that can be executed; the packages they are of."""

    files: dict[str, bytes]
    programs: frozenset[str]
    packages: tuple[Package, ...]


def check_names(names: Sequence[str]) -> None:
    """Raise ImageError unless these can be names of Debian packages."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ImageError(f"{name!r} is no name of a Debian package", error_code="TV0417")
    if len(names) > MOST_PACKAGES:
        raise ImageError(
            f"{len(names)} packages are too many: at most {MOST_PACKAGES} can be added",
            error_code="TV0417",
        )


def fetch_additions(
    names: Sequence[str], base: Iterable[str], *, progress: Callable[[str], None]
) -> Additions:
    """Fetch packages in their newest versions; return their files for a guest.

    ``base``: the paths of the files in the image.  Raises ImageError, also if a package has nothing
    that a guest can use.
    """
    check_names(names)
    with tempfile.TemporaryDirectory(prefix="trivisor-packages-") as work:
        archive = Path(work) / "packages.tar"
        fetch_archive(names, archive, progress=progress)
        return choose_files(archive, names, frozenset(base))


def choose_files(archive: Path, names: Sequence[str], base: frozenset[str]) -> Additions:
    """Return the files of these packages for a guest.  Raises ImageError."""
    files: dict[str, bytes] = {}
    programs: set[str] = set()
    with tarfile.open(archive) as packages:
        # Debian's packages use both /lib and /usr/lib for what is one directory.
        members = {
            member.name.removeprefix("./").removeprefix("usr/"): member for member in packages
        }

        def read(name: str) -> bytes | None:
            member = members.get(name)
            if member is not None and member.issym():
                target = posixpath.join(posixpath.dirname(name), member.linkname)
                member = members.get(posixpath.normpath(target).removeprefix("usr/"))
            opened = packages.extractfile(member) if member is not None else None
            return opened.read() if opened is not None else None

        for package in names:
            listed = (read(f"{FILE_LIST}{package}") or b"").decode().splitlines()
            found = False
            for line in listed:
                name = line.removeprefix("./").removeprefix("usr/")
                target = _place(name, base)
                body = read(name) if target is not None else None
                if target is None or body is None:
                    continue
                found = True
                files[target] = body
                if members[name].mode & 0o100 and not name.startswith("lib/"):
                    programs.add(target)
            if not found:
                raise ImageError(
                    f"the package {package} has no file that a guest can use: guests take Python "
                    "modules, shared libraries, and newer versions of what they hold",
                    error_code="TV0417",
                )
        listed_packages = read_packages((read(PACKAGE_LIST) or b"").decode())
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise ImageError(
            f"the packages have {size >> 20} MiB of files for a guest: at most {MOST_BYTES >> 20} "
            "MiB fit",
            error_code="TV0417",
        )
    kept = tuple(package for package in listed_packages if package.name in names)
    return Additions(files=files, programs=frozenset(programs), packages=kept)


def _place(name: str, base: frozenset[str]) -> str | None:
    """Return where a package's file (without "usr/") belongs in the guest, or None."""
    if name.endswith("/") or _DESCRIPTIONS.search(name):
        return None
    if name.startswith(_MODULES):
        return f"usr/{_PYTHON_LIBRARY}{name.removeprefix(_MODULES)}"
    if name.startswith(_PYTHON_LIBRARY):  # bytecode is all that the base image has of it
        inside = wanted(name.removeprefix(_PYTHON_LIBRARY))
        return f"usr/{name}" if inside else None
    if name.startswith(_LIBRARIES) and ".so" in posixpath.basename(name):
        return name if name.count("/") == _LIBRARIES.count("/") else None
    return next((place for place in (name, f"usr/{name}") if place in base), None)
