"""Patterns over bytes, decided in bounded time whatever the pattern and the text.

What is searched comes from clients and guests, which may be hostile.  Python's ``re`` backtracks:
``(a+)+$`` takes years on 60 bytes.  It has no time limit, and a signal does not interrupt it
reliably: ``(?:.*a){12}`` ran on for minutes in a megabyte.  So patterns are decided here by a
deterministic automaton, which takes one step for each byte.  Its states are built when they are
first needed and kept, up to a number.  A hostile text can only make it build states, and each of
these steps checks the time.
"""

from __future__ import annotations

import time
from typing import Any

from deploy.monitor.syntax import WORD, Assertion, Bytes, Jump, PatternError, parse

__all__ = ["TIME_LIMIT", "Pattern", "PatternError", "PatternTimeout", "deadline"]

TIME_LIMIT = 0.1
"""Seconds of processor time for all patterns of one request or line.  A pattern over 1 MiB whose
states are known takes about 40 ms."""
MOST_STATES = 1000
"""States that are kept (2 kB each); beyond that they are dropped and built again."""
_END = 256  # the symbol behind the last byte
_KEY = 257  # where a state's list holds what it stands for
_START, _OTHER, _WORD = 0, 1, 2  # what is before a place: nothing, a byte of no word, one of a word


class PatternTimeout(Exception):
    """A search took too long, so whether the pattern matches is not known."""


def deadline(seconds: float = TIME_LIMIT) -> float:
    """Return the time, of this thread's processor clock, in ``seconds``."""
    return time.thread_time() + seconds


class Pattern:
    """A pattern of ``deploy.monitor.syntax``, to be searched anywhere in a text."""

    def __init__(self, text: str) -> None:
        """Raises PatternError that names the character at fault."""
        self.text = text
        program = parse(text)
        self._nodes, self._begin = program.nodes, program.first
        self._asserts = any(isinstance(node, Assertion) for node in self._nodes)
        self._states: dict[tuple[frozenset[int], int], list[Any]] = {}
        self._matched: list[Any] = []
        self._matched += [self._matched] * _KEY
        self._first = self._state(frozenset(), _START)

    def search(self, data: bytes, until: float) -> bool:
        """Return whether the pattern matches anywhere in ``data``.

        ``until``: see ``deadline``.  Raises PatternTimeout.
        """
        state = self._first
        for value in data:
            following = state[value]
            state = self._step(state, value, until) if following is None else following
        if state is self._matched:
            return True
        following = state[_END]
        return (self._step(state, _END, until) if following is None else following) is self._matched

    def _state(self, kernel: frozenset[int], before: int) -> list[Any]:
        key = kernel, before
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = [None] * _KEY + [key]
        return state

    def _step(self, state: list[Any], value: int, until: float) -> list[Any]:
        """Return the state after ``value``, and remember it."""
        if time.thread_time() > until:
            raise PatternTimeout(self.text)
        if len(self._states) > MOST_STATES:
            # The states that are dropped still point to each other, as far as they are in use.
            self._states.clear()
            self._first = self._state(*self._first[_KEY])
            state = self._state(*state[_KEY])
        kernel, before = state[_KEY]
        word = value < _END and WORD >> value & 1
        reached = self._reach(kernel, before, bool(word), value == _END)
        if 0 in reached:
            following = self._matched
        else:
            after: set[int] = set()
            for index in reached:
                node = self._nodes[index]
                if isinstance(node, Bytes) and node.mask >> value & 1:
                    after.add(node.following)
            kind = (_WORD if word else _OTHER) if self._asserts else _OTHER
            following = self._state(frozenset(after), kind)
        state[value] = following
        return following

    def _reach(self, kernel: frozenset[int], before: int, word: bool, end: bool) -> set[int]:
        """Return all nodes that are reached without a byte, before one of a word, or at the end."""
        border = (before == _WORD) != word
        holds = {"start": before == _START, "end": end, "word": border, "inside": not border}
        reached: set[int] = set()
        todo = [*kernel, self._begin]
        while todo:
            index = todo.pop()
            if index in reached:
                continue
            reached.add(index)
            node = self._nodes[index]
            if isinstance(node, Jump):
                todo += node.following
            elif isinstance(node, Assertion) and holds[node.place]:
                todo.append(node.following)
        return reached
