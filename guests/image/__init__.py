"""The guest image: built on the host, unattended and reproducibly, from Debian packages.

`build_image` gives the base image, `add_overlay` adds one node's service, `verify` tells whether an
image is what it was when it was built. `COMMAND_LINE` is what the kernel must be told at boot.
"""

from __future__ import annotations

from guests.image.access import Access
from guests.image.boot import COMMAND_LINE
from guests.image.build import build_image
from guests.image.errors import ImageError
from guests.image.manifest import Image, verify
from guests.image.overlay import Overlay, add_overlay

__all__ = [
    "COMMAND_LINE",
    "Access",
    "Image",
    "ImageError",
    "Overlay",
    "add_overlay",
    "build_image",
    "verify",
]
