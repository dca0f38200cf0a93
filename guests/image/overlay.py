"""One node's part of an image: a second, small archive behind the base's in the initramfs.

The kernel unpacks one after the other, so that a node's own service needs no new base image, only
milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from guests.function import AUTHENTICATION
from guests.image import cpio
from guests.image.access import ARCHIVE, Access, key_entries
from guests.image.errors import ImageError
from guests.image.manifest import Image, Manifest, check_file, encode_record, read_manifest, sum_up
from guests.image.store import link_file, replace_file

__all__ = ["CONTENT", "FUNCTION_FILE", "SERVICE_FILE", "Overlay", "add_overlay"]

SERVICE_FILE = "opt/trivisor/user/service.py"
"""Where a user's service lies in the guest."""

CONTENT = "etc/trivisor/content"
"""Where static content lies in the guest."""

FUNCTION_FILE = "opt/trivisor/user/function.py"
"""Where a function of one's own lies in the guest."""

_CONFIG = "etc/trivisor/service"
_FUNCTION, _KEY = "etc/trivisor/function", "etc/trivisor/function.key"


class Overlay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node's choice of service.

    `service` is the name of a shipped one, or `service_file` is a user's own Python file: exactly
    one of them. `content` is a directory copied to /etc/trivisor/content. `files` maps further
    paths in the guest (no leading "/") to what they hold. With `access` the guest allows faults
    inside: it has an SSH server that takes these keys. With `key` requests pass the function f
    (`guests.function`) before the service: `function_file`'s own, or request authentication.
    """

    service: str | None = None
    service_file: Path | None = None
    content: Path | None = None
    files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    access: Access | None = None
    key: bytes = b""
    function_file: Path | None = None


def add_overlay(image: Image, out_dir: Path, overlay: Overlay) -> Image:
    """The image in `out_dir`: `image`'s kernel, its initramfs with `overlay` added, a manifest.

    `out_dir` needs nothing of the cache from then on. Raises ImageError if the overlay cannot be,
    or a file of it cannot be read.
    """
    manifest = read_manifest(image.manifest)
    entries = list(_entries(overlay, manifest.inputs))
    archive = cpio.pack(entries)
    try:
        check_file(image.initrd, manifest.initrd)
        initrd = image.initrd.read_bytes()
        added = {entry.name: hashlib.sha256(entry.body).hexdigest() for entry in entries}
        if overlay.access is not None:
            initrd = _behind(initrd, _access(image, manifest))
            added = {**manifest.access_files, **added}
        initrd = _behind(initrd, archive)
        digest = hashlib.sha256(initrd).hexdigest()
        described = msgspec.structs.replace(
            manifest,
            initrd=digest,
            files={**manifest.files, **added},
            access="",
            access_files={},
        )
        out_dir.mkdir(parents=True, exist_ok=True)
        replace_file(out_dir / "initrd", initrd, mode=0o600 if overlay.key else 0o644)
        replace_file(out_dir / "manifest.json", encode_record(described))
        link_file(image.kernel, out_dir / "vmlinux")
    except OSError as error:
        raise ImageError(
            f"cannot add the service to the guest image in {out_dir}: {error}"
        ) from error
    return Image(
        kernel=out_dir / "vmlinux",
        initrd=out_dir / "initrd",
        sha256=sum_up(manifest.kernel, digest),
        manifest=out_dir / "manifest.json",
    )


def _behind(first: bytes, second: bytes) -> bytes:
    return first + bytes(-len(first) % cpio.ALIGNMENT) + second


def _access(image: Image, manifest: Manifest) -> bytes:
    """The archive of what every guest that allows faults inside has. Raises ImageError, OSError."""
    if not manifest.access:
        raise ImageError(
            f"{image.manifest.parent} is no base image: only behind one can an SSH server be put"
        )
    path = image.manifest.parent / ARCHIVE
    check_file(path, manifest.access)
    return path.read_bytes()


def _entries(overlay: Overlay, inputs: str) -> list[cpio.ArchiveEntry]:
    if (overlay.service is None) == (overlay.service_file is None):
        raise ImageError(
            "an image needs one service: give `service` or `service_file`, and not both"
        )
    entries = [cpio.file(name, body) for name, body in overlay.files.items()]
    if overlay.service_file is not None:
        source = _read(overlay.service_file)
        name, build = f"/{SERVICE_FILE}", hashlib.sha256(source).hexdigest()
        entries.append(cpio.file(SERVICE_FILE, source))
    else:
        name, build = str(overlay.service), inputs
    if "\n" in name:
        raise ImageError(f"{name!r} cannot be the name of a service")
    if overlay.content is not None:
        entries += _content(overlay.content)
    if overlay.access is not None:
        entries += key_entries(overlay.access)
    entries += _function(overlay)
    entries.append(cpio.file(_CONFIG, f"{name}\n{build[:16]}\n".encode()))
    return entries


def _function(overlay: Overlay) -> list[cpio.ArchiveEntry]:
    """What has requests pass f in the guest, if they are to."""
    if not overlay.key:
        if overlay.function_file is not None:
            raise ImageError("an image with a function needs its key too: give `key`")
        return []
    name, entries = AUTHENTICATION, [cpio.file(_KEY, overlay.key.hex().encode() + b"\n")]
    if overlay.function_file is not None:
        name = f"/{FUNCTION_FILE}"
        entries.append(cpio.file(FUNCTION_FILE, _read(overlay.function_file)))
    return [*entries, cpio.file(_FUNCTION, f"{name}\n".encode())]


def _content(root: Path) -> list[cpio.ArchiveEntry]:
    """All regular files below `root`. A link would mean another file in the guest than here: it is
    refused."""
    if not root.is_dir():
        raise ImageError(f"the static content {root} is not a directory")
    entries = [cpio.directory(CONTENT)]
    for path in sorted(root.rglob("*")):
        name = f"{CONTENT}/{path.relative_to(root)}"
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ImageError(
                f"{path} is neither a file nor a directory: static content may hold nothing else"
            )
        entries.append(cpio.directory(name) if path.is_dir() else cpio.file(name, _read(path)))
    return entries


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be put into the guest image: {error.strerror}") from error
