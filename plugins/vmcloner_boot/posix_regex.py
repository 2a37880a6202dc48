"""POSIX extended regular expressions, matched within a bound of steps.

https://pubs.opengroup.org/onlinepubs/9799919799/basedefs/V1_chap09.html: the leftmost match counts,
of these the longest. Python's ``re`` isn't used: it takes exponential time on an expression that a
guest may have written, and can't be interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import attrs

from vmcloner_boot.disk_image import Unreadable

MAX_STEPS = 50_000
MAX_EXPRESSION = 256
"""Characters of an expression."""
MAX_NESTING = 20
MAX_REPEAT = 255
MAX_TEXT = 512
"""Characters that are matched against one."""
_CLASSES = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z",
    "space": r" \t\n\r\f\v", "blank": r" \t", "punct": r"!-/:-@\[-`{-~", "xdigit": "0-9A-Fa-f",
    "cntrl": r"\x00-\x1f\x7f", "print": " -~", "graph": "!-~",
}  # fmt: skip

Groups = tuple[tuple[int, int], ...]
"""Where each group matched; (-1, -1) for one that didn't."""


class BadExpression(ValueError):
    """It is no regular expression."""


@attrs.frozen
class _Single:
    """One character."""

    fits: Callable[[str], bool]

    def after(self, text: str, at: int) -> int | None:
        """Return where it ends, None where it isn't there."""
        return at + 1 if at < len(text) and self.fits(text[at]) else None


@attrs.frozen
class _Edge:
    """``^`` or ``$``."""

    end: bool

    def after(self, text: str, at: int) -> int | None:
        """Return where it is, None where it isn't there."""
        return at if at == (len(text) if self.end else 0) else None


@attrs.frozen
class _Group:
    number: int
    inner: _Node


@attrs.frozen
class _Repeat:
    inner: _Node
    least: int
    most: int


@attrs.frozen
class _Sequence:
    parts: tuple[_Node, ...]


@attrs.frozen
class _Choice:
    branches: tuple[_Node, ...]


_Node = _Single | _Edge | _Group | _Repeat | _Sequence | _Choice


class _Parser:
    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_EXPRESSION:
            raise Unreadable(f"a regular expression has more than {MAX_EXPRESSION} characters")
        self._text = expression
        self._at = 0
        self._depth = 0
        self.groups = 0

    def parse(self) -> _Node:
        node = self._choice()
        if self._at < len(self._text):
            raise BadExpression(self._text)
        return node

    def _accept(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _choice(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise Unreadable(f"a regular expression is nested more than {MAX_NESTING} times")
        branches = [self._sequence()]
        while self._accept("|"):
            branches.append(self._sequence())
        self._depth -= 1
        return branches[0] if len(branches) == 1 else _Choice(tuple(branches))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated())
        return _Sequence(tuple(parts))

    def _repeated(self) -> _Node:
        node = self._one()
        for _ in range(MAX_NESTING):
            if self._accept("*"):
                node = _Repeat(node, 0, MAX_TEXT)
            elif self._accept("+"):
                node = _Repeat(node, 1, MAX_TEXT)
            elif self._accept("?"):
                node = _Repeat(node, 0, 1)
            elif match := re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}").match(self._text, self._at):
                self._at = match.end()
                least = int(match[1])
                most = int(match[3]) if match[3] else MAX_TEXT if match[2] else least
                if most < least or least > MAX_REPEAT:
                    raise BadExpression(self._text)
                node = _Repeat(node, least, most)
            else:
                return node
        raise Unreadable(f"a regular expression repeats more than {MAX_NESTING} times what repeats")

    def _one(self) -> _Node:
        char = self._text[self._at]
        self._at += 1
        if char == "(":
            self.groups += 1
            number = self.groups
            inner = self._choice()
            if not self._accept(")"):
                raise BadExpression(self._text)
            return _Group(number, inner)
        if char == "[":
            return self._bracket()
        if char == ".":
            return _Single(lambda _char: True)
        if char in "^$":
            return _Edge(char == "$")
        if char in "*+?{":
            raise Unreadable(f"the regular expression {self._text!r} isn't understood here")
        if char == "\\":
            char = self._escaped()
        return _Single(lambda found: found == char)

    def _escaped(self) -> str:
        if self._at == len(self._text):
            raise BadExpression(self._text)
        char = self._text[self._at]
        if char.isalnum() or char in "<>`'":  # what GNU adds: \w, \b, \1
            raise Unreadable(f"the regular expression {self._text!r} isn't understood here")
        self._at += 1
        return char

    def _bracket(self) -> _Node:
        negated = self._accept("^")
        parts: list[str] = []
        start = self._at
        while not self._accept("]") or self._at == start + 1:
            if self._at == start + 1 and self._text[start] == "]":
                self._at = start
            if self._at >= len(self._text):
                raise BadExpression(self._text)
            parts.append(self._member())
            start = -1
        try:
            pattern = re.compile(f"[{'^' if negated else ''}{''.join(parts)}]", re.DOTALL)
        except re.error as error:
            raise BadExpression(self._text) from error
        return _Single(lambda found: pattern.match(found) is not None)

    def _member(self) -> str:
        """Read a character, a range or a class, as Python's ``re`` writes it."""
        match = re.compile(r"\[:(\w+):\]").match(self._text, self._at)
        if match is not None:
            self._at = match.end()
            if match[1] not in _CLASSES:
                raise BadExpression(self._text)
            return _CLASSES[match[1]]
        if self._text.startswith(("[.", "[="), self._at):
            raise Unreadable(f"the regular expression {self._text!r} isn't understood here")
        first = re.escape(self._text[self._at])
        self._at += 1
        last = re.compile(r"-([^\]\[])").match(self._text, self._at)
        if last is None:
            return first
        self._at = last.end()
        return f"{first}-{re.escape(last[1])}"


