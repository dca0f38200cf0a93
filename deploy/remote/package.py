"""A Debian package of Trivisor on this machine, read without dpkg."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from email.parser import HeaderParser
from pathlib import Path
from typing import BinaryIO, NamedTuple

from deploy.errors import CannotRunHere, DeployError

__all__ = ["SETTINGS_FILE", "DebianPackage", "find_package", "read_package"]

SETTINGS_FILE = "etc/trivisor/node.toml"
"""The node's settings in the package, and on the host below /."""


class DebianPackage(NamedTuple):
    """What deployment needs to know of a package.  ``installed`` is in bytes."""

    file: Path
    sha256: str
    version: str
    installed: int
    settings: str  # the text of SETTINGS_FILE in it, empty if there is none

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.file.stat().st_size


def find_package(directory: Path) -> Path:
    """Return the newest package of Trivisor in a directory.  Raises CannotRunHere."""
    found = sorted(directory.glob("trivisor_*.deb"), key=lambda each: each.stat().st_mtime)
    if not found:
        raise CannotRunHere(
            f"there is no package of Trivisor (trivisor_*.deb) in {directory}",
            remedy="make it with `./run package`, or name one with --package FILE",
            error_code="TV0763",
        )
    return found[-1]


def read_package(file: Path) -> DebianPackage:
    """Return a package's own data.  Raises DeployError if it is not a package of Trivisor."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
            stream.seek(0)
            members = _members(stream)
            control = _text(stream, members, "control.tar", "control")
            settings = _text(stream, members, "data.tar", SETTINGS_FILE)
    except (OSError, ValueError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise DeployError(
            f"{file} is not a Debian package that can be read here: {error}",
            remedy="make it with `./run package`",
            error_code="TV0763",
        ) from error
    fields = HeaderParser().parsestr(control)
    if fields["Package"] != "trivisor" or fields["Architecture"] not in ("amd64", "all"):
        raise DeployError(
            f"{file} holds {fields['Package']} for {fields['Architecture']}, not trivisor for "
            "amd64",
            remedy="make the right one with `./run package`",
            error_code="TV0763",
        )
    size = str(fields["Installed-Size"] or "0")
    return DebianPackage(
        file=file,
        sha256=digest.hexdigest(),
        version=str(fields["Version"]),
        installed=(int(size) << 10) if size.isdecimal() else 0,
        settings=settings,
    )


def _members(stream: BinaryIO) -> dict[str, tuple[int, int]]:
    """Return offset and size of each member of an `ar` archive.  Raises ValueError."""
    if stream.read(8) != b"!<arch>\n":
        raise ValueError("it is not an ar archive")
    found = {}
    while header := stream.read(60):
        if len(header) != 60 or header[58:] != b"`\n":
            raise ValueError("it is damaged")
        size = int(header[48:58])
        found[header[:16].decode("ascii").strip().rstrip("/")] = (stream.tell(), size)
        stream.seek(size + size % 2, io.SEEK_CUR)
    end = stream.seek(0, io.SEEK_END)
    if any(begin + size > end for begin, size in found.values()):
        raise ValueError("it is truncated")
    return found


def _text(stream: BinaryIO, members: dict[str, tuple[int, int]], archive: str, name: str) -> str:
    """Return the text of a file in one of the package's tar archives; empty without it."""
    member = next((each for each in members if each.startswith(archive)), None)
    if member is None:
        raise ValueError(f"it has no {archive}")
    if member.endswith(".zst"):
        raise ValueError(f"{member} is compressed with zstd; build it with dpkg-deb -Zxz")
    begin, size = members[member]
    stream.seek(begin)
    with tarfile.open(fileobj=io.BytesIO(stream.read(size))) as entries:
        for entry in entries:
            if entry.isfile() and entry.name.removeprefix("./") == name:
                file = entries.extractfile(entry)
                assert file is not None
                return file.read(1 << 20).decode()
            if archive == "data.tar" and entry.name.removeprefix("./") > "etc/~":
                break  # dpkg-deb sorts them: the rest, with the guest image, need not be unpacked
    return ""
