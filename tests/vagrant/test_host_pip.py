"""Which files of this host pip's settings name, wherever the settings come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vagrant.host_pip import find_host_pip, local_path, named_in, parse_listing, resolve

__all__: list[str] = []


def write(path: Path, text: str = "") -> Path:
    """Write a file, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- what pip lists ----------------------------------------------------------------------------


def test_listing_gives_a_command_and_the_environment_the_last_word() -> None:
    listed = "\n".join(
        [
            ":env:.timeout='3'",
            "global.retries='1'",
            "global.timeout='1'",
            "install.retries='2'",
            "install.timeout='2'",
            "wheel.retries='9'",
        ]
    )
    assert parse_listing(listed) == {"timeout": "3", "retries": "2"}


def test_listing_ignores_empty_values_and_reads_those_of_several_lines() -> None:
    listed = "global.cert=''\nglobal.find_links='\\n/one\\n/two'\n"
    assert parse_listing(listed) == {"find-links": "/one\n/two"}


# ---- pip's own files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["named.conf", "xdg/pip/pip.conf", "home/.pip/pip.conf", "home/.config/pip/pip.conf"],
)
def test_named_files_are_found_in_each_of_pips_configuration_files(
    tmp_path: Path, place: str
) -> None:
    named = write(tmp_path / "named/constraints.txt", "pip<99\n")
    # An option that no other configuration file of this host is likely to override.
    config = write(
        tmp_path / place, f"[global]\nbuild-constraint =\n    {named}\n    missing.txt\n"
    )
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    folders = {"HOME": "home", "XDG_CONFIG_HOME": "home/.config", "XDG_CONFIG_DIRS": "xdg"}
    environment = clean | {name: str(tmp_path / folder) for name, folder in folders.items()}
    if place == "named.conf":
        environment["PIP_CONFIG_FILE"] = str(config)
    found = find_host_pip(environment)
    assert found.environment["PIP_BUILD_CONSTRAINT"] == str(named)
    assert named in found.copied
    assert "PIP_CONFIG_FILE" not in found.environment


def test_the_environment_overrides_pips_files(tmp_path: Path) -> None:
    named = write(tmp_path / "constraints.txt", "pip<99\n")
    config = write(tmp_path / "pip.conf", "[install]\nconstraint = /no/such/file\n")
    environment = os.environ | {"PIP_CONFIG_FILE": str(config), "PIP_CONSTRAINT": str(named)}
    found = find_host_pip(environment)
    assert found.environment["PIP_CONSTRAINT"] == str(named)
    assert named in found.copied


# ---- what the settings name --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["constraint", "build-constraint", "requirement"])
def test_requirements_are_copied_and_missing_ones_left_out(tmp_path: Path, option: str) -> None:
    first, second = write(tmp_path / "a.txt"), write(tmp_path / "b c.txt")
    text = f"{first}\n{second.as_uri()}  {tmp_path}/missing.txt\nhttps://host.invalid/c.txt"
    found = resolve({option: text}, tmp_path)
    name = f"PIP_{option.replace('-', '_').upper()}"
    kept = f"{first} {second.as_uri()} https://host.invalid/c.txt"
    assert found.environment == {name: kept}
    assert found.copied == (first, second) and found.shown == ()


def test_an_option_whose_files_are_all_missing_is_left_out(tmp_path: Path) -> None:
    settings = {
        "constraint": "missing.txt",
        "cert": "/no/such/cert.pem",
        "find-links": "file:///no",
    }
    assert resolve(settings, tmp_path).environment == {}


def test_relative_paths_start_at_the_given_folder_and_become_absolute(tmp_path: Path) -> None:
    named = write(tmp_path / "pins.txt")
    found = resolve({"constraint": "sub/../pins.txt"}, tmp_path)
    assert found.environment == {"PIP_CONSTRAINT": str(named)}
    assert found.copied == (named,)


