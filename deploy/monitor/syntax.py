r"""The syntax of patterns: a part of Python's regular expressions, over bytes.  Pure.

Literals, ``.``, ``[...]``, ``\d \w \s`` and their negations, ``\xNN \n \r \t \f \v \0``, groups
``(...)`` and ``(?:...)``, ``|``, ``* + ? {m} {m,} {,n} {m,n}`` (also lazy: the same here), ``^ $``,
``\A \Z \b \B``.  ``(?i)`` and ``(?s)`` at the beginning: letters match in any case; ``.`` also
matches a line end.  ``^`` and ``$`` mean the beginning and the end of the text.  There are no back
references and no look-around: so one pass over the text decides (``deploy.monitor.patterns``).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, NoReturn

__all__ = [
    "LONGEST",
    "MOST_NODES",
    "Assertion",
    "Bytes",
    "Jump",
    "PatternError",
    "Program",
    "parse",
]

LONGEST = 1000
"""Most characters of a pattern."""
MOST_NODES = 3000
"""Most nodes of a pattern's automaton; ``{m,n}`` copies what it repeats."""
_MOST_REPEATS = 255
_DEEPEST = 50
ALL = (1 << 256) - 1


class PatternError(ValueError):
    """A text is not a pattern."""


class Bytes(NamedTuple):
    """Takes one byte that is in the set ``mask`` (bit n: byte n)."""

    mask: int
    following: int


class Jump(NamedTuple):
    """Continues at each of these nodes."""

    following: tuple[int, ...]


Place = Literal["start", "end", "word", "inside"]


class Assertion(NamedTuple):
    r"""Continues at a place of the text: its start or end, ``\b`` (word) or ``\B`` (inside)."""

    place: Place
    following: int


Node = Bytes | Jump | Assertion


class Program(NamedTuple):
    """A nondeterministic automaton; it accepts at node 0."""

    nodes: list[Node]
    first: int


def _mask(values: bytes) -> int:
    return sum(1 << value for value in set(values))


_DIGITS = _mask(b"0123456789")
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
WORD = _DIGITS | _mask(_LETTERS + _LETTERS.upper() + b"_")
_SPACES = _mask(b" \t\n\r\f\v")
_LINE_END = _mask(b"\n")
_CLASSES = {
    "d": _DIGITS, "D": ALL & ~_DIGITS, "w": WORD, "W": ALL & ~WORD, "s": _SPACES,
    "S": ALL & ~_SPACES,
}  # fmt: skip
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_PLACES: dict[str, Place] = {"A": "start", "Z": "end", "b": "word", "B": "inside"}


class _Set(NamedTuple):
    mask: int


class _At(NamedTuple):
    place: Place


class _Sequence(NamedTuple):
    parts: list[_Tree]


class _Choice(NamedTuple):
    parts: list[_Tree]


class _Repeat(NamedTuple):
    part: _Tree
    least: int
    most: int | None


_Tree = _Set | _At | _Sequence | _Choice | _Repeat


