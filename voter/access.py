"""Who may use the front ends over TCP: TLS, client certificates and tokens.

This is loaded only if ``[security]`` is configured.  Unix sockets are not concerned: whoever may
open their file may use them.

A token is a random text of 256 bits.  The file of tokens holds their SHA-256 only, so who reads it
cannot use them::

    # NAME SHA-256 of the token
    billing 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

It is read again within a second of a change, like the certificate and its key.  What cannot be read
then is logged, and what was read before stays in force.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from voter import log
from voter.config import Security
from voter.errors import ConfigError, TokensError
from voter.tls import expiry, server_context

__all__ = ["NAME", "Access", "digest_of", "read_tokens", "token_in"]

PAUSE = 1.0
"""Seconds between looks at the files: no event reports a change on every file system."""
MOST_TOKENS = 100_000
"""Lines of the file; more are an error."""
NAME = r"[A-Za-z0-9._@-]{1,64}"
"""The name of a token's client, as a regular expression."""
_LINE = re.compile(rf"({NAME})[ \t]+([0-9a-f]{{64}})(?:[ \t].*)?")


def digest_of(token: bytes) -> bytes:
    """Return what the file holds of a token."""
    return sha256(token).digest()


def read_tokens(path: Path) -> dict[bytes, str]:
    """Return the names of a file of tokens by digest.  Raises TokensError that names the line."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokensError(
            f"the tokens {path} cannot be read: {error}; make them with `trivisor token add NAME "
            f"--tokens {path}`, readable for the voter's user"
        ) from error
    if len(lines) > MOST_TOKENS:
        raise TokensError(f"the tokens {path} have {len(lines)} lines, the limit is {MOST_TOKENS}")
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise TokensError(
                f"{path}, line {number}: not a name with the SHA-256 of its token; add tokens with "
                "`trivisor token add`"
            )
        found[bytes.fromhex(match[2])] = match[1]
    return found


def token_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the token of ``Authorization: Bearer TOKEN``; None without it, or with more."""
    found = [value for name, value in headers if name == b"authorization"]
    scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
    return token.strip() or None if scheme.lower() == b"bearer" else None


class Access:
    """The rules of one voter."""

    def __init__(self, security: Security, base: Path) -> None:
        """Read all files; ``base`` is the directory of relative paths.  Raises ConfigError."""

        def path(name: str | None) -> Path | None:
            return base / name if name is not None else None

        self._certificate, self._key = path(security.certificate), path(security.key)
        self._client_ca, self._tokens_file = path(security.client_ca), path(security.tokens)
        self.context = self._new_context()
        """The TLS context of the front ends on TCP; None: they speak plainly.  Another one after a
        change of its files.
        """
        self.expires: float | None = None
        """When the certificate expires, in seconds since 1970."""
        self.problem = ""
        """Why a changed file is not used; empty if all are."""
        self._tokens: dict[bytes, str] | None = None
        self._seen = self._stamp()
        if self.context is not None:
            self._check_expiry()
        if self._tokens_file is not None:
            self._tokens = read_tokens(self._tokens_file)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def requires_token(self) -> bool:
        """Whether clients on TCP need a token."""
        return self._tokens is not None

    def caller_of(self, token: bytes | None) -> bytes | None:
        """Return the caller with this token, ``token:NAME``; None if there is none.

        Digests are compared, so the time says nothing about a token: nobody can choose a token by
        the first bytes of its digest.
        """
        name = (self._tokens or {}).get(digest_of(token or b""))
        return f"token:{name}".encode() if name is not None else None

    def holds(self, digest: bytes) -> bool:
        """Return whether a token with this digest was not revoked."""
        return self._tokens is not None and digest in self._tokens

    def watch(self, changed: Callable[[], None]) -> None:
        """Read files again when they change, from now on; ``changed`` is called after that."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if self._reload():
                changed()
            self._timer = loop.call_later(PAUSE, look)

        self._timer = loop.call_later(PAUSE, look)

    def stop(self) -> None:
        """End ``watch``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _new_context(self) -> ssl.SSLContext | None:
        """Return a context with what the files hold; None without them.  Raises ConfigError."""
        if self._certificate is None or self._key is None:
            return None
        return server_context(self._certificate, self._key, self._client_ca)

    def _check_expiry(self) -> None:
        """Note when the certificate expires.  Clients see it themselves, so it is no error here:
        an expired certificate must not take the unix sockets away as well.
        """
        assert self._certificate is not None
        assert self._key is not None
        try:
            self.expires = expiry(self._certificate, self._key)
        except ConfigError as error:
            self.problem = str(error)
            log.info("certificate is not valid", problem=self.problem)

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        """Return what differs once one of the files has changed."""
        result: list[tuple[int, int, int] | None] = []
        files = self._certificate, self._key, self._client_ca, self._tokens_file
        for path in filter(None, files):
            try:
                status = path.stat()
                result.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                result.append(None)
        return result

    def _reload(self) -> bool:
        """Read the files if one has changed; return whether what they say is in force now."""
        seen = self._stamp()
        if seen == self._seen:
            return False
        self._seen, self.problem = seen, ""
        try:
            if self._tokens_file is not None:
                self._tokens = read_tokens(self._tokens_file)
            # Not into the context in force: OpenSSL drops its key for a certificate that does not
            # fit, and renewals replace the two files one after the other.
            self.context = self._new_context()
            if self.context is not None:
                self._check_expiry()
        except ConfigError as error:
            self.problem = str(error)
            log.info("changed file is not used", problem=self.problem)
            return self._tokens_file is not None
        log.info("security files read", tokens=len(self._tokens or ()), expires=self.expires)
        return True

    def describe(self) -> dict[str, object]:
        """Return the state for operators."""
        left = None if self.expires is None else (self.expires - time.time()) / 86_400
        return {
            "tls": self.context is not None,
            "client_certificates": self.context is not None and bool(self.context.verify_mode),
            "certificate_expires_in_days": left,
            "tokens": len(self._tokens) if self._tokens is not None else None,
            "problem": self.problem,
        }
