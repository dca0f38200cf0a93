"""Debian's packages: fetch them, and extract the few files that a guest consists of.

The result is the kernel, the directory ``tree``, laid out as in the guest, and the directory
``access`` with the additional files of guests that allow faults inside.  Nothing of this repository
is in them, so that a change of its sources fetches nothing again.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import msgspec

from guests.image.bytecode import compile_sources
from guests.image.host import ImageError, require, run
from guests.image.kernel import extract_vmlinux
from guests.image.recipe import (
    ACCESS_LIBRARIES,
    ACCESS_MODULES,
    ACCESS_PACKAGES,
    ACCESS_PROGRAMS,
    KERNEL_MODULES,
    LIBRARIES,
    LOADER,
    MULTIARCH,
    PACKAGES,
    PYTHON,
    VSOCK_MODULES,
    wanted,
)
from guests.image.sources import RELEASE, debian_sources

__all__ = ["FILE_LIST", "PACKAGE_LIST", "Package", "fetch", "fetch_archive", "read_packages"]

_DEADLINE = 900.0
"""Seconds that mmdebstrap may take before it is ended: enough for a slow mirror."""

PACKAGE_LIST = "trivisor.packages"
FILE_LIST = "trivisor.files."
"""Files that `fetch_archive` adds to the archive."""

_PLAIN_PATH = re.compile(r"/[\w/.+-]+", re.ASCII)


class Package(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Debian package that was fetched.  ``sha256``: of its .deb file."""

    name: str
    version: str
    architecture: str
    sha256: str


def fetch(work: Path, *, progress: Callable[[str], None]) -> list[Package]:
    """Fetch the packages; write ``vmlinux``, ``tree/`` and ``access/`` into the empty ``work``.

    Raises ImageError.
    """
    archive = work / "packages.tar"
    fetch_archive((*PACKAGES, *ACCESS_PACKAGES), archive, progress=progress)
    progress("choosing the files that guests need")
    listed = _unpack(archive, work)
    archive.unlink()
    progress("compiling Python's library")
    _compile_library(work)
    return read_packages(listed)


def fetch_archive(names: Sequence[str], archive: Path, *, progress: Callable[[str], None]) -> None:
    """Fetch Debian packages and what they need; write all their files into a tar archive.

    The archive also has the file PACKAGE_LIST, for `read_packages`, and for each package of
    ``names`` the file FILE_LIST + its name, with the paths of its files.  Raises ImageError.
    """
    require("mmdebstrap")
    sources = archive.with_name("debian.sources")
    sources.write_text(debian_sources(), encoding="utf-8")
    progress(f"fetching {', '.join(names)} and what they need from Debian {RELEASE}")
    # No package's own script runs, so nothing depends on the host.  The hooks record the packages.
    debs = '"$1/var/cache/apt/archives"'
    hooks = [f'cd {debs} && sha256sum -- *.deb > "$1/{PACKAGE_LIST}"']
    hooks += [
        f'dpkg-deb --fsys-tarfile {debs}/{name}_*.deb | tar -t > "$1/{FILE_LIST}{name}"'
        for name in names
    ]
    _mmdebstrap(
        [
            "mmdebstrap",
            "--mode=" + ("root" if os.geteuid() == 0 else "unshare"),
            "--variant=extract",
            "--format=tar",
            "--architectures=amd64",
            "--include=" + ",".join(names),
            *(f"--extract-hook={hook}" for hook in hooks),
            *(f"--aptopt={option}" for option in _apt_options()),
            RELEASE,
            str(archive),
            str(sources),
        ],
    )
    sources.unlink()


def _mmdebstrap(words: Sequence[str]) -> None:
    """Run mmdebstrap.  Raises ImageError that quotes its last lines, not its many arguments."""
    try:
        run(words, env=_environment(), deadline=_DEADLINE)
    except ImageError as error:
        _, _, output = str(error).partition("\n")
        raise ImageError(
            f"mmdebstrap cannot fetch Debian's packages for the guest image:\n{output}",
            remedy="`apt-get update` shows whether the mirrors can be reached, and `trivisor "
            "doctor` whether mmdebstrap has what it needs; then run the same command again",
            error_code="TV0411",
        ) from error


