"""Predicates: a user's Python file that says which requests, replies and states to report.

It defines one or more of these functions.  Each returns what to report, or something false::

    def request(context): ...   # for each write: RequestContext
    def reply(context): ...     # for each write and its reply: ReplyContext
    def state(context): ...     # at each checkpoint, or every N writes: StateContext

The file is the user's own code and runs on the host, in the process of `trivisor replay`, with the
user's rights.  What it gets comes from clients and from a guest: it must treat these bytes as
hostile.  They are bounded: a request or reply has at most about a MiB, a state 256 MiB.
"""

from __future__ import annotations

import hashlib
import importlib.util
import traceback
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from guests.protocol.message import MessageError, Reply, Request, decode_request
from voter.core.entries import Record

__all__ = ["Predicates", "ReplyContext", "RequestContext", "StateContext"]

FUNCTIONS = ("request", "reply", "state")
TEXT_LIMIT = 500
"""Characters of what a predicate reports; the rest is cut."""
_NO_REQUEST = Request("", "", b"")


class RequestContext:
    """A write.

    ``seq``: its sequence number.  ``time``: agreed time in seconds since 1970.  ``caller``: the
    client's name, as the voter knew it.  ``void``: the replicas skipped it.  ``raw``: its bytes.
    The other attributes are empty if these are not a valid request.
    """

    def __init__(self, record: Record, *, void: bool) -> None:
        self.seq = record.seq
        self.time_ns = record.time_ns
        self.raw = record.request
        self.void = void
        self._caller = record.caller

    @property
    def time(self) -> float:
        """Agreed time in seconds since 1970."""
        return self.time_ns / 1e9

    @property
    def caller(self) -> str:
        """The client's name, as the voter knew it."""
        return self._caller.decode("utf-8", "replace")

    @cached_property
    def _request(self) -> Request:
        try:
            return decode_request(self.raw)
        except MessageError:
            return _NO_REQUEST

    @property
    def method(self) -> str:
        """The method, in upper case."""
        return self._request.method

    @property
    def target(self) -> str:
        """Path and query, percent-encoded, as sent."""
        return self._request.target

    @property
    def path(self) -> bytes:
        """The percent-decoded path."""
        return self._request.path_bytes

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; the last one of a name counts."""
        return self._request.query

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by lower-case name."""
        try:
            return self._request.headers
        except MessageError:
            return {}

    @property
    def body(self) -> bytes:
        """The body."""
        return self._request.body


class ReplyContext(RequestContext):
    """A write with its reply.

    ``raw_reply``: the replay's reply.  ``same``: whether it is the released one; None if the
    journal has no result.  ``released``: the released reply, if the journal has it.
    """

    def __init__(
        self, record: Record, *, void: bool, reply: bytes, same: bool | None, released: bytes | None
    ) -> None:
        super().__init__(record, void=void)
        self.raw_reply = reply
        self.same = same
        self.released = released

    @cached_property
    def _reply(self) -> Reply:
        try:
            return Reply.decode(self.raw_reply)
        except MessageError:
            return Reply(0)

    @property
    def status(self) -> int:
        """The reply's status; 0 if it is not a reply."""
        return int(self._reply.status)

    @property
    def reply_headers(self) -> dict[str, str]:
        """The reply's headers by lower-case name."""
        return {name.lower(): value for name, value in self._reply.headers}

    @property
    def reply_body(self) -> bytes:
        """The reply's body."""
        return bytes(self._reply.body)


class StateContext:
    """A state: ``seq`` is the last write in it, ``time`` that write's agreed time in seconds.

    ``state``: its bytes, as the service's ``snapshot`` makes them.  ``voted``: whether its digest
    is the voted one; None where the journal has no checkpoint.
    """

    def __init__(self, seq: int, time_ns: int, state: bytes, *, voted: bool | None) -> None:
        self.seq = seq
        self.time_ns = time_ns
        self.time = time_ns / 1e9
        self.state = state
        self.voted = voted


Context = RequestContext | StateContext


class Predicates:
    """The functions of a file.  Raises DeployError if it cannot be loaded or defines none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            source = path.read_bytes()
            spec = importlib.util.spec_from_loader("trivisor_user_predicate", loader=None)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            module.__file__ = str(path)
            exec(compile(source, str(path), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            raise DeployError(
                f"predicate file {path} cannot be loaded: {_describe(error, path)}",
                remedy="correct the file",
                error_code="TV0851",
            ) from error
        self.digest = hashlib.sha256(source).hexdigest()
        self._functions: dict[str, Callable[[Any], object]] = {}
        for name in FUNCTIONS:
            found = getattr(module, name, None)
            if callable(found):
                self._functions[name] = found
        if not self._functions:
            raise DeployError(
                f"predicate file {path} defines none of the functions {', '.join(FUNCTIONS)}",
                remedy="define at least one of them, each with one parameter",
                error_code="TV0851",
            )

    def defines(self, name: str) -> bool:
        """Return whether the file defines a function."""
        return name in self._functions

    def ask(self, name: str, context: Context) -> str:
        """Return what a function reports of a context; "" for nothing.

        Raises DeployError if it raises, with its line and the sequence number.
        """
        function = self._functions.get(name)
        if function is None:
            return ""
        try:
            found = function(context)
            if not found:
                return ""
            text = "matches" if found is True else str(found)
        except Exception as error:
            raise DeployError(
                f"predicate {name}() failed at sequence number {context.seq}:"
                f" {_describe(error, self._path)}",
                remedy="correct the predicate file; the replay changed nothing",
                error_code="TV0852",
            ) from error
        return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}..."


def _describe(error: BaseException, path: Path) -> str:
    """Return an error with the last line of the user's file that it passed."""
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__)
             if each.filename == str(path)]  # fmt: skip
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f"line {lines[-1]}: " if lines and lines[-1] else ""
    return f"{where}{type(error).__name__}: {error}"
