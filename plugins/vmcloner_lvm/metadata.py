"""Read and write LVM's metadata text, as ``vgcfgbackup`` writes and ``vgcfgrestore`` reads it.

The grammar is from lvm2's ``libdm/libdm-config.c``; lvm.conf has the same::

    text    = item*
    item    = key "{" item* "}"  |  key "=" value
    value   = scalar  |  "[" [ scalar ("," scalar)* [","] ] "]"
    scalar  = integer | real | '"' with \\" and \\\\ '"' | "'" without quotes "'"
    comment = "#" up to the end of the line, wherever white space is allowed

A tree is immutable and keeps its source text: parts that are not changed are written as they were,
with their comments and white space. Trees are compared by their content, not by their text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from vmcloner_core.errors import HostCommandError

Scalar = int | float | str
Value = Scalar | tuple[Scalar, ...]

MAX_DEPTH = 32
"""Nested sections; LVM's metadata has five."""

_BLANK = r"(?:\s++|\#[^\n]*+)*+"
_STRING = r"\"(?:[^\"\\]|\\.)*+\"|'[^']*+'"
_NUMBER = r"[+-]?\d++(?:\.\d*+)?"
_LIST = rf"\[(?:[^\]\"'\#]|{_STRING}|\#[^\n]*+)*+\]"
_ITEM = re.compile(
    rf"(?P<lead>{_BLANK})(?:"
    rf"(?P<close>\}})"
    rf"|(?P<key>[^\s\#={{}}\[\]\",']++){_BLANK}(?:"
    rf"(?P<open>\{{)|={_BLANK}(?P<value>{_STRING}|{_NUMBER}|{_LIST}))"
    rf"|(?P<end>\Z))",
    re.DOTALL,
)
_ELEMENT = re.compile(
    rf"{_BLANK}(?:(?P<scalar>{_STRING}|{_NUMBER}){_BLANK}(?:,|(?=\]))|(?P<end>\]))", re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SPECIAL = re.compile(r'(["\\])')


@attrs.frozen
class Setting:
    """``key = value``. ``lead``: the text before it; ``text``: its source."""

    key: str
    value: Value
    lead: str | None = attrs.field(default=None, eq=False, repr=False)
    text: str | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen
class Section:
    """``key { items }``; the root of a tree is one as well, without key and braces.

    ``lead``, ``text`` and ``tail``: the text before it, of its opening, and before its end.
    """

    key: str
    items: tuple[Setting | Section, ...] = ()
    lead: str | None = attrs.field(default=None, eq=False, repr=False)
    text: str | None = attrs.field(default=None, eq=False, repr=False)
    tail: str | None = attrs.field(default=None, eq=False, repr=False)

    def sections(self) -> Iterator[Section]:
        """Yield its sections, in order."""
        return (item for item in self.items if isinstance(item, Section))

    def section(self, key: str) -> Section | None:
        """Return its section of that key, None if there is none."""
        return next((item for item in self.sections() if item.key == key), None)

    def values(self) -> dict[str, Value]:
        """Return its settings."""
        return {item.key: item.value for item in self.items if isinstance(item, Setting)}

    def replaced(self, items: Iterable[Setting | Section]) -> Section:
        """Return it with other items."""
        return attrs.evolve(self, items=tuple(items))

    def updated(self, values: Mapping[str, Value]) -> Section:
        """Return it with settings changed in place, or added before its sections."""
        items = [
            attrs.evolve(item, value=values[item.key], text=None)
            if isinstance(item, Setting) and item.key in values
            else item
            for item in self.items
        ]
        known = {item.key for item in items if isinstance(item, Setting)}
        place = next((i for i, item in enumerate(items) if isinstance(item, Section)), len(items))
        items[place:place] = [Setting(key, values[key]) for key in values if key not in known]
        return self.replaced(items)


def setting(key: str, value: Value) -> Setting:
    """Return a new setting with its text."""
    return Setting(key, value, text=f"{key} = {_spell(value)}")


def parse(text: str, source: str = "LVM metadata") -> Section:
    """Parse a metadata text.

    :param source: its name in messages.
    :raises HostCommandError: it breaks the grammar; names the line.
    """
    open_sections: list[tuple[str, str, str]] = []
    found: list[list[Setting | Section]] = [[]]
    known: dict[str, Setting] = {}  # most settings are the same in all volumes
    position = 0
    while (match := _ITEM.match(text, position)) is not None:
        position = match.end()
        same = known.get(match[0])
        if same is not None:
            found[-1].append(same)
            continue
        lead, key, value = match["lead"], match["key"], match["value"]
        if value is not None:
            written = text[match.start("key") : position]
            item = known[match[0]] = Setting(key, _value(value, text, source), lead, written)
            found[-1].append(item)
        elif match["open"]:
            open_sections.append((key, lead, text[match.start("key") : position]))
            found.append([])
            if len(found) > MAX_DEPTH:
                raise _broken(text, position, source, "too deeply nested")
        elif match["close"]:
            if not open_sections:
                raise _broken(text, position, source, "unexpected }")
            key, before, opening = open_sections.pop()
            items = tuple(found.pop())
            found[-1].append(Section(key, items, lead=before, text=opening, tail=lead))
        else:
            if open_sections:
                raise _broken(text, position, source, f"no }} for {open_sections[-1][0]}")
            return Section("", tuple(found[0]), lead="", text="", tail=lead)
    raise _broken(text, position, source, "not an item")


def write(tree: Section) -> str:
    """Return a tree as text: unchanged parts as they were read, the others in LVM's style."""
    parts: list[str] = []
    for item in tree.items:
        _write(item, 0, parts)
    parts.append("\n" if tree.tail is None else tree.tail)
    return "".join(parts)


def stored(item: Setting | Section) -> str:
    """Return an item as LVM stores it on disk: without comments, indentation and empty lines."""
    parts: list[str] = []
    _store(item, parts)
    return "".join(parts)


def stored_size(tree: Section) -> int:
    """Return the bytes that a tree takes in a physical volume."""
    return sum(_stored(item) for item in tree.items)


def _write(item: Setting | Section, depth: int, parts: list[str]) -> None:
    parts.append(_indent(depth) if item.lead is None else item.lead)
    if isinstance(item, Setting):
        parts.append(f"{item.key} = {_spell(item.value)}" if item.text is None else item.text)
        return
    parts.append(f"{item.key} {{" if item.text is None else item.text)
    for each in item.items:
        _write(each, depth + 1, parts)
    parts.append(_indent(depth) if item.tail is None else item.tail)
    parts.append("}")


def _indent(depth: int) -> str:
    return "\n" + "\t" * depth


def _store(item: Setting | Section, parts: list[str]) -> None:
    if isinstance(item, Setting):
        parts.append(f"{item.text or f'{item.key} = {_spell(item.value)}'}\n")
        return
    parts.append(f"{item.key} {{\n")
    for each in item.items:
        _store(each, parts)
    parts.append("}\n")


def _stored(item: Setting | Section) -> int:
    if isinstance(item, Section):
        return len(item.key) + len(" {\n}\n") + sum(_stored(each) for each in item.items)
    text = item.text or f"{item.key} = {_spell(item.value)}"
    return len(text.encode()) + 1


def _value(text: str, whole: str, source: str) -> Value:
    if text[0] != "[":
        return _scalar(text)
    values: list[Scalar] = []
    position = 1
    while (match := _ELEMENT.match(text, position)) is not None:
        if match["end"]:
            return tuple(values)
        values.append(_scalar(match["scalar"]))
        position = match.end()
    raise _broken(whole, whole.index(text), source, "not a list")


def _scalar(text: str) -> Scalar:
    if text[0] == '"':
        return _ESCAPED.sub(r"\1", text[1:-1]) if "\\" in text else text[1:-1]
    if text[0] == "'":
        return text[1:-1]
    return float(text) if "." in text else int(text)


def _spell(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_spell, value))}]"
    if isinstance(value, str):
        return '"' + _SPECIAL.sub(r"\\\1", value) + '"'
    return f"{value:f}" if isinstance(value, float) else str(value)


def _broken(text: str, position: int, source: str, reason: str) -> HostCommandError:
    line = text.count("\n", 0, position) + 1
    return HostCommandError(f"{source}, line {line}: syntax error: {reason}")
