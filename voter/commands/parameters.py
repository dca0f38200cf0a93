"""The types of the commands' options and arguments.

A wrong value is rejected when it is parsed, with exit code 2 and a message that says what is right:
before the command reads, starts or creates anything.  Numbers are decimal ASCII digits: ``nan``,
``inf``, ``1_000`` and digits of other scripts are no numbers, and every number has a range.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

if TYPE_CHECKING:
    from voter.core import Policy

__all__ = [
    "DAY",
    "HISTORY",
    "MEMORY",
    "SEED",
    "YEAR",
    "Choice",
    "GuestName",
    "Header",
    "Integer",
    "LibvirtUri",
    "ListenAddress",
    "Method",
    "NativeAddress",
    "Number",
    "PackageName",
    "Remark",
    "RequestId",
    "SchedulerAddress",
    "Target",
    "Text",
    "VotePolicy",
    "existing_directory",
    "existing_file",
    "existing_path",
    "node_directory",
    "output_directory",
    "output_file",
]

DAY, YEAR = 86_400, 31_536_000
"""Seconds."""
_WHOLE = re.compile(r"[0-9]{1,40}")
_DECIMAL = re.compile(r"([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class Integer(click.IntRange):
    """A whole number from ``low`` to ``high``, for example of MiB (``unit``)."""

    def __init__(self, low: int, high: int, unit: str = "") -> None:
        super().__init__(low, high)
        self._what = f"a whole number{f' of {unit}' if unit else ''} from {low} to {high}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        text = str(value)
        if not _WHOLE.fullmatch(text) or not self.min <= int(text) <= self.max:  # type: ignore[operator]
            self.fail(f"{text!r} is not {self._what}", param, ctx)
        return int(text)


class Number(click.FloatRange):
    """A finite number from ``low`` to ``high``, for example of seconds (``unit``).

    With ``above`` it must be more than ``low``.
    """

    def __init__(self, low: float, high: float, unit: str = "", *, above: bool = False) -> None:
        super().__init__(low, high, min_open=above)
        begin = f"above {low:.12g} and at most" if above else f"from {low:.12g} to"
        self._what = f"a number{f' of {unit}' if unit else ''} {begin} {high:.12g}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        text = str(value)
        if _DECIMAL.fullmatch(text):
            number = float(text)
            above_low = self.min < number if self.min_open else self.min <= number  # type: ignore[operator]
            if above_low and number <= self.max:  # type: ignore[operator]
                return number
        self.fail(f"{text!r} is not {self._what}", param, ctx)


SEED = Integer(0, (1 << 63) - 1)
"""Seeds of random draws."""
MEMORY = Integer(64, 65_536, "MiB")
"""Memory of a guest."""
HISTORY = Integer(64, 1 << 24, "MiB")
"""Size of a journal's history: at least two segments."""


class Choice(click.Choice[str]):
    """One of several words; an error suggests the most similar one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return click's message with a suggestion."""
        close = get_close_matches(str(value), [str(each) for each in self.choices], n=1)
        message = super().get_invalid_choice_message(value, ctx)
        return f"{message} Did you mean {close[0]!r}?" if close else message


class Text(click.ParamType[Any]):
    """Base of types that are texts of a fixed form.  ``read`` raises ValueError with the remedy."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value."""
        try:
            return self.read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def read(self, text: str) -> Any:
        """Return the value of a text.  Raises ValueError."""
        raise NotImplementedError


class ListenAddress(Text):
    """HOST:PORT to listen on; port 0 is any free one."""

    name = "HOST:PORT"

    def read(self, text: str) -> str:
        """Return the text."""
        from voter.address import split_host_port  # noqa: PLC0415 - heavy

        _check_ip(split_host_port(text)[0])
        return text


class DashboardAddress(ListenAddress):
    """HOST:PORT to listen on, or "off"."""

    name = "HOST:PORT|off"

    def read(self, text: str) -> str:
        """Return the text."""
        return text if text == "off" else super().read(text)