def _environment() -> dict[str, str]:
    """Return mmdebstrap's environment."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "0"}
    # It makes a root there, and apt rejects paths with quotes and other special characters.
    if not _PLAIN_PATH.fullmatch(environment.get("TMPDIR", "")):
        environment["TMPDIR"] = "/tmp"
    return environment


def _apt_options() -> Iterator[str]:
    """Yield the host's apt options for its mirrors (proxies, retries), which mmdebstrap ignores."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageError(
            f"`apt-config dump` failed ({error}): the guest image needs a Debian host's apt",
            error_code="TV0412",
        ) from error
    kept = ("Acquire::http::", "Acquire::https::", "Acquire::Retries ", "Acquire::Check-")
    for line in dump.splitlines():
        if line.startswith(kept) and not line.endswith('"";'):
            yield line


def read_packages(listed: str) -> list[Package]:
    """Return the packages that a PACKAGE_LIST names, sorted by name."""
    packages = []
    for line in sorted(listed.splitlines(), key=lambda line: line.split()[1]):
        digest, filename = line.split()
        name, version, architecture = unquote(filename).removesuffix(".deb").split("_")
        packages.append(
            Package(name=name, version=version, architecture=architecture, sha256=digest)
        )
    return packages


def _unpack(archive: Path, work: Path) -> str:
    """Write the wanted files below ``work``; return the list of packages."""
    with tarfile.open(archive) as packages:
        # Debian's packages use both /lib and /usr/lib for what is one directory.
        members = {
            member.name.removeprefix("./").removeprefix("usr/"): member for member in packages
        }

        def read(name: str) -> bytes:
            member = members.get(name)
            if member is not None and member.issym():
                member = members.get(
                    posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                )
            opened = packages.extractfile(member) if member is not None else None
            if opened is None:
                raise ImageError(
                    f"Debian {RELEASE}'s packages hold no {name}, which guests/image/recipe.py "
                    "names: it needs a change",
                    error_code="TV0415",
                )
            return opened.read()

        kernels = [name for name in members if name.startswith("boot/vmlinuz-")]
        if len(kernels) != 1:
            raise ImageError(
                f"one kernel was expected in the packages, found {kernels}", error_code="TV0415"
            )
        release = kernels[0].removeprefix("boot/vmlinuz-")
        (work / "vmlinux").write_bytes(extract_vmlinux(read(kernels[0])))

        def put_libraries(tree: Path, libraries: Sequence[str]) -> None:
            for library in libraries:
                _write(tree / "lib" / MULTIARCH / library, read(f"lib/{MULTIARCH}/{library}"))

        def put_modules(folder: Path, modules: Sequence[str]) -> None:
            for order, module in enumerate(modules):
                # Init loads modules in the order of their names.
                name = f"{order}-{posixpath.basename(module)}.ko"
                _write(folder / name, read(f"lib/modules/{release}/kernel/{module}.ko"))

        tree = work / "tree"
        _write(tree / "bin/busybox", read("bin/busybox"), executable=True)
        _write(tree / "usr/bin" / PYTHON, read(f"bin/{PYTHON}"), executable=True)
        _write(tree / "lib64" / LOADER, read(f"lib/{MULTIARCH}/{LOADER}"), executable=True)
        put_libraries(tree, LIBRARIES)
        put_modules(tree / "lib/modules", KERNEL_MODULES)
        access = work / "access"
        for program in ACCESS_PROGRAMS:
            _write(access / "usr" / program, read(program), executable=True)
        put_libraries(access, ACCESS_LIBRARIES)
        put_modules(access / "lib/modules/access", ACCESS_MODULES)
        put_modules(access / "lib/modules/vsock", VSOCK_MODULES)
        below = f"lib/{PYTHON}/"
        for name, member in members.items():
            if name.startswith(below) and member.isfile() and wanted(name.removeprefix(below)):
                _write(tree / "usr" / name, read(name))
        return read(PACKAGE_LIST).decode()


def _compile_library(work: Path) -> None:
    """Replace the library's sources by their bytecode: sources would only take memory."""
    tree = work / "tree"
    sources = sorted((tree / "usr/lib" / PYTHON).rglob("*.py"))
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        named = {str(path.relative_to(tree)): path.read_bytes() for path in sources}
        compiled = compile_sources(tree, named, Path(scratch))
    for name, bytecode in compiled.items():
        _write(tree / f"{name}c", bytecode)
        (tree / name).unlink()


def _write(path: Path, body: bytes, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    path.chmod(0o755 if executable else 0o644)
