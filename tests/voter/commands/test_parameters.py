"""Options and arguments: what is wrong is rejected when it is parsed, with the right form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from voter.commands.parameters import (
    Choice,
    GuestName,
    Header,
    Integer,
    LibvirtUri,
    ListenAddress,
    Method,
    NativeAddress,
    Number,
    SchedulerAddress,
    Target,
    VotePolicy,
    existing_file,
    output_directory,
    output_file,
)

ABSURD = [
    "nan", "inf", "-inf", "Infinity", "1e400", "-1", "-0", "-0.0", str(10**30), str(2**63), "1_000",
    "\u0663", "\uff13", "", " ", " 5", "5 ", "0x10", "1e", ".", "1,5", "five", "5\n",
]  # fmt: skip


def parse(kind: click.ParamType[Any], text: str) -> Result:
    """Return what becomes of a text as an option of this type; the command prints the value."""

    @click.command()
    @click.option("--value", type=kind)
    def command(value: object) -> None:
        click.echo(repr(value))

    return CliRunner().invoke(command, ["--value", text])


@pytest.mark.parametrize("text", [*ABSURD, "0", "11", "5.5", "1e0"])
def test_whole_number_is_rejected_with_its_range(text: str) -> None:
    done = parse(Integer(1, 10, "MiB"), text)
    assert done.exit_code == 2
    assert "a whole number of MiB from 1 to 10" in done.output


@pytest.mark.parametrize("text", [*ABSURD, "0", "0.0", "0e5", "10.1", "1e2"])
def test_number_is_rejected_with_its_range(text: str) -> None:
    done = parse(Number(0, 10, "seconds", above=True), text)
    assert done.exit_code == 2
    assert "a number of seconds above 0 and at most 10" in done.output


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        (Integer(0, 10), "0", "0"), (Integer(1, 10), "007", "7"), (Number(0, 10), "0", "0.0"),
        (Number(0, 10), ".5", "0.5"), (Number(0, 10), "1e-3", "0.001"),
        (Number(1, 10), "10", "10.0"), (ListenAddress(), "localhost:0", "'localhost:0'"),
        (ListenAddress(), "[::1]:80", "'[::1]:80'"),
        (NativeAddress(), "unix:/a b", "'unix:/a b'"), (Method(), "PURGE", "'PURGE'"),
        (Target(), "/kv/a%20b?x=1&y=[2]", "'/kv/a%20b?x=1&y=[2]'"),
        (GuestName(), "g12", "'g12'"), (Header(), "Name:  a: b ", "('Name', 'a: b')"),
        (Target(), "/kv/100%", "'/kv/100%'"),
        (SchedulerAddress(), "tcp://a.b:8786", "'tcp://a.b:8786'"), (SchedulerAddress(), "", "''"),
        (LibvirtUri(), "qemu+unix:///system?socket=/x", "'qemu+unix:///system?socket=/x'"),
    ],
)  # fmt: skip
def test_right_value_is_parsed(kind: click.ParamType[Any], text: str, shown: str) -> None:
    done = parse(kind, text)
    assert (done.exit_code, done.output.strip()) == (0, shown)


@pytest.mark.parametrize(
    ("kind", "text", "remedy"),
    [
        (ListenAddress(), "127.0.0.1", "HOST:PORT"), (ListenAddress(), "8080", "HOST:PORT"),
        (ListenAddress(), ":8080", "HOST:PORT"), (ListenAddress(), "::1:8080", "[IPV6]:PORT"),
        (ListenAddress(), "127.0.0.1:65536", "0 to 65535"),
        (ListenAddress(), "127.0.0.1:-1", "0 to 65535"),
        (ListenAddress(), "127.0.0.1:\u0663", "0 to 65535"),
        (ListenAddress(), f"a:{'9' * 5000}", "0 to 65535"),
        (ListenAddress(), "127.0.0.1:abc", "0 to 65535"),
        (ListenAddress(), "a b:80", "HOST:PORT"), (ListenAddress(), "[::1:80", "HOST:PORT"),
        (ListenAddress(), "[::g]:80", "HOST:PORT"),
        (ListenAddress(), "256.0.0.1:80", "IPv4"),
        (ListenAddress(), "127.1:80", "IPv4"),
        (ListenAddress(), "http://localhost:80", "HOST:PORT"),
        (ListenAddress(), "", "HOST:PORT"),
        (NativeAddress(), "127.0.0.1:9000", "tcp:127.0.0.1:9000"),
        (NativeAddress(), "/run/native.sock", "unix:/run/native.sock"),
        (NativeAddress(), "tcp:127.0.0.1:0", "1 to 65535"),
        (NativeAddress(), "exec:cat", "unix:PATH"), (NativeAddress(), "unix:", "unix:PATH"),
        (NativeAddress(), f"unix:/{'a' * 107}", "too long"), (Method(), "get", "write GET"),
        (Method(), "GE T", "not a method"), (Method(), "GET\r\nX", "not a method"),
        (Method(), "", "not a method"), (Target(), "/kv/a b", "'/kv/a%20b'"),
        (Target(), "kv/a", "'/kv/a'"), (Target(), "/kv/ä", "'/kv/%C3%A4'"),
        (Target(), "/kv/a#b", "'/kv/a'"),
        (Target(), "http://127.0.0.1:8080/kv/a?x", "'/kv/a?x'"), (Target(), "", "'/'"),
        (Target(), "/a HTTP/1.1\r\nX: y", "%0D%0A"), (Target(), "/\x00", "'/%00'"),
        (Header(), "no colon", "Name: value"), (Header(), ": x", "Name: value"),
        (Header(), "a: b\r\nc: d", "no line ends"), (Header(), "a: \u20ac", "Latin-1"),
        (Header(), "a b: c", "name"), (Header(), "a: \x00", "no line ends"),
        (GuestName(), "1", "g1, g2"), (GuestName(), "g0", "g1, g2"),
        (GuestName(), "guest 1", "g1, g2"), (GuestName(), "G1", "g1, g2"),
        (GuestName(), "", "g1, g2"), (GuestName(), "g\u0661", "g1, g2"),
        (SchedulerAddress(), "nonsense", "HOST:PORT"), (SchedulerAddress(), "http://a:1", "tcp://"),
        (SchedulerAddress(), "tcp://a:0", "1 to 65535"), (VotePolicy(), "4/3", "1 to n"),
        (VotePolicy(), "1/2/3", "m/n"),
        (VotePolicy(), "2", "m/n"), (VotePolicy(), "\u0662/\u0663", "m/n"),
        (VotePolicy(), "0/3", "1 to n"), (VotePolicy(), "2/65", "64"),
        (VotePolicy(), "2/6", "4/6"), (VotePolicy(), f"{'9' * 5000}/3", "m/n"),
        (LibvirtUri(), "embed", "qemu:///embed"),
        (LibvirtUri(), "qemu+ssh://a/system", "this host"),
        (LibvirtUri(), "qemu:///syst", "qemu:///system"),
        (Choice(["crash", "hang"]), "crsh", "Did you mean 'crash'?"),
    ],
)  # fmt: skip
def test_wrong_text_is_rejected_with_the_right_form(
    kind: click.ParamType[Any], text: str, remedy: str
) -> None:
    done = parse(kind, text)
    assert done.exit_code == 2
    assert remedy in done.output


def test_file_that_cannot_be_written_is_rejected_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse(output_file(".csv"), str(tmp_path / "new.csv")).exit_code == 0
    assert parse(output_file(allow_dash=True), "-").exit_code == 0
    file = tmp_path / "file"
    file.touch()
    for kind, path, problem in (
        (output_file(), tmp_path / "none" / "new", "make it first"),
        (output_file(), tmp_path, "is a directory"),
        (output_file(), file / "new", "not a directory"),
        (output_file(".csv"), tmp_path / "new.txt", "ends in .csv"),
        (output_directory(), file, "is a file"),
        (output_directory(), file / "new" / "newer", "not a directory"),
        (existing_file(), tmp_path, "is a directory"),
        (existing_file(), tmp_path / "none", "does not exist"),
    ):
        done = parse(kind, str(path))
        assert done.exit_code == 2, path
        assert problem in " ".join(done.output.split()), path
    for kind in (output_file(), output_directory(), existing_file()):
        assert parse(kind, "").exit_code == 2
    assert parse(output_directory(), str(tmp_path / "new" / "newer")).exit_code == 0
    monkeypatch.setattr("os.access", lambda *_: False)
    for kind in (output_file(), output_directory()):
        assert "choose another one" in parse(kind, str(tmp_path / "new")).output
    assert [each.name for each in tmp_path.iterdir()] == ["file"]  # nothing was made