def _check_ip(host: str) -> None:
    """Raise ValueError if a host looks like an IP address and is none."""
    from ipaddress import ip_address  # noqa: PLC0415

    if ":" in host or not host.strip("0123456789."):
        ip_address(host)


class NativeAddress(Text):
    """The address of a voter's native front end: unix:PATH or tcp:HOST:PORT."""

    name = "ADDRESS"

    def read(self, text: str) -> str:
        """Return the text."""
        from voter.address import parse_address  # noqa: PLC0415 - heavy

        if text.startswith("exec:"):
            raise ValueError(f"{text!r}: write unix:PATH or tcp:HOST:PORT")
        if not text.startswith(("unix:", "tcp:")):
            kind = "unix" if "/" in text else "tcp"
            raise ValueError(
                f"{text!r}: write unix:PATH or tcp:HOST:PORT, for example {kind}:{text}"
            )
        address = parse_address(text)
        _check_ip(address.host or "name")
        return text


class LibvirtUri(Text):
    """A libvirt on this host that runs QEMU."""

    name = "URI"

    def read(self, text: str) -> str:
        """Return the text."""
        if not re.fullmatch(r"qemu:///embed|qemu(\+unix)?:///(session|system)(\?[!-~]+)?", text):
            raise ValueError(
                f"{text!r}: write qemu:///embed, qemu:///session or qemu:///system: the guests run "
                "on this host"
            )
        return text


class SchedulerAddress(Text):
    """The address of a Dask scheduler, as `dask scheduler` prints it; empty: none."""

    name = "ADDRESS"

    def read(self, text: str) -> str:
        """Return the text."""
        from voter.address import split_host_port  # noqa: PLC0415 - heavy

        kind, _, place = text.rpartition("://")
        if text and kind not in ("", "tcp", "tls", "ws", "wss"):
            raise ValueError(f"{text!r}: write tcp://HOST:PORT")
        if text:
            _check_ip(split_host_port(place, lowest=1)[0])
        return text


class VotePolicy(Text):
    """m/n: m of n guests must agree."""

    name = "M/N"

    def read(self, text: str) -> Policy:
        """Return the policy."""
        from voter.core import Policy  # noqa: PLC0415 - heavy

        return Policy.parse(text)


class GuestName(Text):
    """g1, g2, ...: whether the node has it is known to its supervisor only."""

    name = "GUEST"

    def read(self, text: str) -> str:
        """Return the name."""
        if not re.fullmatch(r"g[1-9][0-9]?", text):
            raise ValueError(f"{text!r} is not a guest's name: write g1, g2, ...")
        return text


