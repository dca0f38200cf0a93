"""The voter's configuration: a strict TOML file; an unknown key is an error that names its line."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from voter.address import parse_address, split_host_port
from voter.core import Limits, Policy
from voter.core.vote import PolicyError
from voter.errors import ConfigError

__all__ = [
    "Clients",
    "Config",
    "Listen",
    "ReplicaConfig",
    "Security",
    "Timing",
    "load",
    "parse",
    "parse_strict",
]

T = TypeVar("T")

Seconds = Annotated[float, Meta(gt=0, le=1e6)]
"""msgspec checks such ranges when the file is read."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, without unknown keys."""


class Listen(_Section, frozen=True, kw_only=True):
    """Where clients and operators are served; inherited sockets take precedence."""

    http: str | None = None  # HOST:PORT for HTTP clients (port 0: any free one)
    native: str | None = None  # HOST:PORT for clients with the native protocol
    native_unix: str | None = None  # path of a socket for them
    control: str | None = None  # path of the socket for status and control

    def __post_init__(self) -> None:
        for address in filter(None, (self.http, self.native)):
            split_host_port(address)


class ReplicaConfig(_Section, frozen=True, kw_only=True):
    """One replica and its link."""

    name: str  # letters, digits, '.', '_', '-': at most 32
    link: str  # address: unix:PATH, tcp:HOST:PORT or exec:CMD
    role: Literal["voter", "observer", "retired"] = (
        "voter"  # at first, later the journal's: an observer is compared and never votes
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", self.name):
            raise ValueError(
                f"replica name {self.name!r}: letters, digits, '.', '_', '-', at most 32"
            )
        parse_address(self.link)


class Timing(_Section, frozen=True, kw_only=True):
    """Times in seconds."""

    request: Seconds = 10.0  # a request that is not settled by then fails with "timeout"
    header: Seconds = 10.0  # for an HTTP client to send its request line and headers
    body: Seconds = 30.0  # ... and to send each 16 KiB of its body, or the rest
    idle: Seconds = 3600.0  # until an HTTP connection without a request is closed
    function: Seconds = 1.0  # for F to answer; after that the request is refused


class Security(_Section, frozen=True, kw_only=True):
    """TLS and tokens for clients on TCP; paths are relative to the configuration's directory.

    Files that change are read again within a second.
    """

    certificate: str | None = None  # PEM: the server's certificate, then its chain: TLS only
    key: str | None = None  # PEM: its private key, not encrypted, not readable by every user
    client_ca: str | None = None  # PEM: clients must have a certificate of one of these authorities
    tokens: str | None = None  # the file of `trivisor token`: clients must have one of these tokens

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both, or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs the server's own certificate and key")


class Clients(_Section, frozen=True, kw_only=True):
    """Limits on each client; without a value there is none.

    A client is who sends requests: a token, a certificate, a user of the host or an address.
    """

    in_flight: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None  # requests under way
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None  # requests a second, on average
    burst: Annotated[int, Meta(ge=1, le=1 << 20)] = 100  # requests at once, with a rate
    connections: Annotated[int, Meta(ge=1, le=1 << 20)] | None = (
        None  # open ones from one address, on each front end
    )


class JournalConfig(_Section, frozen=True, kw_only=True):
    """Where the journal is kept."""

    directory: str  # relative to the configuration's own
    node: str = "node"  # whose journal it is; the voter rejects that of another node
    segment: Annotated[int, Meta(ge=8 << 20, le=1 << 30)] = (
        32 << 20
    )  # bytes that are set aside at a time
    history: Annotated[int, Meta(ge=0, le=1 << 50)] = (
        0  # most bytes of older segments and checkpoints that are kept for `trivisor replay`
    )


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    replica: list[ReplicaConfig]  # the replicas, one table for each
    vote: str = "2/3"  # m/n: m of n replicas must agree
    service: str | None = None  # expected service name (else any, if the replicas agree)
    function: str | None = (
        None  # F's address (unix:PATH): F authorizes requests before they are ordered
    )
    listen: Listen = Listen()  # addresses
    limits: Limits = Limits()  # bounds on memory and waiting
    clients: Clients = Clients()  # limits on each client
    security: Security = Security()  # TLS and tokens
    timing: Timing = Timing()  # timeouts
    journal: JournalConfig | None = None  # without it nothing survives the voter
    durability: Literal["fsync", "os", "none"] | None = None  # if not set: fsync with a journal
    follow: Literal["auto", "on", "off"] = "auto"  # orders go to m replicas first; auto: if it pays
    max_body: Annotated[int, Meta(ge=1, le=1 << 20)] = 1 << 20  # largest body of a request, bytes
    max_in_flight: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024  # requests per native connection

    def __post_init__(self) -> None:
        policy = self.policy
        voters = [replica for replica in self.replica if replica.role == "voter"]
        if len(voters) != policy.of:
            raise ValueError(
                f"vote {policy} needs {policy.of} replicas that vote, not {len(voters)}"
            )
        names = [replica.name for replica in self.replica]
        if len(set(names)) != len(names):
            raise ValueError("two replicas have the same name")
        if self.journal is None and self.durable != "none":
            raise ValueError(f"durability {self.durable!r} needs a [journal] with its directory")
        if self.function is not None and parse_address(self.function).kind != "unix":
            raise ValueError(f"function {self.function!r}: write unix:PATH, where F listens")

    @property
    def durable(self) -> Literal["fsync", "os", "none"]:
        """The durability in effect: fsync, os or none."""
        return self.durability or ("fsync" if self.journal is not None else "none")

    @property
    def follows(self) -> bool:
        """Whether orders go to m replicas first, and to the others in batches.

        With ``auto``: if replies are compared, and the replicas outnumber the processors that the
        voter may use.  Not if all are processes (``exec:``): they answer sooner than it pays.
        """
        if self.follow == "auto":
            used = [each for each in self.replica if each.role != "retired"]
            processes = all(parse_address(each.link).kind == "exec" for each in used)
            scarce = len(os.sched_getaffinity(0)) < len(used)
            return self.policy.compares and scarce and not processes
        return self.follow == "on"

    @property
    def policy(self) -> Policy:
        """The vote policy."""
        return Policy.parse(self.vote)


def _line_of(text: str, path: str, key: str | None) -> int | None:
    """Find the line of a key, given msgspec's path of its table (``$.limits``, ``$.replica[1]``).

    tomllib keeps no positions, so this walks the table headers; it does not follow dotted and
    inline tables.
    """
    parts = re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path)
    names = [name for name, _ in parts if name]
    index = next((int(number) for _, number in parts if number), 0)
    if key is None and names:
        key = names.pop()
    table, seen, inside = ".".join(names), -1, not names
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            if header[1] == table:
                seen += 1
            inside = header[1] == table and seen == index
            if key == header[1] and not names:
                return number
        elif inside and key and re.match(rf"\s*\"?{re.escape(key)}\"?\s*(=|\.)", line):
            return number
    return None


def parse_strict(text: str, name: str, kind: type[T]) -> T:
    """Read TOML into a strict msgspec type.  Raises ConfigError that names file, line and key."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML: {error}") from error
    try:
        return msgspec.convert(data, kind)
    except (msgspec.ValidationError, PolicyError, ValueError) as error:
        words = str(error)
        path = re.search(r" - at `([^`]+)`", words)
        unknown = re.search(r"unknown field `([^`]+)`", words)
        line = _line_of(text, path[1] if path else "$", unknown[1] if unknown else None)
        where = f"{name}, line {line}" if line else name
        words = words.replace("Object contains unknown field", "unknown key")
        raise ConfigError(f"{where}: {words}") from error


def parse(text: str, name: str = "configuration") -> Config:
    """Read a voter configuration from text.  Raises ConfigError."""
    return parse_strict(text, name, Config)


def load(path: Path) -> Config:
    """Read a voter configuration from a file.  Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path))
