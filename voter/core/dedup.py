"""Deduplication: a request that is sent again is answered, and never executed again.

A *scope* holds what is kept for one client.  There are two kinds.

- A native **session**.  Its client numbers its requests, and reports with each one up to which
  number it has all replies (``Once.done``): those need not be kept any longer.
- The **Idempotency-Keys** of one HTTP caller.  Each is kept for ``key_retention`` of agreed time.

A request is recorded when it gets its sequence number, and settled when its vote is won.  In
between it is pending.  All changes happen at a sequence number or at an agreed time, and are
replayed from the journal, so a restarted voter has the same table.

Everything is bounded, and whatever is forgotten, nothing is executed twice.  A session without
pending requests may be evicted, the least recently used one first; its client learns that it has
expired, and that the outcome of earlier requests is unknown.  A key is never dropped early: when
there are too many, new ones are refused.  A reply that does not fit is not kept, but it is known
that its request was executed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from msgspec.structs import replace

from voter.core.entries import Kept, Once, ScopeBase
from voter.core.events import Failure
from voter.core.limits import Limits

__all__ = ["KEPT_BYTES", "NEW", "Finding", "Found", "DedupTable", "key_scope", "session_scope"]

KEPT_BYTES = 200
"""Bytes of a request that is kept, besides its reply (estimate)."""
SECOND = 1_000_000_000


class Finding(Enum):
    """What is known of a request; for one that is refused, the failure its client gets."""

    NEW = "new"  # never seen: order it
    PENDING = "pending"  # ordered, no reply yet: join it
    DONE = "done"  # settled: release its reply again
    EXPIRED = Failure.SESSION_EXPIRED  # it may have been executed: nothing is known any more
    REUSED = Failure.KEY_REUSED  # the key was used for another request
    CROWDED = Failure.OVERLOAD  # no room to keep it; it has not been executed


class Found(NamedTuple):
    """What ``lookup`` returns.

    ``detail`` says why a request is refused, ``wait`` in how many seconds there may be room.
    """

    finding: Finding
    detail: str = ""
    seq: int = 0
    reply: bytes | None = None
    wait: float = 0.0


NEW = Found(Finding.NEW)


def session_scope(session: bytes) -> bytes:
    """Return the scope of a native session (16 bytes)."""
    return b"s" + session


def key_scope(caller: bytes) -> bytes:
    """Return the scope of the Idempotency-Keys of an HTTP caller."""
    return b"k" + caller


@dataclass(slots=True)
class _Scope:
    """The requests kept for one client: a session, or the keys of one HTTP caller."""

    caller: bytes
    used_ns: int  # agreed time
    done: int = 0  # the client has its replies up to this number
    kept: dict[bytes, Kept] = field(default_factory=dict)  # by number or key
    pending: int = 0  # requests that are not settled
    size: int = 0  # bytes


def _is_pending(kept: Kept) -> bool:
    return kept.reply is None and kept.seq != 0  # 0: settled, and its reply is not kept


def _size(kept: Kept) -> int:
    return KEPT_BYTES + len(kept.reply or b"")


class DedupTable:
    """All scopes.  Times are agreed times in nanoseconds, which never go backwards.

    Inside the table they are kept without the steps of agreed time: a step makes nothing older.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle_ns = int(limits.session_idle * SECOND)
        self._retention_ns = int(limits.key_retention * SECOND)
        self._sessions: OrderedDict[bytes, _Scope] = OrderedDict()  # least recently used first
        self._callers: dict[bytes, _Scope] = {}
        self._keys: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()  # times, oldest first
        self._key_bytes = 0
        self._bytes = 0
        self._stepped_ns = 0  # sum of the steps of agreed time

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    @property
    def keys(self) -> int:
        """Idempotency-Keys that are kept."""
        return len(self._keys)

    @property
    def size(self) -> int:
        """Bytes of all replies, and KEPT_BYTES for each request."""
        return self._bytes

    # ------------------------------------------------------------- requests

    def step(self, step_ns: int) -> None:
        """Note that agreed time steps forward."""
        self._stepped_ns += step_ns

    def open(self, session: bytes, caller: bytes, now_ns: int) -> None:
        """Open a session (16 bytes) that only ``caller`` may use."""
        now_ns -= self._stepped_ns
        self._expire(now_ns)
        scope = session_scope(session)
        if scope not in self._sessions:
            if len(self._sessions) >= self._limits.sessions:
                self._evict_one(None)
            self._sessions[scope] = _Scope(caller, now_ns)

    def lookup(self, once: Once, caller: bytes, now_ns: int) -> Found:
        """Return what is known of a request that has come in."""
        now_ns -= self._stepped_ns
        self._expire(now_ns)
        if once.scope[:1] == b"k":
            return self._lookup_key(once, now_ns)
        scope = self._sessions.get(once.scope)
        if scope is None or scope.caller != caller:
            return Found(Finding.EXPIRED, "this session is unknown or has expired")
        number, done = int.from_bytes(once.key), max(scope.done, once.done)
        if number <= done:
            detail = f"request {number} is not after {done}, which the client has confirmed"
            return Found(Finding.EXPIRED, detail)
        if number > done + self._limits.session_window:
            detail = f"{number} is more than {self._limits.session_window} after {done}"
            return Found(Finding.EXPIRED, detail)
        self._touch(once.scope, scope, now_ns)
        kept = scope.kept.get(once.key)
        if kept is None and self._bytes > self._limits.table_bytes:
            return Found(Finding.CROWDED, "too many replies are kept for other clients")
        return NEW if kept is None else _found(kept, once)

    def _lookup_key(self, once: Once, now_ns: int) -> Found:
        limits, scope = self._limits, self._callers.get(once.scope)
        detail, oldest_ns = "", 0
        if scope is not None:
            kept = scope.kept.get(once.key)
            if kept is not None:
                return _found(kept, once)
            if len(scope.kept) >= limits.keys // 4 or scope.size >= limits.table_bytes // 8:
                detail = "the caller has too many Idempotency-Keys that are still kept"
                oldest_ns = next(iter(scope.kept.values())).time_ns
        if len(self._keys) >= limits.keys or self._key_bytes >= limits.table_bytes // 2:
            detail = "too many Idempotency-Keys are still kept"
            oldest_ns = max(oldest_ns, next(iter(self._keys.values())))
        wait = (oldest_ns + self._retention_ns - now_ns) / SECOND
        return Found(Finding.CROWDED, detail, wait=wait) if detail else NEW

    def find(self, session: bytes, number: int) -> int | None:
        """Return the sequence number of a session's request, or None if it is not kept."""
        scope = self._sessions.get(session_scope(session))
        kept = scope and scope.kept.get(number.to_bytes(8))
        return kept.seq if kept else None

    def record(self, once: Once, caller: bytes, seq: int, time_ns: int) -> None:
        """Record a request that was ordered at ``seq``, at the agreed time ``time_ns``."""
        time_ns -= self._stepped_ns
        self._expire(time_ns)
        if once.scope[:1] == b"k":
            scope = self._callers.setdefault(once.scope, _Scope(caller, time_ns))
            scope.used_ns = time_ns
        else:
            session = self._sessions.get(once.scope)
            if session is None:
                return
            scope = session
            self._touch(once.scope, scope, time_ns)
            self._forget_up_to(scope, once.done)
            if int.from_bytes(once.key) <= scope.done:
                return
        before = scope.kept.get(once.key)
        if before is not None:
            if before.seq >= seq:
                return
            self._remove(once.scope, scope, once.key)
        self._put(once.scope, scope, Kept(once.key, once.fingerprint, seq, time_ns, None))
        self._make_room(once.scope)

    def settle(self, once: Once, reply: bytes | None, seq: int = 0) -> None:
        """Keep the reply to a request (None: it was executed, but its reply is lost).

        ``seq``, if given, is its sequence number: its key may have been recorded again since.
        """
        scope = (self._callers if once.scope[:1] == b"k" else self._sessions).get(once.scope)
        kept = scope.kept.get(once.key) if scope is not None else None
        if scope is None or kept is None or not _is_pending(kept) or seq not in (0, kept.seq):
            return
        scope.pending -= 1
        self._make_room(once.scope, len(reply or b""))
        if reply is None or self._bytes + len(reply) > self._limits.table_bytes:
            scope.kept[once.key] = Kept(kept.key, kept.fingerprint, 0, kept.time_ns, None)
        else:
            scope.kept[once.key] = Kept(kept.key, kept.fingerprint, kept.seq, kept.time_ns, reply)
            self._count(once.scope, scope, len(reply))

    # --------------------------------------------------------------- bounds

    def _touch(self, name: bytes, scope: _Scope, now_ns: int) -> None:
        scope.used_ns = now_ns
        self._sessions.move_to_end(name)

    def _forget_up_to(self, scope: _Scope, done: int) -> None:
        """Forget the requests up to number ``done``: the client has all their replies.

        This costs as little as the smaller of the two: the numbers passed, or the requests kept.
        """
        if done <= scope.done:
            return
        kept = scope.kept
        if done - scope.done < len(kept):
            over = [number.to_bytes(8) for number in range(scope.done + 1, done + 1)]
        else:
            over = [key for key in kept if int.from_bytes(key) <= done]
        scope.done = done
        for key in over:
            if key in kept:
                self._remove(b"s", scope, key)

    def _expire(self, now_ns: int) -> None:
        """Drop the keys whose time is over, and the sessions that were unused for too long."""
        while self._keys:
            (name, key), time_ns = next(iter(self._keys.items()))
            scope = self._callers[name]
            if time_ns + self._retention_ns > now_ns or _is_pending(scope.kept[key]):
                break
            self._remove(name, scope, key)
        while self._sessions:
            name, scope = next(iter(self._sessions.items()))
            if scope.used_ns + self._idle_ns > now_ns:
                break
            if scope.pending:
                self._touch(name, scope, now_ns)
            else:
                self._evict(name)

    def _make_room(self, keep: bytes, more: int = 0) -> None:
        """Evict sessions other than ``keep`` until ``more`` bytes fit."""
        while self._bytes + more > self._limits.table_bytes and self._evict_one(keep):
            pass

    def _evict_one(self, keep: bytes | None) -> bool:
        """Evict the least recently used session that has no pending request.

        Sessions that are passed over move to the end, so that the next search is short.
        """
        for _ in range(len(self._sessions)):
            name, scope = next(iter(self._sessions.items()))
            if not scope.pending and name != keep:
                self._evict(name)
                return True
            self._sessions.move_to_end(name)
        return False

    def _evict(self, name: bytes) -> None:
        self._bytes -= self._sessions.pop(name).size

    def _put(self, name: bytes, scope: _Scope, kept: Kept) -> None:
        scope.kept[kept.key] = kept
        scope.pending += _is_pending(kept)
        self._count(name, scope, _size(kept))
        if name[:1] == b"k":
            self._callers[name] = scope  # it is gone if it was empty for a moment
            self._keys[name, kept.key] = kept.time_ns

    def _remove(self, name: bytes, scope: _Scope, key: bytes) -> None:
        kept = scope.kept.pop(key)
        scope.pending -= _is_pending(kept)
        self._count(name, scope, -_size(kept))
        if name[:1] == b"k":
            del self._keys[name, key]
            if not scope.kept:
                del self._callers[name]

    def _count(self, name: bytes, scope: _Scope, size: int) -> None:
        scope.size += size
        self._bytes += size
        if name[:1] == b"k":
            self._key_bytes += size

    # ---------------------------------------------------------- checkpoints

    def export(self) -> list[ScopeBase]:
        """Return all scopes for a checkpoint; sessions first, the least recently used one first."""
        return [
            ScopeBase(
                name,
                scope.caller,
                scope.used_ns + self._stepped_ns,
                scope.done,
                [_move(kept, self._stepped_ns) for kept in scope.kept.values()],
            )
            for scopes in (self._sessions, self._callers)
            for name, scope in scopes.items()
        ]

    def load(self, scopes: list[ScopeBase]) -> None:
        """Load what ``export`` returned into an empty table."""
        for base in scopes:
            scope = _Scope(base.caller, base.used_ns, base.done)
            (self._callers if base.scope[:1] == b"k" else self._sessions)[base.scope] = scope
            for kept in base.kept:
                self._put(base.scope, scope, kept)
        self._keys = OrderedDict(sorted(self._keys.items(), key=lambda item: item[1]))


def _move(kept: Kept, step_ns: int) -> Kept:
    return replace(kept, time_ns=kept.time_ns + step_ns) if step_ns else kept


def _found(kept: Kept, once: Once) -> Found:
    """Return what is known of a request that is kept."""
    if kept.fingerprint != once.fingerprint:
        return Found(Finding.REUSED, "this key was used for another request", kept.seq)
    if _is_pending(kept):
        return Found(Finding.PENDING, "", kept.seq)
    if kept.reply is None:
        return Found(Finding.EXPIRED, "executed; its reply was too long to keep")
    return Found(Finding.DONE, "", kept.seq, kept.reply)
