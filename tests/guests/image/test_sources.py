"""Of the host's apt sources, Debian's own are used and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests.image import ImageError
from guests.image.sources import debian_sources
from tests.errors import raises


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_one_line_entries_are_read(apt: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb http://mirror.test/debian trixie main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
        "http://mirror.test/debian bookworm main contrib # ours\n"
        "deb-src http://mirror.test/debian bookworm main\n"
    )
    assert debian_sources(apt) == (
        "Types: deb\nUris: http://mirror.test/debian\nSuites: bookworm\nComponents: main\n"
        "Architectures: amd64\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_deb822_entries_are_reduced_to_bookworm_main(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb deb-src\n# a comment\nURIs: http://mirror.test/debian\n"
        "Suites: bookworm bookworm-updates bookworm-backports trixie\nComponents: main non-free\n"
        "\n\nTypes: deb\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\n"
        "Components: main\n"
    )
    text = debian_sources(apt)
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "Suites: bookworm-security\n" in text
    assert "backports" not in text
    assert "deb-src" not in text
    assert "non-free" not in text


def test_inline_key_is_kept(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    )
    assert debian_sources(apt).endswith(
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "deb http://vendor.test/repository bookworm main",
        "deb http://vendor.test/linux/debian bookworm stable",
        "deb http://vendor.test/apt/debian bookworm-vendor main",
        "deb [signed-by=/etc/apt/keyrings/vendor.gpg] http://vendor.test/debian bookworm main",
    ],
)
def test_vendors_sources_are_left_out(apt: Path, line: str) -> None:
    (apt / "sources.list").write_text(f"deb http://mirror.test/debian bookworm main\n{line}\n")
    text = debian_sources(apt)
    assert "mirror.test" in text
    assert "vendor" not in text


def test_mirrors_of_another_debian_release_serve_debian_12(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://mirror.test/debian\nComponents: main\n"
        "Suites: trixie trixie-updates trixie-backports\n\n"
        "Types: deb\nURIs: http://mirror.test/debian-security\nSuites: trixie-security\n"
        "Components: main\n"
    )
    text = debian_sources(apt)
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "Suites: bookworm-security\n" in text
    assert "trixie" not in text


def test_other_distributions_sources_are_rejected(apt: Path) -> None:
    (apt / "sources.list").write_text("deb http://archive.test/ubuntu noble main\n")
    with pytest.raises(ImageError, match="no apt source for Debian 12") as caught:
        debian_sources(apt)
    assert "Debian" in caught.value.remedy


def test_disabled_entry_is_left_out(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        "Enabled: no\nTypes: deb\nURIs: http://mirror.test/debian\n"
        "Suites: bookworm\nComponents: main\n"
    )
    with raises("TV0412", match="no apt source for Debian 12"):
        debian_sources(apt)


def test_only_files_that_apt_reads_are_read(apt: Path) -> None:
    (apt / "sources.list.d/debian.list.save").write_text(
        "deb http://mirror.test/debian bookworm main\n"
    )
    with raises("TV0412", match="no apt source"):
        debian_sources(apt)
