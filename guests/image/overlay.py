"""One node's part of an image: further archives behind the base image's in the initramfs.

The kernel unpacks one archive after the other, so a node's own service needs no new base image: it
takes milliseconds.  A guest that allows faults inside also gets the *access archive*, with the
driver of a network card and an SSH server.  Nobody can log in to the other guests.  The keys are
each node's own.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from guests.function import AUTHENTICATION
from guests.image import cpio
from guests.image.host import ImageError, link_file, replace_file
from guests.image.manifest import (
    Image,
    Manifest,
    check_file,
    combined_hash,
    encode_record,
    read_manifest,
)
from guests.image.packages import Package

__all__ = [
    "ACCESS_ARCHIVE",
    "ACCESS_SCRIPT",
    "CONTENT",
    "FUNCTION_FILE",
    "SERVICE_FILE",
    "Access",
    "Overlay",
    "access_entries",
    "add_overlay",
]

ACCESS_ARCHIVE = "access"
"""File name of the access archive in the directory of a base image."""

ACCESS_SCRIPT = Path(__file__).parent / "access.sh"
"""The script that init runs before the agent."""

SERVICE_FILE = "opt/trivisor/user/service.py"
"""Path of a user's service in the guest."""

CONTENT = "etc/trivisor/content"
"""Directory of static content in the guest."""

FUNCTION_FILE = "opt/trivisor/user/function.py"
"""Path of a user's function in the guest."""

_CONFIG = "etc/trivisor/service"
_FUNCTION, _KEY = "etc/trivisor/function", "etc/trivisor/function.key"
_HOME = "root"
_PASSWD = f"root:x:0:0:root:/{_HOME}:/bin/sh\n"


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a node whose guests allow faults inside.

    ``host``: the private host key in dropbear's format.  ``client``: the public key, an OpenSSH
    line, whose owner may log in as root.
    """

    host: bytes
    client: str


class Overlay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node's choice of service.

    ``service``: the name of a shipped service; ``service_file``: a user's Python file.  Exactly one
    of them is given.  ``content``: a directory to copy to /etc/trivisor/content.  ``files``:
    further paths in the guest (no leading "/") and their contents; they replace the base image's.
    ``programs``: those of the files that can be executed.  ``packages``: the Debian packages that
    the files are of.  ``access``: the guest allows
    faults inside, with these keys.  ``key``: requests pass the function f (``guests.function``)
    before the service, from ``function_file`` or, without one, request authentication.
    """

    service: str | None = None
    service_file: Path | None = None
    content: Path | None = None
    files: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    programs: frozenset[str] = frozenset()
    packages: tuple[Package, ...] = ()
    access: Access | None = None
    key: bytes = b""
    function_file: Path | None = None


def add_overlay(image: Image, out_dir: Path, overlay: Overlay) -> Image:
    """Return a new image in ``out_dir``: the base image's kernel, its initramfs with the overlay.

    ``out_dir`` does not depend on the cache afterwards.  Raises ImageError if the overlay is
    invalid, or if one of its files cannot be read.
    """
    manifest = read_manifest(image.manifest)
    entries = list(_entries(overlay, manifest.inputs))
    archive = cpio.pack(entries)
    try:
        check_file(image.initrd, manifest.initrd)
        initrd = image.initrd.read_bytes()
        added = {entry.name: hashlib.sha256(entry.body).hexdigest() for entry in entries}
        if overlay.access is not None:
            initrd = _behind(initrd, _access_archive(image, manifest))
            added = {**manifest.access_files, **added}
        initrd = _behind(initrd, archive)
        digest = hashlib.sha256(initrd).hexdigest()
        described = msgspec.structs.replace(
            manifest,
            initrd=digest,
            files={**manifest.files, **added},
            packages=_with_packages(manifest.packages, overlay.packages),
            access="",
            access_files={},
        )
        out_dir.mkdir(parents=True, exist_ok=True)
        replace_file(out_dir / "initrd", initrd, mode=0o600 if overlay.key else 0o644)
        replace_file(out_dir / "manifest.json", encode_record(described))
        link_file(image.kernel, out_dir / "vmlinux")
    except OSError as error:
        raise ImageError(
            f"cannot add the service to the guest image in {out_dir}: {error}", error_code="TV0413"
        ) from error
    return Image(
        kernel=out_dir / "vmlinux",
        initrd=out_dir / "initrd",
        sha256=combined_hash(manifest.kernel, digest),
        manifest=out_dir / "manifest.json",
    )


