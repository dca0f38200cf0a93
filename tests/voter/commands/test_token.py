"""``trivisor token``: the file of tokens."""

from __future__ import annotations

import errno
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.errors import raises
from trivisor import command
from voter.access import read_tokens
from voter.commands.terminal import CommandError
from voter.errors import TokensError


def run(*words: object) -> Result:
    return CliRunner().invoke(command, ["token", *map(str, words)], standalone_mode=False)


def add(name: str, file: Path) -> str:
    done = run("add", name, "--tokens", file)
    assert done.exception is None, done.output
    return done.stdout.strip()


def test_token_is_random_and_only_its_hash_is_stored(scratch: Path) -> None:
    file = scratch / "tokens"
    first, second = add("billing", file), add("audit", file)
    assert first != second
    assert re.fullmatch(r"tvt_[A-Za-z0-9_-]{43}", first)
    assert read_tokens(file) == {
        sha256(first.encode()).digest(): "billing",
        sha256(second.encode()).digest(): "audit",
    }
    assert first not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("list", "--tokens", file).stdout == "audit\nbilling\n"
    assert os.listdir(scratch) == ["tokens"]


def test_revoked_token_is_gone_and_mode_and_comments_are_kept(scratch: Path) -> None:
    file = scratch / "tokens"
    file.write_text(f"# mine\nold {'0' * 64}")  # without a last newline
    file.chmod(0o640)
    token = add("billing", file)
    assert run("revoke", "old", "--tokens", file).exception is None
    assert list(read_tokens(file)) == [sha256(token.encode()).digest()]
    assert file.read_text().startswith("# mine\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_tokens_that_are_added_at_once_are_all_there(scratch: Path) -> None:
    names = [f"client{number}" for number in range(20)]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda name: add(name, scratch / "tokens"), names))
    assert sorted(read_tokens(scratch / "tokens").values()) == sorted(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "billing"], "has a token of billing already"),
        (["revoke", "nobody"], "has no token of nobody"),
        (["add", "two words"], "is not a name"),
        (["add", "x" * 65], "is not a name"),
    ],
)
def test_wrong_name_is_refused(scratch: Path, words: list[str], message: str) -> None:
    file = scratch / "tokens"
    add("billing", file)
    before = file.read_bytes()
    done = run(*words, "--tokens", file)
    assert message in str(done.exception)
    if isinstance(done.exception, CommandError):
        assert done.exception.error_code == "TV0975"
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["billing secret\n", "a b c\n", "billing\n", f"a/b {'0' * 64}\n", "\x00", "é\n"]
)
def test_file_that_is_not_one_of_tokens_is_kept(scratch: Path, text: str) -> None:
    file = scratch / "tokens"
    file.write_text(text, encoding="utf-8")
    with raises("TV0974", re.escape(str(file))):
        read_tokens(file)
    done = run("add", "billing", "--tokens", file)
    assert isinstance(done.exception, TokensError)
    assert file.read_text(encoding="utf-8") == text


def test_disk_that_fills_leaves_the_file_as_it_was_and_no_other(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scratch / "tokens"
    add("billing", file)
    before = file.read_bytes()

    def fill(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill)
    with raises("TV0974", "No space left"):
        CliRunner().invoke(
            command, ["token", "add", "audit", "--tokens", str(file)],
            standalone_mode=False, catch_exceptions=False,
        )  # fmt: skip
    assert list(scratch.iterdir()) == [file]
    assert file.read_bytes() == before
