"""The guest image: built on the host, unattended and reproducibly, from Debian packages.

``build_image`` returns the base image: a kernel and an initramfs.  ``add_overlay`` adds one node's
service.  ``verify`` checks an image against its manifest.  ``COMMAND_LINE`` is the kernel's.

The layers, from the bottom: ``host`` (programs and files of the host); ``recipe``, ``sources``,
``cpio``, ``kernel`` and ``bytecode`` (one step of the build each); ``packages``; ``manifest``;
``overlay``; ``build`` and ``additions``.
"""

from __future__ import annotations

from guests.image.additions import Additions, fetch_additions
from guests.image.build import build_image, packages_at_hand
from guests.image.host import ImageError, ProgramMissing
from guests.image.kernel import COMMAND_LINE
from guests.image.manifest import Image, verify
from guests.image.overlay import Access, Overlay, add_overlay

__all__ = [
    "COMMAND_LINE",
    "Access",
    "Additions",
    "Image",
    "ImageError",
    "Overlay",
    "ProgramMissing",
    "add_overlay",
    "build_image",
    "fetch_additions",
    "packages_at_hand",
    "verify",
]
