"""The command ``test`` of GRUB, also called ``[``: strings, numbers and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from vmcloner_boot.disk_image import Unreadable

MAX_TEST = 100
"""Words of one test."""


class Files(Protocol):
    """What a test asks about files."""

    def is_there(self, path: str) -> bool:
        """Tell whether there is anything of that name."""

    def is_folder(self, path: str) -> bool:
        """Tell whether it is a folder; a link to one isn't."""

    def has_content(self, path: str) -> bool:
        """Tell whether it is, or links to, a file that isn't empty."""


def number(text: str) -> int:
    """Return a number as GRUB reads it: decimal, ``0x`` hexadecimal, ``0`` octal; else 0.

    :raises Unreadable: it is too large: what GRUB makes of it depends on its version.
    """
    match = re.match(r"[ \t\r\n]*(-?)(0[xX][0-9a-fA-F]+|0[0-7]+|[0-9]+)", text)
    if match is None:
        return 0
    sign, digits = match[1], match[2]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if re.match("0[0-7]", digits) else 10
    if base == 10:
        digits = digits[: re.match("[0-9]*", digits).end()]  # type: ignore[union-attr]
    if len(digits) > 12 or abs(value := int(digits, base)) >= 2**31:
        raise Unreadable(f"the number {text!r} of a GRUB script is too large")
    return -value if sign else value


def _prefixed(left: str, right: str) -> int:
    """Compare the numbers behind what two texts begin with in common."""
    at = 0
    while at < min(len(left), len(right)) and left[at] == right[at]:
        at += 1
    at -= 1
    while at > 0 and left[at] in "0123456789":
        at -= 1
    at += 1
    return max(number(left[at:]), 0) - max(number(right[at:]), 0)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_BINARY: dict[str, Callable[[str, str], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: _bytes(a) < _bytes(b),
    "<=": lambda a, b: _bytes(a) <= _bytes(b),
    ">": lambda a, b: _bytes(a) > _bytes(b),
    ">=": lambda a, b: _bytes(a) >= _bytes(b),
    "-eq": lambda a, b: number(a) == number(b),
    "-ne": lambda a, b: number(a) != number(b),
    "-lt": lambda a, b: number(a) < number(b),
    "-le": lambda a, b: number(a) <= number(b),
    "-gt": lambda a, b: number(a) > number(b),
    "-ge": lambda a, b: number(a) >= number(b),
    "-pgt": lambda a, b: _prefixed(a, b) > 0,
    "-plt": lambda a, b: _prefixed(a, b) < 0,
}


class _Test:
    def __init__(self, words: Sequence[str], files: Files) -> None:
        self._words = words
        self._at = 0
        self._unary: dict[str, Callable[[str], bool]] = {
            "-d": files.is_folder,
            "-e": files.is_there,
            "-f": lambda path: files.is_there(path) and not files.is_folder(path),
            "-s": files.has_content,
            "-n": bool,
            "-z": lambda text: not text,
        }

    def value(self) -> bool:
        """Evaluate up to the end, or to the parenthesis that closes.

        As in GRUB, tests behind one another must all hold, with or without ``-a``.
        """
        either, both, inverted = False, True, False
        while self._at < len(self._words):
            found = self._simple()
            word = self._words[self._at] if found is None else ""
            if found is None:
                self._at += 1
                if word == ")":
                    break
                if word == "(":
                    found = self.value()
                elif word == "!":
                    inverted = not inverted
                elif word == "-o":
                    either, both = either or both, True
                elif word != "-a":
                    found = bool(word)
            if found is not None:
                both = both and found is not inverted
                inverted = False
        return either or both

    def _simple(self) -> bool | None:
        """Evaluate a test of three words or of two, None where there is none."""
        words = self._words[self._at : self._at + 3]
        if len(words) == 3 and words[1] in _BINARY:
            self._at += 3
            return _BINARY[words[1]](words[0], words[2])
        if len(words) == 3 and words[1][:3] in ("-nt", "-ot"):
            raise Unreadable(f"its test {words[1]!r} of files' times isn't understood here")
        if len(words) >= 2 and words[0] in self._unary:
            self._at += 2
            return self._unary[words[0]](words[1])
        return None


def evaluate(words: Sequence[str], files: Files) -> bool:
    """Evaluate a test.

    :raises Unreadable: it is too long, or asks what isn't known here.
    """
    words = words[:-1] if words and words[-1] == "]" else words
    if len(words) > MAX_TEST:
        raise Unreadable(f"a GRUB script tests more than {MAX_TEST} words at once")
    return _Test(words, files).value()