class _Matcher:
    def __init__(self, text: str) -> None:
        self._text = text
        self._steps = 0

    def ends(self, node: _Node, at: int, groups: Groups) -> Iterator[tuple[int, Groups]]:
        """Yield where a match from ``at`` may end, the longest of repetitions first."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise Unreadable("a regular expression takes too long to match")
        if isinstance(node, _Single | _Edge):
            end = node.after(self._text, at)
            if end is not None:
                yield end, groups
        elif isinstance(node, _Group):
            for end, inner in self.ends(node.inner, at, groups):
                number = node.number
                yield end, (*inner[:number], (at, end), *inner[number + 1 :])
        elif isinstance(node, _Choice):
            for branch in node.branches:
                yield from self.ends(branch, at, groups)
        elif isinstance(node, _Sequence):
            yield from self._sequence(node.parts, at, groups)
        else:
            yield from self._repeat(node, at, groups)

    def _sequence(
        self, parts: tuple[_Node, ...], at: int, groups: Groups
    ) -> Iterator[tuple[int, Groups]]:
        if not parts:
            yield at, groups
            return
        stack = [self.ends(parts[0], at, groups)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif len(stack) == len(parts):
                yield found
            else:
                stack.append(self.ends(parts[len(stack)], *found))

    def _repeat(self, node: _Repeat, at: int, groups: Groups) -> Iterator[tuple[int, Groups]]:
        """Yield the ends of repetitions, the most of them first; an empty one isn't repeated."""
        stack = [(at, groups, self.ends(node.inner, at, groups))]
        while stack:
            start, before, waiting = stack[-1]
            found = next(waiting, None) if len(stack) <= node.most else None
            if found is not None and (found[0] > start or len(stack) <= node.least):
                stack.append((*found, self.ends(node.inner, *found)))
                continue
            if found is not None:
                continue
            stack.pop()
            if len(stack) >= node.least:
                yield start, before


def search(expression: str, text: str) -> list[str | None] | None:
    """Return what matched and each of its groups (None for one that didn't), None without a match.

    :raises BadExpression: it is no regular expression.
    :raises Unreadable: it isn't understood here, or takes too long.
    """
    parser = _Parser(expression)
    node = parser.parse()
    if len(text) > MAX_TEXT:
        raise Unreadable(f"a text to match has more than {MAX_TEXT} characters")
    matcher = _Matcher(text)
    nothing: Groups = ((-1, -1),) * (parser.groups + 1)
    for start in range(len(text) + 1):
        best: tuple[int, Groups] | None = None
        for end, groups in matcher.ends(node, start, nothing):
            if best is None or end > best[0]:
                best = end, groups
            if end == len(text):
                break
        if best is not None:
            spans = ((start, best[0]), *best[1][1:])
            return [text[first:last] if first >= 0 else None for first, last in spans]
    return None
