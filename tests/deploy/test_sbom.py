"""Software bills of materials: complete, valid by CycloneDX's schema, the same bytes each time."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.sbom import image_sbom, main, wheel_sbom
from guests.image.manifest import Manifest, encode_record
from guests.image.packages import Package

WHEN = datetime(2026, 1, 2, tzinfo=UTC)
LOCKS = Path(__file__).resolve().parents[2] / "locks"
MANIFEST = Manifest(
    inputs="0" * 64, kernel="1" * 64, initrd="2" * 64, command_line="",
    packages=[
        Package(name="libc6", version="2.36-9+deb12u1", architecture="amd64", sha256="3" * 64),
        Package(name="busybox-static", version="1:1.35.0-4", architecture="amd64", sha256="4" * 64),
    ],
    files={},
)  # fmt: skip


@pytest.mark.parametrize("lock", ["campaign.txt", "run.txt", "test.txt"])
def test_bill_of_a_lock_names_every_library(lock: str) -> None:
    text = (LOCKS / lock).read_text()
    bill = wheel_sbom(text, "1.0", WHEN)
    pinned = {tuple(each) for each in re.findall(r"^(\S+?)==([^\s;]+)", text, re.MULTILINE)}
    assert {(each["name"], each["version"]) for each in bill["components"]} == pinned
    assert pinned
    assert len(bill["dependencies"][0]["dependsOn"]) == len(bill["components"])


def test_bill_of_the_image_has_each_package_with_its_hash() -> None:
    bill = image_sbom(MANIFEST, "1.0", WHEN)
    assert [(each["purl"], each["hashes"][0]["content"]) for each in bill["components"]] == [
        ("pkg:deb/debian/busybox-static@1%3A1.35.0-4?arch=amd64&distro=debian-12", "4" * 64),
        ("pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12", "3" * 64),
    ]


def test_bills_are_valid_and_reproducible(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767312000")
    (scratch / "manifest.json").write_bytes(encode_record(MANIFEST))
    contents = []
    for name in ("first", "second"):
        (scratch / name).mkdir()
        assert not main(
            ["--out", str(scratch / name), "--manifest", str(scratch / "manifest.json")]
        )
        files = sorted((scratch / name).iterdir())
        assert [path.name.partition("-0")[0] for path in files] == [
            "trivisor", "trivisor-guest-image"
        ]  # fmt: skip
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    for data in contents[0]:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
        bill = json.loads(data)
        assert bill["metadata"]["timestamp"] == "2026-01-02T00:00:00Z"
        assert bill["serialNumber"].startswith("urn:uuid:")