class _Parser:
    """Reads one pattern, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._any_case = self._dot_all = False

    def parse(self) -> _Tree:
        while self._text.startswith(("(?i)", "(?s)"), self._at):
            self._any_case |= self._text[self._at + 2] == "i"
            self._dot_all |= self._text[self._at + 2] == "s"
            self._at += 4
        tree = self._choice()
        if self._at < len(self._text):
            self._fail("a ) without its (")
        return tree

    def _fail(self, text: str) -> NoReturn:
        raise PatternError(f"{text}, at character {self._at + 1} of {self._text!r}")

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _choice(self) -> _Tree:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Choice(parts)

    def _sequence(self) -> _Tree:
        parts: list[_Tree] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated(self._item()))
        return _Sequence(parts)

    def _repeated(self, part: _Tree) -> _Tree:
        bounds = self._bounds()
        if bounds is None:
            return part
        if isinstance(part, _At):
            self._fail("a place in the text cannot be repeated")
        self._take("?")  # lazy
        if self._next() in ("*", "+", "?", "{") and self._text[self._at : self._at + 2] != "{}":
            self._fail("one repetition directly after another")
        return _Repeat(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        if not self._take("{"):
            return None
        least = self._number()
        most = least
        if self._take(","):
            most = self._number()
        elif least is None:
            self._fail("a { that begins no repetition: write \\{")
        if not self._take("}"):
            self._fail("a repetition without its }")
        if most is not None and most < (least or 0):
            self._fail("a repetition whose most is below its least")
        return least or 0, most

    def _number(self) -> int | None:
        start = self._at
        while self._next().isdigit() and self._next().isascii():
            self._at += 1
        if start == self._at:
            return None
        number = int(self._text[start : self._at])
        if number > _MOST_REPEATS:
            self._fail(f"more than {_MOST_REPEATS} repetitions")
        return number

    def _item(self) -> _Tree:
        char = self._next()
        if char in ("*", "+", "?", "{"):
            self._fail(f"a {char} without something that it repeats")
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return _Set(self._set())
        if char == ".":
            return _Set(ALL if self._dot_all else ALL & ~_LINE_END)
        if char in ("^", "$"):
            return _At("start" if char == "^" else "end")
        if char != "\\":
            return self._literal(self._byte(char))
        if self._next() in _PLACES:
            self._at += 1
            return _At(_PLACES[self._text[self._at - 1]])
        found = self._escape()
        return _Set(found[1]) if isinstance(found, tuple) else self._literal(found)

    def _group(self) -> _Tree:
        if self._take("?") and not self._take(":"):
            self._fail("of (?...) only (?:...) is known, and (?i) and (?s) at the beginning")
        self._depth += 1
        if self._depth > _DEEPEST:
            self._fail(f"more than {_DEEPEST} groups inside each other")
        tree = self._choice()
        self._depth -= 1
        if not self._take(")"):
            self._fail("a ( without its )")
        return tree

    def _byte(self, char: str) -> int:
        if not char.isascii():
            self._fail(f"{char!r} is not ASCII: write its bytes as \\xNN")
        return ord(char)

    def _literal(self, value: int) -> _Set:
        return _Set(self._cased(1 << value))

    def _cased(self, mask: int) -> int:
        """Return a set with the other case of its letters, if that matches too."""
        if self._any_case:
            for low in _LETTERS:
                both = 1 << low | 1 << low - 32
                mask |= both if mask & both else 0
        return mask

    def _escape(self) -> int | tuple[str, int]:
        """Return the byte behind a backslash, or (name, set) of a class."""
        char = self._next()
        self._at += 1
        if char in _CLASSES:
            return char, _CLASSES[char]
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "x":
            digits = self._text[self._at : self._at + 2]
            if len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self._at += 2
                return int(digits, 16)
            self._fail("\\x without two hexadecimal digits")
        if char == "" or char.isalnum():
            self._at -= 1
            self._fail(f"\\{char} has no meaning here")
        return self._byte(char)

    def _set(self) -> int:
        negated, mask, begun = self._take("^"), 0, self._at
        while self._next() != "]" or self._at == begun:
            low = self._set_item()
            if isinstance(low, tuple):
                mask |= low[1]
                continue
            high: int | tuple[str, int] = low
            if self._next() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._set_item()
            if isinstance(high, tuple) or high < low:
                self._fail("a range whose end is before its beginning")
            mask |= (1 << high + 1) - (1 << low)
        self._at += 1
        mask = self._cased(mask)
        return ALL & ~mask if negated else mask

    def _set_item(self) -> int | tuple[str, int]:
        char = self._next()
        if not char:
            self._fail("a [ without its ]")
        self._at += 1
        return self._escape() if char == "\\" else self._byte(char)


class _Builder:
    """Builds the automaton, from its end to its beginning."""

    def __init__(self) -> None:
        self.nodes: list[Node] = [Jump(())]

    def _add(self, node: Node) -> int:
        if len(self.nodes) >= MOST_NODES:
            raise PatternError(
                f"the pattern is too large: over {MOST_NODES} steps when written out"
            )
        self.nodes.append(node)
        return len(self.nodes) - 1

    def build(self, tree: _Tree, following: int) -> int:
        """Add nodes for a tree, which continue at ``following``; return the first one."""
        if isinstance(tree, _Set):
            return self._add(Bytes(tree.mask, following))
        if isinstance(tree, _At):
            return self._add(Assertion(tree.place, following))
        if isinstance(tree, _Sequence):
            for part in reversed(tree.parts):
                following = self.build(part, following)
            return following
        if isinstance(tree, _Choice):
            return self._add(Jump(tuple(self.build(part, following) for part in tree.parts)))
        return self._repeat(tree, following)

    def _repeat(self, tree: _Repeat, following: int) -> int:
        end = following
        if tree.most is None:
            following = self._add(Jump(()))
            self.nodes[following] = Jump((self.build(tree.part, following), end))
        else:
            for _ in range(tree.most - tree.least):
                following = self._add(Jump((self.build(tree.part, following), end)))
        for _ in range(tree.least):
            following = self.build(tree.part, following)
        return following


def parse(text: str) -> Program:
    """Return the automaton of a pattern.  Raises PatternError that names the character."""
    if not text:
        raise PatternError("the pattern is empty, so it would match everything")
    if len(text) > LONGEST:
        raise PatternError(f"the pattern has {len(text)} characters, the limit is {LONGEST}")
    builder = _Builder()
    first = builder.build(_Parser(text).parse(), 0)
    return Program(builder.nodes, first)
