"""Static content: files, conditions and ranges, and that nothing else can be reached."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guests.service import ServiceError, state_digest
from guests.services.static import BUILT_IN, MAX_FILE, Static
from tests.errors import raises
from tests.guests.services.calls import ask

TEXT = b"0123456789"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "content"
    (root / "sub dir").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "index.html").write_bytes(b"<p>home</p>")
    (root / "ten.txt").write_bytes(TEXT)
    (root / "none").write_bytes(b"")
    (root / "sub dir" / "index.html").write_bytes(b"sub")
    (root / "sub dir" / "é.PNG").write_bytes(b"png")
    (root / ".secret").write_bytes(b"secret")
    (tmp_path / "outside.txt").write_bytes(b"outside")
    return root


@pytest.fixture
def service(directory: Path) -> Static:
    return Static(directory)


@pytest.mark.parametrize(
    "target, body, content_type",
    [
        ("/", b"<p>home</p>", "text/html; charset=utf-8"),
        ("/index.html?v=3", b"<p>home</p>", "text/html; charset=utf-8"),
        ("/ten.txt", TEXT, "text/plain; charset=utf-8"),
        ("/none", b"", "application/octet-stream"),
        ("/sub%20dir/", b"sub", "text/html; charset=utf-8"),
        ("/sub%20dir/%C3%A9.PNG", b"png", "image/png"),
    ],
)
def test_files_are_served(service: Static, target: str, body: bytes, content_type: str) -> None:
    reply = ask(service, "GET", target)
    assert (reply.status, reply.body) == (200, body)
    assert reply.header("content-type") == content_type
    head = ask(service, "HEAD", target)
    assert (head.status, head.body, head.headers) == (200, reply.body, reply.headers)


@pytest.mark.parametrize(
    "target",
    [
        "/absent", "/../outside.txt", "/%2e%2e/outside.txt", "/sub%20dir/../ten.txt", "//ten.txt",
        "/.secret", "/empty", "/empty/", "/ten.txt/", "/ten.txt%00", "*", "ten.txt", "?",
        "/sub%20dir//index.html", "/etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_can_be_reached(service: Static, target: str) -> None:
    assert ask(service, "GET", target).status == 404


def test_folder_without_its_slash_is_redirected_relatively(service: Static) -> None:
    reply = ask(service, "GET", "/sub%20dir")
    assert (reply.status, reply.header("location")) == (301, "./sub%20dir/")


def test_other_methods_and_malformed_paths_are_refused(service: Static) -> None:
    reply = ask(service, "POST", "/", b"x")
    assert (reply.status, reply.header("allow")) == (405, "GET, HEAD")
    assert ask(service, "GET", "/%zz").status == 400


def test_known_content_is_not_sent_again(service: Static, directory: Path) -> None:
    etag = str(ask(service, "GET", "/ten.txt").header("etag"))
    reply = ask(service, "GET", "/ten.txt", b"", {"If-None-Match": etag, "Range": "bytes=0-1"})
    assert (reply.status, reply.body, reply.header("etag")) == (304, b"", etag)
    assert ask(service, "GET", "/ten.txt", b"", {"If-Match": '"other"'}).status == 412
    (directory / "ten.txt").write_bytes(b"changed")
    reply = ask(Static(directory), "GET", "/ten.txt", b"", {"If-None-Match": etag})
    assert (reply.status, reply.body) == (200, b"changed")


@pytest.mark.parametrize(
    "value, status, body",
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-99", 206, TEXT),
        ("bytes=0-99", 206, TEXT),
        ("Bytes= 9-9", 206, b"9"),
        ("bytes=10-", 416, b""),
        ("bytes=10-20", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=4-2", 200, TEXT),
        ("bytes=0-1,3-4", 200, TEXT),
        ("bytes=", 200, TEXT),
        ("bytes=-", 200, TEXT),
        ("bytes=a-b", 200, TEXT),
        ("bytes=--1", 200, TEXT),
        ("bytes=²-", 200, TEXT),
        ("bytes=" + "9" * 5000 + "-", 200, TEXT),
        ("lines=1-2", 200, TEXT),
        ("bytes", 200, TEXT),
    ],
)
def test_one_range(service: Static, value: str, status: int, body: bytes) -> None:
    reply = ask(service, "GET", "/ten.txt", b"", {"Range": value})
    assert (reply.status, reply.body) == (status, body)
    if status == 206:
        first = TEXT.index(body)
        expected = f"bytes {first}-{first + len(body) - 1}/10"
        assert reply.header("content-range") == expected
    elif status == 416:
        assert reply.header("content-range") == "bytes */10"


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30))
def test_any_range_gets_a_part_of_the_content(text: str) -> None:
    for path, content in BUILT_IN.items():
        reply = ask(BUILT, "GET", path.decode(), b"", {"Range": f"bytes={text}"})
        assert reply.status in (200, 206, 416)
        assert reply.status == 416 or reply.body in content


def test_range_of_other_content_gets_the_whole(service: Static) -> None:
    etag = str(ask(service, "GET", "/ten.txt").header("etag"))
    for if_range, status in ((etag, 206), ('"other"', 200), ("Sun, 06 Nov 1994 08:49:37 GMT", 200)):
        headers = {"Range": "bytes=1-2", "If-Range": if_range}
        assert ask(service, "GET", "/ten.txt", b"", headers).status == status
    assert ask(service, "HEAD", "/ten.txt", b"", {"Range": "bytes=1-2"}).status == 200


def test_ranges_of_an_empty_file(service: Static) -> None:
    for value in ("bytes=0-", "bytes=-1", "bytes=0-0"):
        assert ask(service, "GET", "/none", b"", {"Range": value}).status == 416


# ---------------------------------------------------------------- where the content comes from


def built_in(monkeypatch: pytest.MonkeyPatch) -> Static:
    monkeypatch.delenv("TRIVISOR_CONTENT", raising=False)
    monkeypatch.setattr("guests.services.static.DEFAULT_DIRECTORY", "/nonexistent")
    return Static()


def make_built_in() -> Static:
    with pytest.MonkeyPatch.context() as patch:
        return built_in(patch)


BUILT = make_built_in()


def test_built_in_pages_are_served_without_content() -> None:
    for path, content in BUILT_IN.items():
        assert ask(BUILT, "GET", path.decode()).body == content
    assert ask(BUILT, "GET", "/").body == BUILT_IN[b"/index.html"]


def test_environment_names_the_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVISOR_CONTENT", str(directory))
    assert ask(Static(), "GET", "/ten.txt").body == TEXT
    monkeypatch.setenv("TRIVISOR_CONTENT", str(directory / "absent"))
    with raises("TV0405", match="absent"):
        Static()


def test_default_directory_is_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIVISOR_CONTENT", raising=False)
    monkeypatch.setattr("guests.services.static.DEFAULT_DIRECTORY", str(directory))
    assert ask(Static(), "GET", "/ten.txt").body == TEXT


def test_link_is_an_error_when_it_leaves_the_directory(directory: Path) -> None:
    (directory / "link.txt").symlink_to("ten.txt")
    assert ask(Static(directory), "GET", "/link.txt").body == TEXT
    (directory / "out.txt").symlink_to("../outside.txt")
    with pytest.raises(ServiceError, match=r"out\.txt is a link out of"):
        Static(directory)


def test_invalid_content_is_an_error(directory: Path, tmp_path: Path) -> None:
    os.mkfifo(directory / "pipe")  # not a regular file: left out, and not opened
    assert ask(Static(directory), "GET", "/pipe").status == 404
    with raises("TV0404", match="not a directory"):
        Static(tmp_path / "outside.txt")
    (directory / "big.bin").write_bytes(bytes(MAX_FILE + 1))
    with pytest.raises(ServiceError, match=r"big\.bin goes over the limit"):
        Static(directory)


# ---------------------------------------------------------------- the state


def test_digest_detects_other_and_corrupted_content(service: Static, directory: Path) -> None:
    same = Static(directory)
    assert service.digest() == same.digest() == state_digest(service.snapshot())
    same._files[b"/ten.txt"] = same._files[b"/ten.txt"]._replace(content=b"0123456788")
    assert service.digest() != same.digest()
    service.restore(b"")
    service.restore(b"".join(Static(directory).snapshot()))
    with pytest.raises(ServiceError, match="other content"):
        service.restore(b"".join(BUILT.snapshot()))
