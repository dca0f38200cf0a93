"""The contents of a guest: packages, kernel modules, the importable part of Python's library."""

from __future__ import annotations

import fnmatch

__all__ = [
    "ACCESS_LIBRARIES",
    "ACCESS_MODULES",
    "ACCESS_PACKAGES",
    "ACCESS_PROGRAMS",
    "KERNEL_MODULES",
    "LIBRARIES",
    "LOADER",
    "MULTIARCH",
    "PACKAGES",
    "PYTHON",
    "VSOCK_MODULES",
    "wanted",
]

PACKAGES = ("busybox-static", "libpython3.11-stdlib", "linux-image-cloud-amd64", "python3-minimal")

PYTHON = "python3.11"

KERNEL_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/virtio_console",
)
"""In loading order: virtio needs virtio_ring before it."""

ACCESS_PACKAGES = ("dropbear-bin",)
"""Only for guests that allow faults inside: an SSH server and what it needs."""

ACCESS_PROGRAMS = ("sbin/dropbear",)

ACCESS_LIBRARIES = ("libcrypt.so.1", "libgmp.so.10", "libtomcrypt.so.1", "libtommath.so.1")

ACCESS_MODULES = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")
"""In loading order."""

VSOCK_MODULES = (
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
)
"""In loading order.  They are with the access modules; only ``trivisor bench link`` loads them."""

MULTIARCH = "x86_64-linux-gnu"

LOADER = "ld-linux-x86-64.so.2"

LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1")
"""The libraries that the Python program is linked to."""

# Top-level modules and packages, as file-name patterns below the library's directory.  It is an
# allow-list: a module that a guest does not hold costs it no memory.  A replica's only connection
# is its virtio-serial port, so networking, terminals, SQL and TLS are left out.
_MODULES = """
    __future__ _bootsubprocess _collections_abc _compat_pickle _compression _markupbase _py_abc
    _sitebuiltins _strptime _threading_local _weakrefset abc argparse array ast asyncio base64
    bisect calendar cmath codecs collections colorsys concurrent configparser contextlib contextvars
    copy copyreg csv dataclasses datetime decimal difflib dis email enum fnmatch fractions functools
    genericpath glob graphlib gzip hashlib heapq hmac html http importlib inspect io ipaddress json
    keyword linecache locale logging mimetypes numbers opcode operator os pathlib pickle pkgutil
    platform posixpath pprint queue quopri random re reprlib runpy sched secrets selectors shlex
    shutil signal site socket sre_compile sre_constants sre_parse stat statistics string stringprep
    struct subprocess tempfile textwrap threading timeit token tokenize tomllib traceback types
    typing unicodedata urllib uuid warnings weakref xml zipfile zipimport ntpath
""".split()  # noqa: SIM905 - as a list it would be a hundred lines

# File-name patterns below encodings/.
_ENCODINGS = """
    __init__ aliases ascii base64_codec charmap cp437 cp1252 hex_codec idna iso8859_1 latin_1
    punycode raw_unicode_escape unicode_escape utf_16* utf_32* utf_7 utf_8* zlib_codec
""".split()  # noqa: SIM905

# C modules below lib-dynload/; many more are part of the Python program itself.
_EXTENSIONS = """
    _asyncio _contextvars _decimal _json _queue _typing mmap resource termios
""".split()  # noqa: SIM905


def wanted(path: str) -> bool:
    """Return whether a file, given relative to Python's library directory, belongs in a guest."""
    top, _, rest = path.partition("/")
    if top == "lib-dynload":
        return rest.split(".", 1)[0] in _EXTENSIONS
    if not path.endswith(".py"):
        return False
    if top == "encodings":
        return any(fnmatch.fnmatchcase(rest, f"{name}.py") for name in _ENCODINGS)
    if path == "http/server.py" or (top == "asyncio" and rest.startswith(("windows", "proactor"))):
        return False
    return top.removesuffix(".py") in _MODULES
