"""The files that an overlay adds, that it is reproducible, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests.image import Image, ImageError, Overlay, add_overlay, verify
from guests.image.manifest import read_manifest
from tests.guests.image.archive import read_archives


def added(image: Image, base: Image) -> dict[str, bytes]:
    """The files that `image` holds beyond `base`."""
    whole, old = image.initrd.read_bytes(), base.initrd.read_bytes()
    assert whole.startswith(old)
    padding = -len(old) % 4
    assert whole[len(old) : len(old) + padding] == bytes(padding)
    return {e.name: e.body for e in read_archives(whole[len(old) + padding :]) if e.mode & 0o100000}


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
    with pytest.raises(ImageError, match=message):
        add_overlay(small_image, tmp_path / "node", overlay)


def test_link_in_static_content_is_refused(small_image: Image, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "secret").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="secret is neither a file nor a directory"):
        add_overlay(small_image, tmp_path / "node", Overlay(service="static", content=content))


@pytest.mark.parametrize("name", ["initrd", "vmlinux"])
def test_altered_image_is_refused(small_image: Image, tmp_path: Path, name: str) -> None:
    image = add_overlay(small_image, tmp_path / "node", Overlay(service="kv"))
    path = tmp_path / "node" / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ImageError, match=rf"{path} was altered.*remove .* and build again"):
        verify(image)


def test_altered_initrd_gets_no_overlay(small_image: Image, tmp_path: Path) -> None:
    small_image.initrd.write_bytes(b"other")
    with pytest.raises(ImageError, match="initrd was altered"):
        add_overlay(small_image, tmp_path / "node", Overlay(service="kv"))
