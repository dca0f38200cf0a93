"""Compiled modules: the same sources as machine code, made by mypyc (``guests.image.compile``).

The modules in MODULES also work uncompiled, and then behave the same.  A compiled build is in
``_compiled/KEY``, where KEY is the hash of the sources it was made from.  So a build of other
sources is never loaded: this process then runs the sources themselves, and ``REASON`` says why.

$TRIVISOR_PURE decides: 1 runs the sources, 0 requires the compiled modules (and exits with 2 if
there are none).  Without it, or empty, compiled modules are used where they are there.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_: bool):
        """Mark a class for the compiler; otherwise without effect."""
        return lambda cls: cls


__all__ = [
    "COMPILED",
    "LIBRARY",
    "MARK",
    "MODULES",
    "PARTS",
    "REASON",
    "SUMS",
    "directory",
    "load",
    "mypyc_attr",
    "pure",
]

MODULES = (
    "guests.protocol.wire",
    "guests.protocol.message",
    "guests.context",
    "guests.answer",
    "guests.services.table",
    "guests.agent.incarnation",
)
"""What is compiled: no class that a user's code touches, because compiled code checks types.

A service that returns something else than its types say must get the same reply in both forms, so
what it returns is ``Any`` in these modules.
``guests.agent.main`` is not compiled either: mypyc 2.4.1 writes twice in its write loop.
"""
PARTS = ("", "agent", "protocol", "services")
"""The directories whose sources are hashed: everything that a guest has."""
LIBRARY = "trivisor__mypyc"
"""The shared library with the code of all compiled modules."""
_HERE = os.path.dirname(os.path.abspath(__file__))
SUMS = "SHA256SUMS"
"""The file with the hashes of a build's files."""
MARK = "+compiled"
"""The end of the build in the WELCOME of an agent that runs compiled modules."""
COMPILED = False
"""Whether this process runs compiled modules."""
REASON = ""
"""Why it does not."""


def pure() -> bool:
    """Return whether $TRIVISOR_PURE forbids compiled modules."""
    return os.environ.get("TRIVISOR_PURE") == "1"


def directory(here: str = _HERE) -> str:
    """Return the directory of the build of the sources in ``here``, whether it exists or not."""
    digest = sha256()
    for part in PARTS:
        folder = os.path.join(here, part)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    text = file.read()
                digest.update(b"%s/%s %d\n" % (part.encode(), name.encode(), len(text)) + text)
    return os.path.join(here, "_compiled", digest.hexdigest()[:32])


class _Finder:
    """Finds the compiled modules, before Python finds their sources."""

    def __init__(self, place: str) -> None:
        self._place = place

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return how to load a compiled module; None for every other."""
        return _spec(self._place, name) if name in MODULES else None


def _spec(place: str, name: str) -> ModuleSpec | None:
    file = os.path.join(place, name + EXTENSION_SUFFIXES[0])
    return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


def _use(place: str) -> str:
    """Use the compiled modules in ``place``; return why it is impossible, or ""."""
    if not os.path.isdir(place):
        return (
            "they were made from other sources"
            if os.path.isdir(os.path.dirname(place))
            else "there are none"
        )
    spec = _spec(place, LIBRARY)
    if spec is None or not os.path.exists(str(spec.origin)):
        return "they are for another Python"
    if not _intact(place):
        return "they are damaged"
    try:
        sys.modules[LIBRARY] = module_from_spec(spec)
    except ImportError as error:
        return f"they cannot be loaded here: {error}"
    sys.meta_path.insert(0, _Finder(place))
    return ""


def _intact(place: str) -> bool:
    """Return whether the files are those that were built: a truncated library ends the process."""
    try:
        with open(os.path.join(place, SUMS)) as sums:
            for digest, name in map(str.split, sums):
                with open(os.path.join(place, name), "rb") as file:
                    if sha256(file.read()).hexdigest() != digest:
                        return False
    except (OSError, ValueError):
        return False
    return True


def load() -> None:
    """Have compiled modules imported instead of sources, if that is possible and wanted."""
    global COMPILED, REASON  # noqa: PLW0603 - one decision in a process
    wanted = os.environ.get("TRIVISOR_PURE", "")
    if wanted not in ("", "0", "1"):
        sys.stderr.write(f"trivisor: TRIVISOR_PURE={wanted}: set it to 1 or 0, or not at all\n")
        raise SystemExit(2)
    REASON = "TRIVISOR_PURE=1" if wanted == "1" else _use(directory())
    COMPILED = not REASON
    if wanted == "0" and REASON:
        sys.stderr.write(f"trivisor: TRIVISOR_PURE=0 requires compiled modules, and {REASON}: "
                         "`./run setup` makes them\n")  # fmt: skip
        raise SystemExit(2)