class PackageName(Text):
    """A Debian package's name."""

    name = "NAME"

    def read(self, text: str) -> str:
        """Return the name."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]{1,99}", text):
            raise ValueError(f"{text!r} is no name of a Debian package, such as libexpat1")
        return text


class Remark(Text):
    """A short text for a record."""

    name = "TEXT"

    def read(self, text: str) -> str:
        """Return the text."""
        if len(text) > 200 or not text.isprintable():
            raise ValueError("a remark is one line of at most 200 characters")
        return text


class RequestId(Text):
    """A sequence number, or another id of a request."""

    name = "ID"

    def read(self, text: str) -> str:
        """Return the id."""
        if not re.fullmatch(r"[A-Za-z0-9._~:+=@-]{1,128}", text):
            raise ValueError(
                f"{text[:200]!r} is not the id of a request: give the number after seq= in"
                " Trivisor-Vote, or an X-Request-Id (1 to 128 of A-Z a-z 0-9 . _ ~ : + = @ -)"
            )
        return text


class Method(Text):
    """An HTTP method."""

    name = "METHOD"

    def read(self, text: str) -> str:
        """Return the method."""
        from guests.protocol.message import MessageError, encode_request  # noqa: PLC0415

        if text not in _METHODS and text.upper() in _METHODS:
            raise ValueError(f"{text!r}: methods are case-sensitive: write {text.upper()}")
        try:
            encode_request(text, "/")
        except MessageError as error:
            raise ValueError(f"{text!r} is not a method: write {', '.join(_METHODS)}") from error
        return text


class Target(Text):
    """Path and query of a request, percent-encoded."""

    name = "PATH"

    def read(self, text: str) -> str:
        """Return the target."""
        path = re.sub(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "", text).partition("#")[0]
        path = path if path.startswith("/") else f"/{path}"
        # A "%" that begins no escape is left: services may take it as it is.
        right = quote(path, safe="/?:@!$&'()*+,;=-._~%[]|\\^`{}<>\"", errors="surrogateescape")
        if text != right:
            raise ValueError(f"{text!r} is not a path in percent-encoded ASCII: write '{right}'")
        return text


class Header(Text):
    """A header of a request, as ``Name: value``."""

    name = "HEADER"

    def read(self, text: str) -> tuple[str, str]:
        """Return name and value."""
        from guests.protocol.message import encode_request  # noqa: PLC0415

        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{text!r}: write it as 'Name: value'")
        pair = name.strip(), value.strip(" \t")
        if any(ord(each) < 0x20 and each != "\t" for each in pair[1]):
            raise ValueError(f"{text!r}: a value has no line ends and no control characters")
        encode_request("GET", "/", [pair])  # its error names what is wrong
        return pair


# ---- paths: what a command needs is checked before its work, not after


class _Path(click.Path):
    """A path with a further check of where it is."""

    def __init__(self, check: Callable[[Path], str], **how: Any) -> None:
        super().__init__(path_type=Path, **how)
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.  The error says what is wrong with its place."""
        if not str(value) or "\0" in str(value):
            self.fail(f"{str(value)!r} is not a path", param, ctx)
        path = super().convert(value, param, ctx)
        problem = (
            "" if self.allow_dash and str(value) == "-" else self._check(Path(os.fsdecode(path)))
        )
        return self.fail(f"{str(value)!r}: {problem}", param, ctx) if problem else path


def _not_writable(directory: Path) -> str:
    """Return why nothing can be made in a directory, or an empty text."""
    if not directory.exists():
        return f"there is no directory {str(directory)!r}: make it first"
    if not directory.is_dir():
        return f"{str(directory)!r} is not a directory"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"the directory {str(directory)!r} cannot be written: choose another one"
    return ""


def _check_file(path: Path, *, suffixes: Sequence[str]) -> str:
    if suffixes and path.suffix not in suffixes:
        return f"unknown format: give a file name that ends in {' or '.join(suffixes)}"
    return "" if path.exists() else _not_writable(path.absolute().parent)


def _check_directory(path: Path) -> str:
    place = path.absolute()
    while not os.path.lexists(place):
        place = place.parent
    return _not_writable(place)


def _check_place(path: Path) -> str:
    return "" if path.is_file() else _check_directory(path)


def output_file(*suffixes: str, allow_dash: bool = False) -> click.Path:
    """Return the type of a file to be written, in an existing directory.

    ``suffixes``: what its name may end in (none: anything).  With ``allow_dash`` it may be ``-``.
    """
    check = partial(_check_file, suffixes=suffixes)
    return _Path(check, dir_okay=False, writable=True, allow_dash=allow_dash)


def output_directory(*, or_file: bool = False) -> click.Path:
    """Return the type of a directory that a command writes to, and makes if there is none.

    With ``or_file`` it may be a file in such a directory instead.
    """
    return _Path(_check_place if or_file else _check_directory, file_okay=or_file, writable=or_file)


def node_directory() -> click.Path:
    """Return the type of a node's directory, which need not exist."""
    return _Path(lambda _: "", file_okay=False)


def existing_file() -> click.Path:
    """Return the type of a file that a command reads."""
    return _Path(lambda _: "", exists=True, dir_okay=False)


def existing_path() -> click.Path:
    """Return the type of a file or directory that a command reads."""
    return _Path(lambda _: "", exists=True)


def existing_directory() -> click.Path:
    """Return the type of a directory that a command reads."""
    return _Path(lambda _: "", exists=True, file_okay=False)
