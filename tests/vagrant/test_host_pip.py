"""pip's settings and the host's files that they name are found, wherever the settings come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vagrant.host_pip import find_host_pip, local_path, parse_listing, resolve

__all__: list[str] = []


def write(path: Path, text: str = "") -> Path:
    """Write a file, with the directories that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_strongest_section_of_a_listing_wins_and_empty_values_are_ignored() -> None:
    listing = (
        ":env:.timeout='3'\nglobal.retries='1'\nglobal.timeout='1'\ninstall.retries='2'\n"
        "install.timeout='2'\nwheel.retries='9'\nglobal.cert=''\nglobal.find_links='\\n/1\\n/2'\n"
    )
    expected = {"timeout": "3", "retries": "2", "find-links": "/1\n/2"}
    assert parse_listing(listing) == expected


@pytest.mark.parametrize(
    "place",
    ["named.conf", "xdg/pip/pip.conf", "home/.pip/pip.conf", "home/.config/pip/pip.conf"],
)
def test_files_named_in_each_of_pips_configuration_files_are_found(
    tmp_path: Path, place: str
) -> None:
    named = write(tmp_path / "named/constraints.txt", "pip<99\n")
    # An option that no other configuration file of this host is likely to override.
    config = write(
        tmp_path / place, f"[global]\nbuild-constraint =\n    {named}\n    missing.txt\n"
    )
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    places = {"HOME": "home", "XDG_CONFIG_HOME": "home/.config", "XDG_CONFIG_DIRS": "xdg"}
    environment = clean | {name: str(tmp_path / place) for name, place in places.items()}
    if place == "named.conf":
        environment["PIP_CONFIG_FILE"] = str(config)
    found = find_host_pip(environment)
    assert found.environment["PIP_BUILD_CONSTRAINT"] == str(named)
    assert named in found.copied
    assert "PIP_CONFIG_FILE" not in found.environment


@pytest.mark.parametrize("option", ["constraint", "build-constraint", "requirement"])
def test_requirements_are_copied_and_missing_ones_omitted(tmp_path: Path, option: str) -> None:
    first, second = write(tmp_path / "a.txt"), write(tmp_path / "b c.txt")
    text = f"sub/../a.txt\n{second.as_uri()}  {tmp_path}/missing.txt\nhttps://host.invalid/c.txt"
    found = resolve({option: text}, tmp_path)
    name = f"PIP_{option.replace('-', '_').upper()}"
    kept = f"{first} {second.as_uri()} https://host.invalid/c.txt"
    assert found == ({name: kept}, (first, second), ())


def test_requirements_are_copied_with_the_files_that_they_name(tmp_path: Path) -> None:
    wheel = write(tmp_path / "wheels/own-1-py3-none-any.whl")
    (tmp_path / "index/simple").mkdir(parents=True)
    other = write(tmp_path / "more/other.txt", f"-c ../first.txt\nown @ {wheel.as_uri()}\n")
    third = write(tmp_path / "third.txt", "--find-links wheels\n--index-url=index/simple\n")
    first = write(
        tmp_path / "first.txt",
        "# -r comment.txt\npip<99  # a @ file:///comment\n-rmore/other.txt\n"
        "--constraint third.txt\n-c https://host.invalid/c.txt\n-r missing.txt\n",
    )
    found = resolve({"constraint": str(first)}, tmp_path)
    assert set(found.copied) == {first, other, third, wheel}
    assert set(found.shown) == {tmp_path / "wheels", tmp_path / "index"}


def test_settings_whose_files_are_missing_are_omitted_except_an_index(tmp_path: Path) -> None:
    missing = {"constraint": "missing.txt", "cert": "/no/cert.pem", "find-links": "file:///no"}
    index = {"index-url": "file:///no/such/simple"}
    expected = ({"PIP_INDEX_URL": "file:///no/such/simple"}, (), ())
    assert resolve(missing | index, tmp_path) == expected


@pytest.mark.parametrize("option", ["cert", "client-cert"])
def test_certificate_is_copied_when_its_path_contains_a_space(tmp_path: Path, option: str) -> None:
    named = write(tmp_path / "our certificates/ca.pem")
    found = resolve({option: str(named)}, tmp_path)
    assert (list(found.environment.values()), found.copied) == ([str(named)], (named,))


def test_directories_of_packages_are_shown_and_pages_of_links_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("index/simple", "more/simple", "wheels"):
        (tmp_path / name).mkdir(parents=True)
    page = write(tmp_path / "links.html")
    settings = {
        "index-url": f"file://{tmp_path}/index/simple/",
        "extra-index-url": f"https://host.invalid/simple\nfile://localhost{tmp_path}/more/simple",
        "find-links": f"~/wheels {page} https://host.invalid/wheels",
        "trusted-host": "one two",
    }
    found = resolve(settings, Path("/"))
    assert found.shown == (tmp_path / "index", tmp_path / "more", tmp_path / "wheels")
    assert found.copied == (page,)
    assert {name: text.split() for name, text in found.environment.items()} == {
        "PIP_INDEX_URL": [f"file://{tmp_path}/index/simple/"],
        "PIP_EXTRA_INDEX_URL": settings["extra-index-url"].split(),
        "PIP_FIND_LINKS": [f"{tmp_path}/wheels", str(page), "https://host.invalid/wheels"],
        "PIP_TRUSTED_HOST": ["one", "two"],
    }


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("/a/b", "/a/b"),
        ("b", "/base/b"),
        ("file:/a/b", "/a/b"),
        ("file:///a%20b/c#sha256=0", "/a b/c"),
        ("file://localhost/a", "/a"),
        ("https://host.invalid/a", None),
        ("git+ssh://host.invalid/a", None),
        ("file://far/a", None),
    ],
)
def test_local_path_is_none_on_another_host(word: str, path: str | None) -> None:
    assert local_path(word, Path("/base")) == (None if path is None else Path(path))
