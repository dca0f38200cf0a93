"""Documents, points and a search, with three planted flaws: for experiments on attacks.

- ``GET /files/NAME`` returns a public document.  The flaw: the name is decoded twice and then
  resolved, so it can leave the public folder.
- ``POST /points/NAME`` adds the number in the body, which must be positive, and returns the sum.
  The flaw: the sum has 32 bits, so it can become negative.
- ``GET /search?q=TERM`` lists public documents whose name has the term.  The flaw: the term is put
  into a filter between quotes as it is.

A reply is *unsafe* if it contains SECRET, which only private documents do, or a negative number.

It imports the standard library only, because it runs in a guest (``trivisor up --service FILE``).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from guests.service import Reply, Request, Service

if TYPE_CHECKING:
    from guests.service import Context

__all__ = ["SECRET", "Archive", "is_unsafe"]

SECRET = "SECRET-"
DOCUMENTS = {
    **{f"public/doc-{number}": f"document {number}" for number in range(10)},
    "public/notes..old": "old notes",
    **{f"private/key-{number}": f"{SECRET}{number}" for number in range(10)},
}
_TOKEN = re.compile(r"\s*(?:'([^']*)'|(\|\||&&|[A-Za-z]+|[=~])|(\S))")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def is_unsafe(body: bytes) -> bool:
    """Return whether a reply's body shows that a flaw was exploited."""
    return SECRET.encode() in body or re.fullmatch(rb"-[0-9]+\s*", body) is not None


class Archive(Service):
    """The documents, which never change, and the points by name."""

    name = "archive"
    state_format = 1

    def __init__(self) -> None:
        self._points: dict[str, int] = {}

    def apply(self, request: Request, _context: Context) -> Reply:
        """Answer one request."""
        path = request.path
        if path.startswith("/files/"):
            name = unquote(unquote(path.removeprefix("/files/")))  # the flaw: twice
            text = DOCUMENTS.get(posixpath.normpath(f"public/{name}"))
            return Reply(404, "no such document\n") if text is None else Reply(200, f"{text}\n")
        if path.startswith("/points/"):
            return self._count(path.removeprefix("/points/"), request)
        if path == "/search":
            return _search(request.query.get("q", ""))
        return Reply(404, "see /files, /points and /search\n")

    def _count(self, name: str, request: Request) -> Reply:
        if request.method == "POST":
            try:
                number = int(request.body.decode())
            except ValueError:
                return Reply(400, "not a number\n")
            if number <= 0:
                return Reply(400, "a number is positive\n")
            total = self._points.get(name, 0) + number
            self._points[name] = (total + 2**31) % 2**32 - 2**31  # the flaw: 32 bits
        return Reply(200, f"{self._points.get(name, 0)}\n")

    def snapshot(self) -> Iterator[bytes]:
        """Yield the points as JSON with sorted keys."""
        yield json.dumps(self._points, sort_keys=True, allow_nan=False).encode()

    def restore(self, state: bytes) -> None:
        """Replace the points."""
        self._points = json.loads(state) if state else {}


def _search(term: str) -> Reply:
    """Return the documents that the filter finds; the flaw: the term is part of its text."""
    try:
        alternatives = _parse(_COMMENT.sub(" ", f"public and name~'{term}'"))
    except ValueError:
        return Reply(400, "not a term\n")
    found = [
        name if name.startswith("public/") else f"{name} {text}"
        for name, text in DOCUMENTS.items()
        if any(all(_holds(each, name) for each in one) for one in alternatives)
    ]
    return Reply(200, json.dumps(found, allow_nan=False) + "\n")


def _parse(text: str) -> list[list[tuple[str, str, str]]]:
    """Return the alternatives of a filter: each a list of conditions (left, sign, right)."""
    words = [(quoted, word, odd) for quoted, word, odd in _TOKEN.findall(text.strip())]
    if any(odd for _, _, odd in words):
        raise ValueError("an odd character")
    alternatives: list[list[tuple[str, str, str]]] = [[]]
    at = 0
    while at < len(words):
        quoted, word, _ = words[at]
        if word.lower() == "public":
            alternatives[-1].append(("", "public", ""))
            at += 1
        else:
            if at + 2 >= len(words) or words[at + 1][1] not in ("=", "~"):
                raise ValueError("not a condition")
            alternatives[-1].append((quoted or word, words[at + 1][1], words[at + 2][0]))
            at += 3
        if at < len(words):
            joint = words[at][1].lower()
            if joint in ("or", "||"):
                alternatives.append([])
            elif joint not in ("and", "&&"):
                raise ValueError("conditions are joined by and, or")
            at += 1
    return alternatives


def _holds(condition: tuple[str, str, str], name: str) -> bool:
    left, sign, right = condition
    if sign == "public":
        return name.startswith("public/")
    if sign == "~":
        return right in name
    return left == right
