"""What a guest is made of: packages, kernel modules, and the part of Python's library that a service may import.

Change anything here that alters the image without altering a listed input, and raise RECIPE.
"""

from __future__ import annotations

import fnmatch

__all__ = [
    "COMMAND_LINE",
    "KERNEL_MODULES",
    "LIBRARIES",
    "LOADER",
    "MULTIARCH",
    "PACKAGES",
    "PYTHON",
    "RECIPE",
    "wanted",
]

RECIPE = 1
"""The version of how an image is put together; part of the cache key."""

PACKAGES = ("busybox-static", "libpython3.11-stdlib", "linux-image-cloud-amd64", "python3-minimal")

PYTHON = "python3.11"

COMMAND_LINE = "console=ttyS0 quiet panic=0 nokaslr mitigations=off"
"""What the kernel must be told; a caller may add to it. `panic=0`: a panicking guest hangs, so that its QEMU
lives and a snapshot can be put back, which costs 0.1 s where a cold start costs seconds."""

KERNEL_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/virtio_console",
)
"""In the order in which they must be loaded (in the cloud kernel, virtio needs virtio_ring before it)."""

MULTIARCH = "x86_64-linux-gnu"

LOADER = "ld-linux-x86-64.so.2"

LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")
"""What the Python program is linked to, beside its modules; zlib serves the module of that name too."""

# Top-level modules and packages, as file-name patterns below the library's directory. It is an allow-list:
# what a guest does not hold costs it no memory. Networking, processes of its own, terminals, SQL, TLS and
# the like make no sense in a replica, whose only link to the world is its virtio-serial port.
_MODULES = """
    __future__ _bootsubprocess _collections_abc _compat_pickle _compression _markupbase _py_abc _pydecimal
    _sitebuiltins _strptime _threading_local _weakrefset abc argparse array ast asyncio base64 bisect
    calendar cmath codecs collections colorsys concurrent configparser contextlib contextvars copy copyreg
    csv dataclasses datetime decimal difflib dis email enum fnmatch fractions functools genericpath glob
    graphlib gzip hashlib heapq hmac html http importlib inspect io ipaddress json keyword linecache
    locale logging mimetypes numbers opcode operator os pathlib pickle pkgutil platform posixpath pprint
    queue quopri random re reprlib runpy sched secrets selectors shlex shutil signal site socket sre_compile
    sre_constants sre_parse stat statistics string stringprep struct subprocess tempfile textwrap threading
    token tokenize tomllib traceback types typing unicodedata urllib uu uuid warnings weakref xml zipfile
    zipimport zoneinfo ntpath
""".split()

_ENCODINGS = ("__init__", "aliases", "ascii", "base64_codec", "hex_codec", "idna", "latin_1", "punycode",
              "raw_unicode_escape", "unicode_escape", "utf_16*", "utf_32*", "utf_7", "utf_8*", "zlib_codec",
              "cp437", "cp1252", "iso8859_1", "charmap")  # fmt: skip

_EXTENSIONS = ("_asyncio", "_contextvars", "_decimal", "_json", "_queue", "_typing", "_zoneinfo",
               "mmap", "termios", "resource")  # fmt: skip


def wanted(path: str) -> bool:
    """Whether the file at `path`, relative to Python's library directory, belongs in a guest."""
    top, _, rest = path.partition("/")
    if top == "lib-dynload":
        return rest.split(".", 1)[0] in _EXTENSIONS
    if not path.endswith(".py"):
        return False
    if top == "encodings":
        return any(fnmatch.fnmatchcase(rest, f"{name}.py") for name in _ENCODINGS)
    if top == "asyncio" and rest.startswith(("windows", "proactor")):
        return False
    return top.removesuffix(".py") in _MODULES
