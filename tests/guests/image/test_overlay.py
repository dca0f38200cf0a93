"""The files that an overlay adds, that it is reproducible, and what it refuses."""

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
from guests.image.recipe import ACCESS_LIBRARIES, ACCESS_MODULES, MULTIARCH, VSOCK_MODULES
from tests.errors import raises
from tests.guests.image.archive import Read, read_archives


def entries_added(image: Image, base: Image) -> dict[str, Read]:
    """Return the entries of `image` that are not in `base`."""
    whole, old = image.initrd.read_bytes(), base.initrd.read_bytes()
    assert whole.startswith(old)
    padding = -len(old) % 4
    assert whole[len(old) : len(old) + padding] == bytes(padding)
    return {entry.name: entry for entry in read_archives(whole[len(old) + padding :])}


def added(image: Image, base: Image) -> dict[str, bytes]:
    """Return the regular files of `image` that are not in `base`."""
    found = entries_added(image, base).values()
    return {entry.name: entry.body for entry in found if entry.mode & 0o100000}


def test_overlay_names_a_shipped_service(small_image: Image, tmp_path: Path) -> None:
    image = add_overlay(small_image, tmp_path / "node", Overlay(service="kv"))
    verify(image)
    assert added(image, small_image) == {"etc/trivisor/service": b"kv\n5555555555555555\n"}
    assert image.sha256 != small_image.sha256


def test_overlay_holds_a_users_file_and_content(small_image: Image, tmp_path: Path) -> None:
    service = tmp_path / "my service.py"
    service.write_text("x = 1\n")
    content = tmp_path / "content"
    (content / "deep").mkdir(parents=True)
    (content / "deep/page.html").write_text("<p>")
    overlay = Overlay(service_file=service, content=content, files={"etc/more": b"more"})
    image = add_overlay(small_image, tmp_path / "node", overlay)
    verify(image)
    found = added(image, small_image)
    assert found.pop("etc/trivisor/service").startswith(b"/opt/trivisor/user/service.py\n")
    assert found == {
        "opt/trivisor/user/service.py": b"x = 1\n",
        "etc/trivisor/content/deep/page.html": b"<p>",
        "etc/more": b"more",
    }
    files = read_manifest(image.manifest).files
    assert set(found) <= set(files)
    assert "init" in files


def test_overlay_configures_a_function(small_image: Image, tmp_path: Path) -> None:
    overlay = Overlay(service="kv", key=b"k" * 16)
    found = added(add_overlay(small_image, tmp_path / "node", overlay), small_image)
    assert found.pop("etc/trivisor/service").startswith(b"kv\n")
    key = {"etc/trivisor/function.key": b"6b" * 16 + b"\n"}
    assert found == key | {"etc/trivisor/function": b"hmac-sha256\n"}
    own = tmp_path / "f.py"
    own.write_text("x = 1\n")
    overlay = Overlay(service="kv", key=b"k" * 16, function_file=own)
    image = add_overlay(small_image, tmp_path / "own", overlay)
    assert image.initrd.stat().st_mode & 0o777 == 0o600, "it holds the key"
    found = added(image, small_image)
    assert found["etc/trivisor/function"] == b"/opt/trivisor/user/function.py\n"
    assert found["opt/trivisor/user/function.py"] == b"x = 1\n"
    with pytest.raises(ImageError, match="give `key`"):
        add_overlay(small_image, tmp_path / "x", Overlay(service="kv", function_file=own))


def test_build_name_depends_on_the_users_file(small_image: Image, tmp_path: Path) -> None:
    lines = []
    for text in ("x = 1\n", "x = 2\n"):
        service = tmp_path / "service.py"
        service.write_text(text)
        image = add_overlay(small_image, tmp_path / "node", Overlay(service_file=service))
        lines.append(added(image, small_image)["etc/trivisor/service"])
    assert lines[0] != lines[1]