def _with_packages(base: list[Package], added: Iterable[Package]) -> list[Package]:
    """Return the packages of an image, where those added replace others of their names."""
    named = {package.name: package for package in (*base, *added)}
    return sorted(named.values(), key=lambda package: package.name)


def _behind(first: bytes, second: bytes) -> bytes:
    return first + bytes(-len(first) % cpio.ALIGNMENT) + second


def access_entries() -> list[cpio.ArchiveEntry]:
    """Return the entries of the access archive that are not Debian's files."""
    return [
        cpio.file("etc/trivisor/access", ACCESS_SCRIPT.read_bytes(), executable=True),
        cpio.file("etc/passwd", _PASSWD.encode()),
        cpio.file("etc/group", b"root:x:0:\n"),
        cpio.symlink("bin/sh", "busybox"),
    ]


def _key_entries(access: Access) -> list[cpio.ArchiveEntry]:
    """Return a node's keys, which dropbear takes only if nobody else may read them."""
    mode = stat.S_IFREG | 0o600
    keys = f"{access.client}\n".encode()
    return [
        cpio.ArchiveEntry("etc/trivisor/host_key", mode, access.host),
        cpio.ArchiveEntry(f"{_HOME}/.ssh/authorized_keys", mode, keys),
    ]


def _access_archive(image: Image, manifest: Manifest) -> bytes:
    """Return the base image's access archive.  Raises ImageError, OSError."""
    if not manifest.access:
        raise ImageError(
            f"{image.manifest.parent} is no base image: only behind one can an SSH server be put",
            error_code="TV0416",
        )
    path = image.manifest.parent / ACCESS_ARCHIVE
    check_file(path, manifest.access)
    return path.read_bytes()


def _entries(overlay: Overlay, inputs: str) -> list[cpio.ArchiveEntry]:
    if (overlay.service is None) == (overlay.service_file is None):
        raise ImageError(
            "an image needs one service: give `service` or `service_file`, and not both",
            error_code="TV0416",
        )
    entries = [
        cpio.file(name, body, executable=name in overlay.programs)
        for name, body in overlay.files.items()
    ]
    if overlay.service_file is not None:
        source = _read(overlay.service_file)
        name, build = f"/{SERVICE_FILE}", hashlib.sha256(source).hexdigest()
        entries.append(cpio.file(SERVICE_FILE, source))
    else:
        name, build = str(overlay.service), inputs
    if "\n" in name:
        raise ImageError(f"{name!r} cannot be the name of a service", error_code="TV0408")
    if overlay.content is not None:
        entries += _content(overlay.content)
    if overlay.access is not None:
        entries += _key_entries(overlay.access)
    entries += _function(overlay)
    entries.append(cpio.file(_CONFIG, f"{name}\n{build[:16]}\n".encode()))
    return entries


def _function(overlay: Overlay) -> list[cpio.ArchiveEntry]:
    """Return the entries that configure f in the guest: none without a key."""
    if not overlay.key:
        if overlay.function_file is not None:
            raise ImageError(
                "an image with a function needs its key too: give `key`", error_code="TV0416"
            )
        return []
    name, entries = AUTHENTICATION, [cpio.file(_KEY, overlay.key.hex().encode() + b"\n")]
    if overlay.function_file is not None:
        name = f"/{FUNCTION_FILE}"
        entries.append(cpio.file(FUNCTION_FILE, _read(overlay.function_file)))
    return [*entries, cpio.file(_FUNCTION, f"{name}\n".encode())]


def _content(root: Path) -> list[cpio.ArchiveEntry]:
    """Return the regular files below ``root``.

    Raises ImageError for a symbolic link: in the guest it would refer to another file than here.
    """
    if not root.is_dir():
        raise ImageError(f"the static content {root} is not a directory", error_code="TV0405")
    entries = [cpio.directory(CONTENT)]
    for path in sorted(root.rglob("*")):
        name = f"{CONTENT}/{path.relative_to(root)}"
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ImageError(
                f"{path} is neither a file nor a directory: static content may hold nothing else",
                error_code="TV0405",
            )
        entries.append(cpio.directory(name) if path.is_dir() else cpio.file(name, _read(path)))
    return entries


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{path} cannot be put into the guest image: {error.strerror}", error_code="TV0405"
        ) from error