def test_paths_below_the_home_folder_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    found = resolve({"find-links": "~/wheels"}, Path("/"))
    assert found.environment == {"PIP_FIND_LINKS": str(tmp_path / "wheels")}
    assert found.shown == (tmp_path / "wheels",)


@pytest.mark.parametrize("option", ["cert", "client-cert"])
def test_a_certificate_is_copied_also_where_its_path_holds_a_space(
    tmp_path: Path, option: str
) -> None:
    named = write(tmp_path / "our certificates/ca.pem")
    found = resolve({option: str(named)}, tmp_path)
    assert list(found.environment.values()) == [str(named)]
    assert found.copied == (named,)


def test_folders_of_packages_are_shown_an_index_with_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "more/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    settings = {
        "index-url": f"file://{tmp_path}/index/simple/",
        "extra-index-url": f"https://host.invalid/simple\nfile://localhost{tmp_path}/more/simple",
        "find-links": f"{tmp_path}/wheels https://host.invalid/wheels",
    }
    found = resolve(settings, tmp_path)
    assert found.shown == (tmp_path / "index", tmp_path / "more", tmp_path / "wheels")
    assert found.copied == ()
    assert {name: text.split() for name, text in found.environment.items()} == {
        "PIP_INDEX_URL": [f"file://{tmp_path}/index/simple/"],
        "PIP_EXTRA_INDEX_URL": settings["extra-index-url"].split(),
        "PIP_FIND_LINKS": settings["find-links"].split(),
    }


def test_a_page_of_links_is_copied(tmp_path: Path) -> None:
    page = write(tmp_path / "links.html")
    assert resolve({"find-links": str(page)}, tmp_path).copied == (page,)


def test_a_missing_index_is_kept_because_pip_would_use_another_one(tmp_path: Path) -> None:
    found = resolve({"index-url": "file:///no/such/simple"}, tmp_path)
    assert found.environment == {"PIP_INDEX_URL": "file:///no/such/simple"}
    assert found.shown == ()


def test_settings_that_name_no_files_stay_as_they_are(tmp_path: Path) -> None:
    settings = {"trusted-host": "one two", "timeout": "60", "no-binary": "libvirt-python"}
    found = resolve(settings, tmp_path)
    assert found.environment == {
        "PIP_TRUSTED_HOST": "one two",
        "PIP_TIMEOUT": "60",
        "PIP_NO_BINARY": "libvirt-python",
    }
    assert found.copied == () and found.shown == ()


# ---- what requirements name --------------------------------------------------------------------


def test_files_that_requirements_name_are_found_from_their_own_folder(tmp_path: Path) -> None:
    wheel = write(tmp_path / "wheels/own-1-py3-none-any.whl")
    (tmp_path / "index/simple").mkdir(parents=True)
    other = write(tmp_path / "more/other.txt", f"-c ../first.txt\nown @ {wheel.as_uri()}\n")
    third = write(tmp_path / "third.txt", "--find-links wheels\n--index-url=index/simple\n")
    first = write(
        tmp_path / "first.txt",
        "# -r comment.txt\npip<99  # a @ file:///comment\n-rmore/other.txt\n"
        "--constraint third.txt\n-c https://host.invalid/c.txt\n-r missing.txt\n",
    )
    files, folders = named_in([first])
    assert files == [first, other, third, wheel]
    assert folders == [tmp_path / "wheels", tmp_path / "index"]


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("/a/b", "/a/b"),
        ("b", "/base/b"),
        ("file:/a/b", "/a/b"),
        ("file:///a%20b/c#sha256=0", "/a b/c"),
        ("file://localhost/a", "/a"),
    ],
)
def test_local_path_understands_paths_and_file_urls(word: str, path: str) -> None:
    assert local_path(word, Path("/base")) == Path(path)


@pytest.mark.parametrize(
    "word", ["https://host.invalid/a", "git+ssh://host.invalid/a", "file://far/a"]
)
def test_local_path_knows_what_is_on_another_host(word: str) -> None:
    assert local_path(word, Path("/base")) is None
