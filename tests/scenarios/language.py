"""The language of the scenario files: each line is an event, followed by its effects, indented.

    # a comment
    node 2/3 observers=1 window=5     an engine with g1, g2, g3 (and g4, an observer)
    node 2/3 spares=1                 ... (and g4, retired)
    node 2/3 follow=1                 ... which sends orders to a majority first
    tick 0.5                          seconds pass
    join g1 g2 g3                     fresh replicas join: a handshake with each, in short
    greet g1                          a handshake with an empty, fresh replica, in full
    greet g1 at 7                     ... with one that has applied everything up to write 7
    greet g1 at 7 foreign             ... whose history differs
    greet g1 at 0 used                ... that is empty but not fresh
    submit 1 PUT a                    a client's request (ticket 1); "read 1 GET a" for a read
    turn 1 PUT a | read 2 GET a       requests of one turn of the loop
    cancel 1                          the client no longer waits
    g1 g2 says 4 ok                   replies to the request at place 4, one after the other
    g1 answers 4 ok | ok | no         replies in one frame, the first to the request at place 4
    g1 digest 9 abc                   the digest of the state "abc" at the marker 9
    g1 restored 9 abc                 ... after a restore
    g1 piece 9 100, g1 fetched 9 abc, g1 cannot-fetch 9
    roles 0 g4=voter g2=retired       a change of roles, of the table with version 0
    g1 refuses 4, g1 alive, g1 lost, g1 garbage, admit g1, expel g1, drain

"g1~ says ..." is a reply that belongs to the previous handshake.
`pytest tests/scenarios --rewrite-scenarios` rewrites the effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from guests.protocol.wire import EMPTY_HISTORY, encode_replies
from tests.voter.core.model import digest_of, make_engine
from voter.core import Limits
from voter.core import events as ev
from voter.core.entries import Record
from voter.core.events import Effect, Event

__all__ = ["Scenario", "ScenarioError"]

INDENT = "    "


class ScenarioError(ValueError):
    """A line that is not part of the language."""


class Scenario:
    """Runs the lines of one file."""

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}
        self._records: dict[int, Record] = {}
        self._states = {digest_of(b""): ""}
        self._now = 100.0

    def run(self, text: str) -> str:
        """Return the file with the engine's present effects below each event."""
        lines = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith(INDENT):
                continue
            lines.append(line)
            words = line.partition("#")[0].split()
            if words:
                try:
                    lines += [INDENT + done for done in self._take(words)]
                except (KeyError, ValueError, IndexError) as error:
                    raise ScenarioError(f"line {number}: {line!r}: {error!r}") from error
        return "\n".join(lines) + "\n"

    def _take(self, words: list[str]) -> list[str]:
        if words[0] == "node":
            options = dict(word.split("=") for word in words[2:])
            counts = {key: int(options.pop(key, "0")) for key in ("observers", "spares")}
            follow = options.pop("follow", "0") == "1"
            limits: dict[str, Any] = {
                name: float(text) if "." in text else int(text) for name, text in options.items()
            }
            self._engine = make_engine(words[1], limits=Limits(**limits), follow=follow, **counts)
            return self._feed([ev.Tick(self._now, int(self._now * 1e9))])
        if words[0] == "join":
            return [", ".join(self._join(name) for name in words[1:])]
        return self._feed(self._events(words)) or ["(nothing)"]

    def _join(self, name: str) -> str:
        effects = list(self._engine.receive(self._greet(self._index(name), [])))
        *_, last = effects
        if not isinstance(last, ev.Changed) or any(not isinstance(e, ev.Changed) for e in effects):
            raise ScenarioError(f"{name} does more than join: greet it")
        return f"{name} {last.after} at {last.seq}"

    def _feed(self, events: list[Event] | Iterator[Event]) -> list[str]:
        effects = (effect for event in events for effect in self._engine.receive(event))
        return [
            self._describe(each)
            for effect in effects
            for each in (effect.releases if isinstance(effect, ev.ReleaseAll) else (effect,))
        ]

    def _events(self, words: list[str]) -> Iterator[Event]:
        verb, rest = words[0], words[1:]
        if verb == "tick":
            self._now += float(rest[0])
            yield ev.Tick(self._now, int(self._now * 1e9))
        elif verb == "greet":
            yield self._greet(self._index(rest[0]), rest[1:])
        elif verb in ("submit", "read"):
            yield from self._requests(words)
        elif verb == "turn":
            parts = [part.split() for part in " ".join(rest).split("|")]
            yield ev.SubmitAll([event for part in parts for event in self._requests(part)])
        elif verb == "cancel":
            yield ev.Cancel(int(rest[0]))
        elif verb == "admit":
            yield ev.Readmit(self._index(rest[0]))
        elif verb == "expel":
            yield ev.Expel(self._index(rest[0]), "the operator asked for it")
        elif verb == "drain":
            yield ev.Drain()
        elif verb == "roles":
            roles = dict(word.split("=") for word in rest[1:])
            yield ev.ChangeRoles(0, int(rest[0]), roles, "")
        else:
            names = [word for word in words if word[:1] == "g" and word.strip("g~").isdigit()]
            for name in names:
                index = self._index(name.rstrip("~"))
                epoch = self._epochs[index] - name.count("~")
                yield self._say(index, epoch, words[len(names)], words[len(names) + 1 :])

    def _requests(self, words: list[str]) -> Iterator[ev.Submit]:
        """Yield the request of ``submit 1 PUT a``, ``read 1 GET a`` or ``1 PUT a``."""
        ticket, *request = words[words[0] in ("submit", "read") :]
        yield ev.Submit(int(ticket), " ".join(request).encode(), b"me", words[0] == "read")

    def _greet(self, index: int, rest: list[str]) -> Event:
        epoch = self._epochs[index] = self._epochs.get(index, 100 * (index + 1)) + 1
        seq = int(rest[1]) if rest else 0
        history = self._records[seq].history if seq else EMPTY_HISTORY
        if "foreign" in rest:
            history = b"foreign!"
        return ev.Greeted(index, epoch, 1, not rest, seq, history)

    def _say(self, index: int, epoch: int, verb: str, rest: list[str]) -> Event:
        seq = int(rest[0]) if rest else 0
        text = " ".join(rest[1:])
        ways: dict[str, Callable[[], Event]] = {
            "says": lambda: ev.Answered(index, epoch, seq, text.encode()),
            "answers": lambda: ev.AnsweredAll(
                index, epoch, seq, encode_replies([r.strip().encode() for r in text.split("|")])
            ),
            "digest": lambda: ev.Digested(index, epoch, seq, self._digest(text)),
            "restored": lambda: ev.Restored(index, epoch, seq, self._digest(text)),
            "piece": lambda: ev.Piece(index, epoch, seq, int(text)),
            "fetched": lambda: ev.Fetched(
                index, epoch, seq, text.encode(), digest_of(text.encode())
            ),
            "cannot-fetch": lambda: ev.FetchFailed(index, epoch, seq, "not kept"),
            "refuses": lambda: ev.RefusedOrder(index, epoch, seq, "another history"),
            "alive": lambda: ev.Heard(index, epoch),
            "lost": lambda: ev.Lost(index, epoch, "link closed"),
            "garbage": lambda: ev.ProtocolViolation(index, epoch, "sends garbage"),
        }
        return ways[verb]()

    def _digest(self, text: str) -> bytes:
        digest = digest_of(text.encode())
        self._states[digest] = text
        return digest

    def _index(self, name: str) -> int:
        return next(r.index for r in self._engine.members if r.name == name)

    def _names(self, indexes: tuple[int, ...]) -> str:
        return " ".join(self._engine.members[index].name for index in indexes) or "nobody"

    def _receivers(self, replicas: tuple[int, ...], later: tuple[int, ...]) -> str:
        now = self._names(tuple(index for index in replicas if index not in later))
        return f"{now}, later to {self._names(later)}" if later else now

    def _describe(self, effect: Effect) -> str:
        """Return one line about an effect."""
        match effect:
            case ev.Send(replicas, record, later):
                self._records[record.seq] = record
                kind = "void" if record.void else "read" if record.read_only else "write"
                text = record.request.decode()
                return f"send to {self._receivers(replicas, later)}: {kind} {record.seq} {text}"
            case ev.SendAll(replicas, records, later):
                self._records |= {record.seq: record for record in records}
                text = " | ".join(
                    f"{'read' if r.read_only else 'write'} {r.seq} {r.request.decode()}"
                    for r in records
                )
                return f"send to {self._receivers(replicas, later)}: {text}"
            case ev.Push(replicas):
                return f"push to {self._names(replicas)}"
            case ev.Mark(replicas, seq, keeper):
                keeps = "" if keeper is None else f", {self._names((keeper,))} keeps the state"
                return f"mark to {self._names(replicas)}: {seq}{keeps}"
            case ev.Restore(replica, seq, _, digest, state):
                known = self._states.get(digest, "?") if digest else ""
                return f"restore {self._names((replica,))}: {state.decode()!r} of {seq} ({known!r})"
            case ev.Fetch(replica, _, seq):
                return f"fetch from {self._names((replica,))}: {seq}"
            case ev.Ping(replica):
                return f"ping {self._names((replica,))}"
            case ev.Disconnect(replica, reason):
                return f"disconnect {self._names((replica,))}: {reason}"
            case ev.Release(ticket, seq, reply, agreed, dissent):
                but = f", not {self._names(dissent)}" if dissent else ""
                return f"release {ticket}: {reply.decode()!r} at {seq}, {agreed} agree{but}"
            case ev.Fail(ticket, failure, detail, seq):
                return f"fail {ticket}: {failure} at {seq}: {detail}"
            case ev.Changed(replica, before, after, reason, seq):
                return f"{self._names((replica,))} {before} -> {after} at {seq}: {reason}"
            case ev.ClockChanged(wall_ns, step_ns):
                return f"clock set by {wall_ns / 1e9} s, agreed time steps by {step_ns / 1e9} s"
            case ev.RoleAssigned(replica, before, after, _, seq):
                return f"role of {self._names((replica,))} {before} -> {after} at {seq}"
            case ev.RolesChanged(_, version, seq):
                return f"roles {version} at {seq}"
            case ev.RolesRefused(_, _, detail):
                return f"roles refused: {detail}"
            case ev.Differed(replica, seq, _, released, other):
                name, *parts = self._names((replica,)), released or b"?", other or b"?"
                was, is_ = (part.decode() for part in parts)
                return f"{name} differs at {seq}: {is_!r}, not {was!r}"
            case ev.Voided(seq):
                return f"void {seq}"
            case ev.Checkpointed(base, state):
                known = self._states[base.digest or b""]
                return f"checkpoint {base.seq}: {len(state)} bytes ({known!r})"
        raise ScenarioError(f"unknown effect: {effect}")
