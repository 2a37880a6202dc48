"""The files that are imported: xl.cfg and its templates, and files of ``key value`` lines.

xl.cfg(5) is a list of assignments whose values are texts, numbers and lists, in Python's notation;
earlier tools ran it as Python. Nothing is run here: a value is read as a literal, or reported.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound

MAX_FILE = 1024**2
MAX_VALUE = 65536
"""Characters of one value."""
MAX_NESTING = 8
MAX_NUMBER = 10**12

Value = str | int | list["Value"]


@attrs.frozen
class Note:
    """A line that couldn't be carried over as it is, and what became of it."""

    file: str
    line: int
    text: str
    reason: str


@attrs.frozen
class Assignment:
    """One ``key = value``, with where and how it stands in its file."""

    key: str
    value: Value
    file: str
    line: int
    text: str

    def note(self, reason: str) -> Note:
        """Return a note on it."""
        return Note(self.file, self.line, self.text, reason)


def read(path: Path) -> str:
    """Return a file's text.

    :raises NotFound: there is none. :raises InvalidRequest: it is too large, or no text.
    """
    try:
        if not path.is_file():
            raise NotFound(f"{path}: no such file")
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE or b"\0" in data:
        raise InvalidRequest(f"{path}: not a configuration file")
    return data.decode("utf-8", "replace")


# --- xl.cfg -------------------------------------------------------------------------------------

# Quoted texts (one that isn't closed ends with its line), comments, and all else.
_WORDS = re.compile(r"'(?:[^'\\\n]|\\.)*'?|\"(?:[^\"\\\n]|\\.)*\"?|#[^\n]*|\n|.")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(\+?=)(?!=)\s*(.*)", re.DOTALL)


def read_xl(path: Path) -> tuple[list[Assignment], list[Note]]:
    """Return the assignments of an xl.cfg file, and its lines that are none."""
    file = str(path)
    found: dict[str, Assignment] = {}
    notes: list[Note] = []
    for line, text in _statements(read(path)):
        shown = " ".join(text.split())[:120]
        match = _ASSIGNMENT.fullmatch(text)
        if match is None:
            notes.append(Note(file, line, shown, "not an assignment: Python code isn't run"))
            continue
        key, operator, expression = match.groups()
        try:
            value = _literal(expression)
        except ValueError as error:
            notes.append(Note(file, line, shown, str(error)))
            continue
        if key in found:
            whole = _sum(found[key].value, value) if operator == "+=" else None
            if whole is None:
                notes.append(_repeated(found[key], line))
            value = value if whole is None else whole
        found[key] = Assignment(key, value, file, line, shown)
    return list(found.values()), notes


def _repeated(earlier: Assignment, line: int) -> Note:
    return earlier.note(f"line {line} says {earlier.key} again, and that counts")


def _sum(first: Value, second: Value) -> Value | None:
    """Return two values together, None where they are of different kinds."""
    if isinstance(first, list) and isinstance(second, list):
        return first + second
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    return None


def _literal(expression: str) -> Value:
    """Return what a text, number or list stands for.

    :raises ValueError: it is something else.
    """
    if len(expression) > MAX_VALUE:
        raise ValueError("longer than any value should be")
    try:
        with warnings.catch_warnings():  # Python's own, of what isn't ours to mend: "1if"
            warnings.simplefilter("ignore")
            return _checked(ast.literal_eval(expression.strip()))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("not a text, a number or a list of them") from error


def _checked(value: object, depth: int = 0) -> Value:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        value.encode()  # half a surrogate pair can't be written
        return value
    if isinstance(value, int) and abs(value) <= MAX_NUMBER:
        return value
    if isinstance(value, list | tuple) and depth < MAX_NESTING:
        return [_checked(item, depth + 1) for item in value]
    raise ValueError(type(value).__name__)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, statement): they end with a line, or ``;``, outside of quotes and brackets."""
    line = start = 1
    depth = 0
    parts: list[str] = []
    for word in _WORDS.findall(text):
        if word.startswith("#"):
            continue
        if (word in ("\n", ";") and depth == 0) or depth > MAX_NESTING:
            if parts:
                yield start, "".join(parts)
            parts, depth = [], 0
        elif parts or word.strip():
            start = start if parts else line
            parts.append(word)
            depth = max(0, depth + (word in "[(") - (word in "])"))
        line += word.count("\n")
    if parts:
        yield start, "".join(parts)


# --- key value ----------------------------------------------------------------------------------


def read_conf(path: Path) -> tuple[list[Assignment], list[Note]]:
    """Return the lines ``key value`` of a file, the last of each key, and the earlier ones."""
    found: dict[str, Assignment] = {}
    notes: list[Note] = []
    for number, line in enumerate(read(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        written, *rest = text.split(None, 1)
        key, value = written.lower(), rest[0].strip() if rest else ""
        if key in found:
            notes.append(_repeated(found[key], number))
        found[key] = Assignment(key, value, str(path), number, f"{written} {value}"[:120])
    return list(found.values()), notes


def is_xl(path: Path) -> bool:
    """Tell an xl.cfg file, or a template of one, from a file of ``key value`` lines."""
    assignments, _ = read_xl(path)
    return any(a.key in ("name", "memory", "disk", "kernel", "bootloader") for a in assignments)
