"""What an image is, what its manifest records, and the check that both still agree."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from guests.image.errors import ImageError
from guests.image.packages import Package

__all__ = [
    "Image",
    "Manifest",
    "check_file",
    "encode_record",
    "read_manifest",
    "read_record",
    "sha256_of",
    "sum_up",
    "verify",
]

Record = TypeVar("Record", bound=msgspec.Struct)


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel and an initramfs to boot with it. `sha256` is over both, as `sum_up` makes it."""

    kernel: Path
    initrd: Path
    sha256: str
    manifest: Path


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image was made of.

    Hashes are SHA-256 in hex; `inputs` is of all that the base image depends on; `files` maps
    a path in the guest (no leading "/") to its hash. `access` is of the archive beside a base image
    that guests which allow faults inside have besides, and `access_files` of what is in it.
    """

    inputs: str
    kernel: str
    initrd: str
    command_line: str
    packages: list[Package]
    files: dict[str, str]
    access: str = ""
    access_files: dict[str, str] = msgspec.field(default_factory=dict)


def verify(image: Image) -> None:
    """Raises ImageError, naming file and remedy, unless `image` is what its manifest says."""
    manifest = read_manifest(image.manifest)
    check_file(image.kernel, manifest.kernel)
    check_file(image.initrd, manifest.initrd)
    if sum_up(manifest.kernel, manifest.initrd) != image.sha256:
        raise ImageError(
            f"{image.manifest} is of another image than the one asked for: "
            f"remove {image.manifest.parent} and build again"
        )


def sum_up(kernel: str, initrd: str) -> str:
    """One hash of a kernel and an initramfs, from theirs: no overlay reads the kernel again."""
    return hashlib.sha256(f"{kernel} {initrd}\n".encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str) -> None:
    """Raises ImageError unless the file at `path` has the SHA-256 `expected`."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read ({error.strerror}): remove {path.parent} and build again"
        ) from error
    if found != expected:
        raise ImageError(
            f"{path} was altered: its SHA-256 is {found}, and {expected} when it was built; "
            f"remove {path.parent} and build again"
        )


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`. Raises ImageError if it cannot be read or is none."""
    return read_record(path, Manifest)


def read_record(path: Path, kind: type[Record]) -> Record:
    """What `encode_record` wrote to `path`. Raises ImageError if it cannot be read or is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise ImageError(
            f"{path} cannot be read ({error}): remove {path.parent} and build again"
        ) from error


def encode_record(record: msgspec.Struct) -> bytes:
    """`record` as JSON that people can read, the same bytes for the same record."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
