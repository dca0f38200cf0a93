"""An image, the manifest that describes it, and the check that they agree."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from guests.image.host import ImageError
from guests.image.packages import Package

__all__ = [
    "Image",
    "Manifest",
    "check_file",
    "encode_record",
    "read_manifest",
    "read_record",
    "sha256_of",
    "combined_hash",
    "verify",
]

Record = TypeVar("Record", bound=msgspec.Struct)


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel and an initramfs to boot with it.  ``sha256`` covers both (``combined_hash``)."""

    kernel: Path
    initrd: Path
    sha256: str
    manifest: Path


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of an image.  Hashes are SHA-256 in hexadecimal.

    ``inputs``: the hash of everything that the base image depends on.  ``files``: path in the guest
    (no leading "/") to hash.  ``access``: the hash of the access archive stored with a base image,
    ``access_files`` the hashes of its files (see ``overlay``).
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
    """Raise ImageError, with file and remedy, unless the image matches its manifest."""
    manifest = read_manifest(image.manifest)
    check_file(image.kernel, manifest.kernel)
    check_file(image.initrd, manifest.initrd)
    if combined_hash(manifest.kernel, manifest.initrd) != image.sha256:
        raise ImageError(
            f"{image.manifest} is of another image than the one asked for: "
            f"remove {image.manifest.parent} and build again",
            error_code="TV0414",
        )


def combined_hash(kernel: str, initrd: str) -> str:
    """Return one hash from a kernel's and an initramfs's, so that no overlay reads the kernel."""
    return hashlib.sha256(f"{kernel} {initrd}\n".encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.  Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str) -> None:
    """Raise ImageError unless the file has the SHA-256 ``expected``."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read ({error.strerror}): remove {path.parent} and build again",
            error_code="TV0414",
        ) from error
    if found != expected:
        raise ImageError(
            f"{path} was altered: its SHA-256 is {found}, and {expected} when it was built; "
            f"remove {path.parent} and build again",
            error_code="TV0414",
        )


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at ``path``.  Raises ImageError if it cannot be read or decoded."""
    return read_record(path, Manifest)


def read_record(path: Path, kind: type[Record]) -> Record:
    """Return the record in a file.  Raises ImageError if it cannot be read or decoded."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise ImageError(
            f"{path} cannot be read ({error}): remove {path.parent} and build again",
            error_code="TV0414",
        ) from error


def encode_record(record: msgspec.Struct) -> bytes:
    """Return a record as indented JSON; equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
