"""Who may use the dashboard: one-time tokens, sessions, and checks against other sites' pages.

Theory of operation.  ``trivisor up`` and ``trivisor dashboard`` get a token over the control
socket, which only the node's owner can open, and print it in a link's *fragment*
(``http://.../#token``).  A browser sends no fragment to any server, so the token is in no log and
in no Referer header, and a program that only previews the link does not use it up.  The page's
script posts the token and gets a session cookie.

Three attacks come from pages of other sites in the same browser:

- They send requests with the user's cookie (CSRF).  The cookie is SameSite=Strict, and every
  request that changes something needs a header that no form can set and the page's own Origin.
- They give a name of their own an address of this host (DNS rebinding).  Requests whose Host is
  neither an IP address nor a name of this host are rejected.
- They show the page in a frame, for the user to click on (clickjacking).  The policy
  ``frame-ancestors 'none'`` forbids it.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from guests.errors import CodedError

__all__ = ["REQUEST_HEADER", "Access", "Forbidden"]

TOKEN_LIFE = 600.0
"""Seconds in which a link can be used."""
MOST_TOKENS = 16
"""Links that can be unused at the same time; the oldest is withdrawn."""
SESSION_LIFE = 12 * 3600.0
"""Seconds until a browser has to log in again."""
MOST_SESSIONS = 64
"""Sessions at the same time; the oldest is ended."""
REQUEST_HEADER = "X-Trivisor"
"""Header of requests that change something: other sites' pages cannot set it."""


class Forbidden(CodedError):
    """A request that is rejected; the text says why and what to do."""

    error_code = "TV0904"

    def __init__(self, status: int, text: str, error_code: str = "") -> None:
        super().__init__(text, error_code=error_code)
        self.status = status


class Access:
    """The tokens and sessions of one dashboard.

    ``host``: the host part of its listening address.  ``node`` identifies the node, so that the
    cookies of two nodes at ``localhost`` have two names, also behind forwarded ports.
    """

    def __init__(
        self, host: str, node: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._tokens: dict[bytes, float] = {}  # digest: until when it is valid; oldest first
        self._sessions: dict[bytes, float] = {}
        self._loopback = _is_loopback(host)
        self._names = {"localhost"}
        if not self._loopback:
            self._names |= {host.lower(), socket.gethostname().lower()}
        self.cookie = f"trivisor-{hashlib.sha256(node.encode()).hexdigest()[:12]}"

    def new_token(self) -> str:
        """Return a token that can be used once, within ``TOKEN_LIFE`` seconds."""
        return _add(self._tokens, self._clock(), TOKEN_LIFE, MOST_TOKENS)

    def log_in(self, token: str) -> str | None:
        """Use up a token; return a new session's secret, or None if the token is not valid."""
        until = self._tokens.pop(_digest(token), 0.0)
        now = self._clock()
        return _add(self._sessions, now, SESSION_LIFE, MOST_SESSIONS) if now < until else None

    def log_out(self, session: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(session), None)

    def set_cookie(self, response: web.StreamResponse, session: str) -> None:
        """Have the browser keep a session's secret, out of reach of scripts and other sites."""
        response.set_cookie(
            self.cookie, session, max_age=int(SESSION_LIFE), httponly=True, samesite="Strict",
            path="/",
        )  # fmt: skip

    def session_of(self, request: web.Request) -> str:
        """Return the secret of the request's session.  Raises Forbidden if it has none."""
        session = request.cookies.get(self.cookie, "")
        if self._clock() < self._sessions.get(_digest(session), 0.0):
            return session
        text = "not logged in: `trivisor dashboard` prints a link that logs you in"
        raise Forbidden(401, text, error_code="TV0901")

    def is_live(self, session: str) -> bool:
        """Return whether a session has neither ended nor expired."""
        return self._clock() < self._sessions.get(_digest(session), 0.0)

    def check_site(self, request: web.Request) -> None:
        """Raise Forbidden for a request that a page of another site may have caused."""
        host = _host_of(request.headers.get("Host", ""))
        if not self._is_ours(host):
            raise Forbidden(
                421,
                f"this server does not have the name {host[:80]!r}: use its address or localhost",
                error_code="TV0903",
            )
        site = request.headers.get("Sec-Fetch-Site", "none")
        mode = request.headers.get("Sec-Fetch-Mode", "navigate")
        if site not in ("same-origin", "none") and mode != "navigate":
            raise Forbidden(403, "the request comes from another site")
        if request.method in ("GET", "HEAD"):
            return
        origin = urlsplit(request.headers.get("Origin", ""))
        if origin.netloc.lower() != request.headers.get("Host", "").lower():
            raise Forbidden(403, "the request comes from another site (its Origin differs)")
        if request.headers.get(REQUEST_HEADER) != "dashboard":
            raise Forbidden(403, f"the header `{REQUEST_HEADER}: dashboard` is missing")

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host is one that only this host can have: no other site's name."""
        if host.lower() in self._names:
            return True
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback


def _digest(secret: str) -> bytes:
    """Return what is stored of a secret: looking it up takes no longer for a better guess."""
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _add(table: dict[bytes, float], now: float, life: float, most: int) -> str:
    """Add a new secret to a table, remove expired and excess ones; return the secret."""
    for digest in [digest for digest, until in table.items() if until <= now]:
        del table[digest]
    while len(table) >= most:
        del table[next(iter(table))]
    secret = secrets.token_urlsafe(32)
    table[_digest(secret)] = now + life
    return secret


def _host_of(text: str) -> str:
    """Return the host of a Host header, without port and brackets; "" if there is none."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
