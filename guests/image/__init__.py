"""The guest image: built on the host, unattended and reproducibly, from Debian packages and this repository.

`build_image` gives the base image, `add_overlay` adds one node's service, `verify` tells whether an image is
what it was when it was built. `COMMAND_LINE` is what the kernel must be told at boot.
"""

from __future__ import annotations

from guests.image.build import Image, build_image, verify
from guests.image.errors import ImageError
from guests.image.overlay import Overlay, add_overlay
from guests.image.recipe import COMMAND_LINE

__all__ = ["COMMAND_LINE", "Image", "ImageError", "Overlay", "add_overlay", "build_image", "verify"]
