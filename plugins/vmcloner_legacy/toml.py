"""Write TOML: the few kinds of values that templates and settings have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Scalar = str | int | float | bool
Table = Mapping[str, "Scalar | Sequence[str] | Table | Sequence[Table]"]


def dumps(table: Table, comment: str = "") -> str:
    """Return a table as TOML, its plain keys before its tables.

    :param comment: lines that stand before it.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += [*_table(table, ())]
    return "\n".join(lines).strip("\n") + "\n"


def _table(table: Table, path: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for key, value in table.items():
        if isinstance(value, str | int | float) or (
            isinstance(value, Sequence) and all(isinstance(item, str) for item in value)
        ):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in table.items():
        name = ".".join(map(_key, (*path, key)))
        if isinstance(value, Mapping):
            inner = _table(value, (*path, key))
            lines += ["", f"[{name}]", *inner] if inner and inner[0] else inner
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            for item in value:
                assert isinstance(item, Mapping)  # noqa: S101 - of one kind
                lines += ["", f"[[{name}]]", *_table(item, (*path, key))]
    return lines


def _key(key: str) -> str:
    plain = key.replace("-", "").replace("_", "")
    return key if plain.isascii() and plain.isalnum() else _value(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string but for one character that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert isinstance(value, Sequence)  # noqa: S101 - no other kinds are written
    return "[" + ", ".join(map(_value, value)) + "]"
