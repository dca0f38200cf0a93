"""Software bills of materials of a release: CycloneDX 1.6 as JSON.

``python -m deploy.sbom --out DIR --manifest FILE`` writes two files: what the wheel needs, from its
lock, and the Debian packages in the guest image, from its manifest.  The same inputs give the same
bytes: the serial number is derived from the contents, the time stamp is SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from guests.image.manifest import Manifest, read_manifest

__all__ = ["image_sbom", "main", "wheel_sbom"]

ROOT = Path(__file__).resolve().parents[1]
_LOCKED = re.compile(
    r"^([a-z0-9][a-z0-9.-]*)==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$", re.MULTILINE
)
_NAMESPACE = uuid.UUID("6f1d1f0e-6a0e-5b6e-9a63-6d0f3c1c7a11")
"""Of the serial numbers; a constant, so that they depend on the contents only."""


def wheel_sbom(lock: str, version: str, when: datetime) -> dict[str, Any]:
    """Return the bill of the wheel: the libraries of a lock (``locks/campaign.txt``)."""
    components = []
    for name, pinned, marker in _LOCKED.findall(lock):
        component = _component("library", name, pinned, f"pkg:pypi/{name}@{quote(pinned)}")
        if marker:
            component["properties"] = [{"name": "trivisor:marker", "value": marker}]
        components.append(component)
    root = _component("application", "trivisor", version, f"pkg:pypi/trivisor@{quote(version)}")
    return _document(root, components, when)


def image_sbom(manifest: Manifest, version: str, when: datetime) -> dict[str, Any]:
    """Return the bill of the guest image: its Debian packages with the hashes of their files."""
    components = []
    for package in manifest.packages:
        name, pinned, machine = package.name, package.version, package.architecture
        purl = f"pkg:deb/debian/{name}@{quote(pinned, safe='')}?arch={machine}&distro=debian-12"
        component = _component("library", name, pinned, purl)
        component["hashes"] = [{"alg": "SHA-256", "content": package.sha256}]
        components.append(component)
    root = _component("operating-system", "trivisor-guest-image", version, "")
    root["hashes"] = [{"alg": "SHA-256", "content": manifest.initrd}]
    return _document(root, components, when)


def _component(kind: str, name: str, version: str, purl: str) -> dict[str, Any]:
    component = {"type": kind, "bom-ref": purl or f"{name}@{version}"}
    component |= {"name": name, "version": version}
    return component | ({"purl": purl} if purl else {})


def _document(
    root: dict[str, Any], components: Iterable[dict[str, Any]], when: datetime
) -> dict[str, Any]:
    found = sorted(components, key=lambda each: str(each["bom-ref"]))
    if root["name"] == "trivisor":
        root["licenses"] = [{"license": {"id": "Apache-2.0"}}]
    contents = msgspec.json.encode([root, found])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, contents.hex())}",
        "version": 1,
        "metadata": {"timestamp": when.isoformat().replace("+00:00", "Z"), "component": root},
        "components": found,
        "dependencies": [
            {"ref": root["bom-ref"], "dependsOn": [each["bom-ref"] for each in found]}
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both bills and print their paths; return the exit status."""
    parser = argparse.ArgumentParser(prog="sbom", description="Software bills of materials")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write to")
    parser.add_argument("--manifest", type=Path, required=True, help="the guest image's manifest")
    options = parser.parse_args(arguments)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = str(project["version"])
    when = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    lock = (ROOT / "locks" / "campaign.txt").read_text(encoding="utf-8")
    bills = {
        f"trivisor-{version}.cdx.json": wheel_sbom(lock, version, when),
        f"trivisor-guest-image-{version}.cdx.json": image_sbom(
            read_manifest(options.manifest), version, when
        ),
    }
    for name, bill in bills.items():
        path = options.out / name
        path.write_bytes(msgspec.json.format(msgspec.json.encode(bill), indent=2) + b"\n")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
