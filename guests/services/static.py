"""The shipped static service: the files of a directory, read into memory at the start.

The directory is the environment's ``TRIVISOR_CONTENT``, or ``/etc/trivisor/content``.  Without it
the service has a few built-in pages.  It serves GET and HEAD.  A path that ends in ``/`` gives that
folder's ``index.html``.  Entity tags are hashes of the content.  It serves one byte range, not
several.  It leaves out links to folders, and files and folders whose name begins with a dot.
Nothing outside the directory can be reached: a request is looked up among the files in memory.

No request changes the state.  A snapshot holds no content, only each file's path, size and hash,
computed from the bytes in memory at that moment.  So the digest detects corrupted content, and
``restore`` refuses the state of other content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from guests.protocol.message import Reply, Request
from guests.service import Context, Service, ServiceError
from guests.services.requests import (
    RequestRefused,
    check_conditions,
    decode_percent,
)

__all__ = ["CHECK_REQUESTS", "Static", "read_content"]

DEFAULT_DIRECTORY = "/etc/trivisor/content"
MAX_FILE = 1 << 20
MAX_CONTENT = 16 << 20
"""Largest file, and all files together, in bytes."""

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "gif": "image/gif",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "webp": "image/webp",
    "woff2": "font/woff2",
    "xml": "application/xml",
}
"""By the name's ending.  The machine's own table would differ from image to image."""

BUILT_IN = {
    b"/index.html": b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Trivisor</title>
<link rel="stylesheet" href="style.css"></head>
<body><h1>It votes.</h1>
<p>This page was served by several virtual machines that had to agree on every byte of it.
<a href="about.txt">How</a>.</p></body></html>
""",
    b"/style.css": b"body { font: 1.1em/1.5 sans-serif; max-width: 40em; margin: 3em auto; }\n",
    b"/about.txt": b"""Each guest holds the same files. A request is put in one order and handed
    to all of
them; a reply is let out only when a majority returned the same bytes.
Put files into /etc/trivisor/content to serve your own.
""",
}

_MAGIC = b"TVSC\x00\x01"


class StaticFile(NamedTuple):
    """One file's bytes and the values of its headers."""

    content: bytes
    etag: str
    content_type: str


class Static(Service):
    """The content of a directory.  Raises ServiceError if it cannot be read."""

    name = "static"
    state_format = 1

    def __init__(self, directory: str | Path | None = None) -> None:
        if directory is None:
            directory = os.environ.get("TRIVISOR_CONTENT")
            if directory is None and not os.path.isdir(DEFAULT_DIRECTORY):
                self._files = {path: _make_file(path, data) for path, data in BUILT_IN.items()}
                return
        self._files = read_content(Path(directory or DEFAULT_DIRECTORY))

    def apply(self, request: Request, context: Context) -> Reply:
        """Answer one request."""
        if request.method not in ("GET", "HEAD"):
            text = f"method {request.method} is not one of GET, HEAD\n"
            return Reply(405, text, (("allow", "GET, HEAD"),))
        try:
            path = decode_percent(request.path)
        except RequestRefused as refusal:
            return refusal.reply
        file = self._files.get(path + b"index.html" if path.endswith(b"/") else path)
        if file is None:
            if path.startswith(b"/") and path + b"/index.html" in self._files:
                return Reply(301, b"", (("location", _relative_folder(path)),))
            return Reply(404, "no such file\n")
        if request.mentions(b"if-") and (reply := check_conditions(request, file.etag)):
            return reply
        headers = (
            ("accept-ranges", "bytes"),
            ("content-type", file.content_type),
            ("etag", file.etag),
        )
        if request.method == "GET" and request.mentions(b"range"):
            return _reply_range(request, file, headers)
        return Reply(200, file.content, headers)

    def snapshot(self) -> Iterator[bytes]:
        """Yield a line for each file, by path: its size and the hash of its bytes in memory."""
        return _encode_manifest(sorted(self._files.items()))

    def restore(self, state: bytes) -> None:
        """Check that a state is of this content.  Raises ServiceError if it is not."""
        if state and state != b"".join(self.snapshot()):
            raise ServiceError("the state is of other content than this replica's")


