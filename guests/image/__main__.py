"""``python -m guests.image --cache DIR``: build the base image and list its contents."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from guests.image.build import build_image
from guests.image.host import ImageError
from guests.image.manifest import read_manifest

__all__ = ["main"]


def main() -> int:
    """Run the command; return its exit code: 1 if the image cannot be built."""
    parser = argparse.ArgumentParser(
        prog="python -m guests.image", description="Build the guest image."
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="directory that keeps built images"
    )
    parser.add_argument("--files", action="store_true", help="also list every file of the image")
    arguments = parser.parse_args()
    try:
        image = build_image(
            arguments.cache, progress=lambda step: print(f"... {step}", file=sys.stderr)
        )
        manifest = read_manifest(image.manifest)
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.remedy:
            print(f"remedy: {error.remedy}", file=sys.stderr)
        return 1
    print(f"sha256    {image.sha256}")
    for name, path in (("kernel", image.kernel), ("initrd", image.initrd)):
        print(f"{name:9} {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"manifest  {image.manifest}")
    print(f"packages  {len(manifest.packages)}")
    for package in manifest.packages:
        print(f"    {package.name} {package.version} {package.architecture}")
    if arguments.files:
        print(f"files     {len(manifest.files)}")
        for name, digest in sorted(manifest.files.items()):
            print(f"    {digest} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
