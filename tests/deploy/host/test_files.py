"""Files are replaced atomically, logs stay bounded, too long socket paths are rejected."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from deploy.errors import CannotRunHere, PathTooLong, PathUnusable
from deploy.host import files
from deploy.host.files import (
    SOCKET_PATH_LIMIT,
    LogFile,
    check_path,
    check_socket_paths,
    read_tail,
    share_socket,
    short_link,
    sweep_links,
    temporary_name,
    write_json,
    write_whole,
)
from tests.deploy.conftest import NASTY
from tests.errors import logs, raises
from voter.sockets import listen_unix

# ---- atomic replacement


def test_write_json_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1}, mode=0o600)
    write_json(path, {"a": 2}, mode=0o600)
    assert json.loads(path.read_text()) == {"a": 2}
    assert path.read_text().endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["record.json"]


def test_write_whole_replaces_what_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    temporary_name(path).write_text("half a pa")
    write_whole(path, b"a page")
    assert path.read_bytes() == b"a page"
    assert not temporary_name(path).exists()


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_write_whole_keeps_the_old_file_when_the_disk_is_full(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_whole(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["page.html"]


# ---- logs


def test_long_log_is_moved_while_its_writer_continues(scratch: Path) -> None:
    log = LogFile(scratch / "log", limit=100)
    with log.open() as writer:
        writer.write(b"x" * 99)
        log.trim()
        assert log.path.stat().st_size == 99
        writer.write(b"yy\n")
        log.trim()
        writer.write(b"after\n")
    assert (scratch / "log.1").read_bytes() == b"x" * 99 + b"yy\n"
    assert read_tail(log.path, 1) == ["after"]
    assert read_tail(log.path, 5) == ["x" * 99 + "yy", "after"]
    assert read_tail(scratch / "none", 5) == []


# ---- paths of sockets


def test_socket_path_limit_is_the_kernels(scratch: Path) -> None:
    longest = str(scratch / "s").ljust(SOCKET_PATH_LIMIT, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(longest)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(longest + "s")
    check_socket_paths([longest])
    with pytest.raises(PathTooLong, match=r"3 bytes too long; .*--dir") as caught:
        check_socket_paths([longest, longest + "sss"])
    assert isinstance(caught.value, CannotRunHere)
    with pytest.raises(PathTooLong):
        check_socket_paths(["/" + "ä" * 60])  # bytes count, not characters


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a\nb", r"U\+000A"), ("a\tb", r"U\+0009"), ("a\x7f", r"U\+007F"), ("\x9b", r"U\+009B"),
        ("\ud800", r"U\+D800"), (os.fsdecode(b"\xff"), "not UTF-8"), ("\uffff", r"U\+FFFF"),
        ("a\u2028b", r"U\+2028"),
    ],
)  # fmt: skip
def test_path_that_libvirt_cannot_carry_is_named(name: str, what: str) -> None:
    with pytest.raises(PathUnusable, match=what) as caught:
        check_path(Path("/n") / name)
    str(caught.value).encode()  # it can be printed


@pytest.mark.parametrize("name", [NASTY, "a b", "ä", "\U0001f600", "日本", "..", "-rf", "e\u0301"])
def test_any_other_path_is_accepted(name: str) -> None:
    check_path(f"/n/{name}")


# ---- links


@pytest.fixture
def places(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Give two directories for links instead of /run and /tmp."""
    found = scratch / "run", scratch / "tmp"
    for place in found:
        place.mkdir(mode=0o700)
    monkeypatch.setattr(files, "LINK_PLACES", tuple(map(str, found)))
    return found


def test_link_is_the_same_until_its_path_is_gone(scratch: Path, places: tuple[Path, Path]) -> None:
    first, second = scratch / f"{NASTY}1", scratch / f"{NASTY}2"
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    link = short_link(first)
    assert link.parent == places[0]
    assert link.samefile(first)
    assert short_link(first) == link
    assert short_link(second).samefile(second)
    sweep_links()
    assert link.samefile(first)
    link.unlink()  # someone cleaned up
    assert short_link(first) == link
    first.rename(scratch / "moved")
    (link.with_name(f"{link.name[:-1]}x") / "lib").mkdir(parents=True)  # as libvirt does
    sweep_links()
    assert list(places[0].iterdir()) == [short_link(second)]
    assert (scratch / "moved").is_dir()


@pytest.mark.parametrize("other", ["another path", "directory", "open", "unwritable"])
def test_link_that_is_not_this_users_is_not_followed(
    scratch: Path, places: tuple[Path, Path], other: str
) -> None:
    link = short_link(scratch)
    link.unlink()
    if other == "another path":
        link.symlink_to("/etc")
    elif other == "directory":
        link.mkdir()
    elif other == "open":
        places[0].chmod(0o777)
    else:
        places[0].rmdir()
    found = short_link(scratch)
    assert found == places[1] / link.name
    assert found.samefile(scratch)
    places[1].chmod(0o1777)  # as /tmp: nobody else can replace it
    assert short_link(scratch) == found
    places[1].chmod(0o777)
    with raises("TV0703", match="--dir"):
        short_link(scratch)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
def test_link_of_another_user_is_neither_followed_nor_removed(
    scratch: Path, places: tuple[Path, Path]
) -> None:
    link = short_link(scratch / "none")
    os.chown(link, 12345, 12345, follow_symlinks=False)
    assert short_link(scratch / "none").parent == places[1]
    sweep_links()
    assert link.is_symlink()
    assert list(places[1].iterdir()) == []


@pytest.mark.parametrize(("mode", "expected"), [(0o2710, 0o660), (0o710, 0o600)])
def test_socket_is_shared_with_the_group_of_a_set_group_id_directory_only(
    scratch: Path, mode: int, expected: int
) -> None:
    scratch.chmod(mode)
    path = scratch / "s"
    with listen_unix(str(path)):
        share_socket(path)
        assert stat.S_IMODE(path.stat().st_mode) == expected


def test_log_that_cannot_be_opened_is_reported_and_ends_nothing(tmp_path: Path) -> None:
    with logs("TV0730"), LogFile(tmp_path / "none" / "x.log").open() as file:
        assert file.write(b"lost")