def read_content(directory: Path) -> dict[bytes, StaticFile]:
    """Return the files below a directory by their absolute request path.

    Raises ServiceError, which names the file, if one cannot be read, is larger than MAX_FILE bytes
    or is a link to outside the directory, and if all are larger than MAX_CONTENT bytes.
    """
    files: dict[bytes, StaticFile] = {}
    total = 0
    try:
        root = directory.resolve(strict=True)
        if not root.is_dir():
            raise ServiceError(f"content {directory} is not a directory")
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                file = Path(folder, name)
                if not file.resolve(strict=True).is_relative_to(root):
                    raise ServiceError(
                        f"content file {file} is a link out of {root}", error_code="TV0405"
                    )
                status = file.stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                total += status.st_size
                if status.st_size > MAX_FILE or total > MAX_CONTENT:
                    limit = f"{MAX_FILE} bytes a file, {MAX_CONTENT} bytes in all"
                    raise ServiceError(
                        f"content file {file} goes over the limit of {limit}", error_code="TV0405"
                    )
                path = b"/" + os.fsencode(file.relative_to(root))
                files[path] = _make_file(path, file.read_bytes())
    except OSError as error:
        raise ServiceError(
            f"content {directory} cannot be read: {error}", error_code="TV0405"
        ) from error
    return files


def _raise(error: OSError) -> None:
    raise error


def _make_file(path: bytes, content: bytes) -> StaticFile:
    ending = path.rpartition(b"/")[2].rpartition(b".")[2].decode("latin-1").lower()
    content_type = CONTENT_TYPES.get(ending, "application/octet-stream")
    return StaticFile(content, f'"{blake2b(content, digest_size=16).hexdigest()}"', content_type)


def _relative_folder(path: bytes) -> str:
    """Return the location of a folder relative to its name without the slash.

    A relative location works behind any prefix and can never name another host (``//host/``).
    """
    return "./" + quote_from_bytes(path.rpartition(b"/")[2], safe="") + "/"


def _encode_manifest(files: list[tuple[bytes, StaticFile]]) -> Iterator[bytes]:
    yield _MAGIC
    for path, file in files:
        content = blake2b(file.content, digest_size=32).digest()
        headers = blake2b(f"{file.etag}\n{file.content_type}".encode(), digest_size=16).digest()
        yield b"%d %d\n%b%b%b" % (len(path), len(file.content), path, content, headers)


def _reply_range(request: Request, file: StaticFile, headers: tuple[tuple[str, str], ...]) -> Reply:
    """Answer a GET that may request a range (RFC 9110, section 14): 206, 416, or 200 with all."""
    size = len(file.content)
    wanted = request.headers.get("range", "")
    if request.headers.get("if-range", file.etag) != file.etag:
        return Reply(200, file.content, headers)
    bounds = _parse_range(wanted, size)
    if bounds is None:
        return Reply(200, file.content, headers)
    first, last = bounds
    if first > last:
        return Reply(416, b"", (("content-range", f"bytes */{size}"), ("etag", file.etag)))
    part = file.content[first : last + 1]
    return Reply(206, part, (*headers, ("content-range", f"bytes {first}-{last}/{size}")))


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the first and last offset of the requested range.

    None: ignore the header (another unit, several ranges, malformed).  First above last: the range
    contains no byte of the content.
    """
    unit, _, spec = text.partition("=")
    first_text, dash, last_text = spec.strip().partition("-")
    digits = first_text + last_text
    if unit.lower() != "bytes" or not dash or not (digits.isascii() and digits.isdigit()):
        return None
    if len(first_text) > 18 or len(last_text) > 18:
        return None
    if not first_text:
        length = min(int(last_text), size)
        return size - length, size - 1
    first = int(first_text)
    last = int(last_text) if last_text else size - 1
    if last_text and last < first:
        return None
    return (first, min(last, size - 1)) if first < size else (1, 0)


CHECK_REQUESTS: list[tuple[str, str, bytes] | tuple[str, str, bytes, dict[str, str]]] = [
    ("GET", "/", b""),
    ("HEAD", "/index.html", b""),
    ("GET", "/index.html", b"", {"range": "bytes=5-20"}),
    ("GET", "/index.html", b"", {"range": "bytes=-7"}),
    ("GET", "/index.html", b"", {"range": "bytes=9999999-"}),
    ("GET", "/style.css", b"", {"if-none-match": "*"}),
    ("GET", "/about.txt?x=1", b""),
    ("GET", "/../etc/passwd", b""),
    ("GET", "/%2e%2e/etc/passwd", b""),
    ("GET", "/absent", b""),
    ("POST", "/", b"x"),
]
"""The requests of ``trivisor service check``."""