def test_overlay_is_reproducible(small_image: Image, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    hashes = set()
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        for name in names:
            (content / name).unlink(missing_ok=True)
            (content / name).write_text(name)
        overlay = Overlay(service="static", content=content)
        hashes.add(add_overlay(small_image, tmp_path / f"node{number}", overlay).sha256)
    assert len(hashes) == 1


def test_node_does_not_need_the_cache(small_image: Image, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the first's files
        image = add_overlay(small_image, tmp_path / "node", Overlay(service="kv"))
    small_image.kernel.unlink()
    small_image.initrd.unlink()
    verify(image)
    assert sorted(path.name for path in (tmp_path / "node").iterdir()) == [
        "initrd",
        "manifest.json",
        "vmlinux",
    ]


@pytest.mark.parametrize("overlay", [Overlay(), Overlay(service="kv", service_file=Path("x.py"))])
def test_exactly_one_service_is_required(
    small_image: Image, tmp_path: Path, overlay: Overlay
) -> None:
    with pytest.raises(ImageError, match="`service` or `service_file`"):
        add_overlay(small_image, tmp_path / "node", overlay)


@pytest.mark.parametrize(
    "overlay, message",
    [
        (Overlay(service_file=Path("/nonexistent.py")), r"/nonexistent\.py cannot be put into"),
        (
            Overlay(service="static", content=Path("/nonexistent")),
            "/nonexistent is not a directory",
        ),
        (Overlay(service="kv", files={"../x": b""}), "cannot name a file"),
        (Overlay(service="kv\nx"), "cannot be the name of a service"),
    ],
)
def test_invalid_overlay_is_an_error(
    small_image: Image, tmp_path: Path, overlay: Overlay, message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        add_overlay(small_image, tmp_path / "node", overlay)
    if "name of a service" in message:
        assert caught.value.error_code == "TV0408"


def test_link_in_static_content_is_refused(small_image: Image, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "secret").symlink_to("/etc/passwd")
    with raises("TV0405", match="secret is neither a file nor a directory"):
        add_overlay(small_image, tmp_path / "node", Overlay(service="static", content=content))


@pytest.mark.parametrize("name", ["initrd", "vmlinux"])
def test_altered_image_is_refused(small_image: Image, tmp_path: Path, name: str) -> None:
    image = add_overlay(small_image, tmp_path / "node", Overlay(service="kv"))
    path = tmp_path / "node" / name
    path.write_bytes(path.read_bytes() + b"x")
    with raises("TV0414", match=rf"{path} was altered.*remove .* and build again"):
        verify(image)


def test_altered_initrd_gets_no_overlay(small_image: Image, tmp_path: Path) -> None:
    small_image.initrd.write_bytes(b"other")
    with raises("TV0414", match="initrd was altered"):
        add_overlay(small_image, tmp_path / "node", Overlay(service="kv"))


# ---- guests that allow faults inside

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


def test_overlay_without_keys_has_no_access_files(open_image: Image, tmp_path: Path) -> None:
    image = add_overlay(open_image, tmp_path / "node", Overlay(service="kv"))
    assert set(entries_added(image, open_image)) == {"etc", "etc/trivisor", "etc/trivisor/service"}
    manifest = read_manifest(image.manifest)
    assert manifest.access == ""
    assert "bin/sh" not in manifest.files


def test_overlay_with_keys_has_the_access_archive(open_image: Image, tmp_path: Path) -> None:
    image = add_overlay(open_image, tmp_path / "node", Overlay(service="kv", access=KEYS))
    verify(image)
    found = entries_added(image, open_image)
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
        f"lib/modules/{folder}/{order}-{module.rpartition('/')[2]}.ko"
        for folder, modules in (("access", ACCESS_MODULES), ("vsock", VSOCK_MODULES))
        for order, module in enumerate(modules)
    }
    assert wanted <= archive
    assert not wanted & base
    assert not any("key" in name for name in archive if name.startswith("etc"))
    manifest = read_manifest(real_image.manifest)
    assert "usr/sbin/dropbear" in manifest.access_files
    assert not set(manifest.access_files) & set(manifest.files)
