"""The additional files of guests that allow faults inside; other guests have none of them."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import msgspec
import pytest

from guests.image import Access, Image, ImageError, Overlay, add_overlay, verify
from guests.image.cpio import pack
from guests.image.manifest import encode_record, read_manifest
from guests.image.overlay import ACCESS_ARCHIVE, access_entries
from guests.image.recipe import ACCESS_LIBRARIES, ACCESS_MODULES, MULTIARCH
from tests.guests.image.archive import Read, read_archives

KEYS = Access(host=b"a host key", client="ssh-ed25519 AAAA")


@pytest.fixture
def open_image(small_image: Image) -> Image:
    """The small image, with an access archive as a real one has."""
    archive = pack(access_entries())
    (small_image.manifest.parent / ACCESS_ARCHIVE).write_bytes(archive)
    described = msgspec.structs.replace(
        read_manifest(small_image.manifest),
        access=hashlib.sha256(archive).hexdigest(),
        access_files={"bin/sh": "2" * 64},
    )
    small_image.manifest.write_bytes(encode_record(described))
    return small_image


def added(image: Image, base: Image) -> dict[str, Read]:
    size = base.initrd.stat().st_size
    behind = image.initrd.read_bytes()[size + -size % 4 :]
    return {entry.name: entry for entry in read_archives(behind)}


def test_overlay_without_keys_has_no_access_files(open_image: Image, tmp_path: Path) -> None:
    image = add_overlay(open_image, tmp_path / "node", Overlay(service="kv"))
    assert set(added(image, open_image)) == {"etc", "etc/trivisor", "etc/trivisor/service"}
    manifest = read_manifest(image.manifest)
    assert manifest.access == ""
    assert "bin/sh" not in manifest.files


def test_overlay_with_keys_has_the_access_archive(open_image: Image, tmp_path: Path) -> None:
    image = add_overlay(open_image, tmp_path / "node", Overlay(service="kv", access=KEYS))
    verify(image)
    found = added(image, open_image)
    assert found["etc/trivisor/access"].body.startswith(b"# Run by init")
    assert found["bin/sh"].body == b"busybox"
    assert found["etc/passwd"].body.startswith(b"root:")
    for name, body in (
        ("etc/trivisor/host_key", b"a host key"),
        ("root/.ssh/authorized_keys", b"ssh-ed25519 AAAA\n"),
    ):
        assert found[name].body == body
        assert stat.S_IMODE(found[name].mode) == 0o600
    files = read_manifest(image.manifest).files
    assert {"bin/sh", "etc/trivisor/host_key"} <= set(files)


def test_image_is_a_function_of_the_keys(open_image: Image, tmp_path: Path) -> None:
    other = msgspec.structs.replace(KEYS, host=b"another")
    hashes = [
        add_overlay(open_image, tmp_path / f"n{n}", Overlay(service="kv", access=keys)).sha256
        for n, keys in enumerate((KEYS, KEYS, other))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_keys_are_refused_when_the_image_is_no_base_image(
    small_image: Image, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="is no base image"):
        add_overlay(small_image, tmp_path / "node", Overlay(service="kv", access=KEYS))


def test_altered_archive_is_refused(open_image: Image, tmp_path: Path) -> None:
    (open_image.manifest.parent / ACCESS_ARCHIVE).write_bytes(b"else")
    with pytest.raises(ImageError, match="altered"):
        add_overlay(open_image, tmp_path / "node", Overlay(service="kv", access=KEYS))


@pytest.mark.vm
def test_only_the_real_access_archive_holds_the_server(real_image: Image) -> None:
    archive = {
        entry.name
        for entry in read_archives((real_image.initrd.parent / ACCESS_ARCHIVE).read_bytes())
    }
    base = {entry.name for entry in read_archives(real_image.initrd.read_bytes())}
    wanted = {"usr/sbin/dropbear", "etc/trivisor/access", "bin/sh", "etc/passwd"}
    wanted |= {f"lib/{MULTIARCH}/{library}" for library in ACCESS_LIBRARIES}
    wanted |= {
        f"lib/modules/access/{order}-{module.rpartition('/')[2]}.ko"
        for order, module in enumerate(ACCESS_MODULES)
    }
    assert wanted <= archive
    assert not wanted & base
    assert not any("key" in name for name in archive if name.startswith("etc"))
    manifest = read_manifest(real_image.manifest)
    assert "usr/sbin/dropbear" in manifest.access_files
    assert not set(manifest.access_files) & set(manifest.files)
