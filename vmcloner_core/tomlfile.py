"""Read TOML into attrs classes, strictly: errors about unknown keys or wrong types name the key."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from vmcloner_core.errors import BackendError, InvalidRequest, did_you_mean
from vmcloner_core.trusted_files import read_file
from vmcloner_core.units import Size, parse_size

T = TypeVar("T")


class InvalidTable(InvalidRequest):
    """A table has wrong keys or values.

    :param problems: (key, reason) of each: the key is dotted, and empty for the whole table.
    """

    def __init__(self, where: str, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{where}: {problem_text(*problems[0])}{more}")


def problem_text(key: str, reason: str) -> str:
    """Return a problem as text: ``nics[0].kind: must be …``."""
    return f"{key}: {reason}" if key else reason


def read_toml(path: Path, *, trusted: bool) -> dict[str, Any]:
    """Return the contents of a TOML file.

    :param trusted: require a file that no other user could have written.
    :raises InvalidRequest: it cannot be read, is too large or is not TOML, or has a number of more
        than 64 bits; the message names the file and the line or key.
    """
    try:
        table = tomllib.loads(read_file(path, trusted=trusted).decode())
        _check_numbers(table, path)
        return table
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise InvalidRequest(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"{path}: nested too deeply") from error


def _check_numbers(value: object, path: Path, key: str = "") -> None:
    """Check that integers fit into 64 bits, as TOML requires: huge ones cannot even be printed."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"{path}: {key}: a number of more than 64 bits")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, path, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, path, key)


def structure(data: Mapping[str, Any], into: type[T], *, where: str, also: Sequence[str] = ()) -> T:
    """Return ``data`` as an instance of the attrs class ``into``.

    Fields with ``metadata={"key": False}`` cannot be set by a file. A field's type is ``str``,
    ``int``, ``float``, ``bool``, ``Path``, ``Size``, a ``Literal``, another attrs class, ``Any``,
    or a ``tuple[T, ...]``, ``list[T]``, ``Mapping[str, T]`` or union of these.

    :param also: other valid keys of the file, which were removed from ``data``.
    :param where: the file (and table) of the data, for messages.
    :raises InvalidTable: names the key and what is wrong with it; for an unknown key it suggests
        the most similar known one.
    :raises BackendError: a field has another type.
    """
    try:
        made: T = _table(into, data, "", also)
    except _Wrong as wrong:
        raise InvalidTable(where, wrong.problems) from wrong
    return made


def keys_of(cls: type) -> list[str]:
    """Return the fields of an attrs class that a file may set."""
    return [field.name for field in attrs.fields(cls) if field.metadata.get("key", True)]


class _Wrong(ValueError):
    """A value that isn't what it must be.

    :param problems: as those of :class:`InvalidTable`.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(str(problems))
        self.problems = problems


def _table(cls: Any, table: object, key: str, also: Sequence[str] = ()) -> Any:
    """Return a table as an instance of an attrs class."""
    if not isinstance(table, Mapping):
        raise ValueError(f"must be a table{_header(key)}, not {_described(table, key)}")
    fields = {field.name: field for field in attrs.fields(cls) if field.init}
    kinds = _kinds(cls) if table else {}
    given: dict[str, Callable[[str], Any]] = {}
    for name, field in fields.items():
        if name in table:
            given[name] = functools.partial(_read, kinds[name], table[name])
        elif field.default is attrs.NOTHING:
            given[name] = functools.partial(_missing, name)
    values, problems = _all((name, _dotted(key, name), read) for name, read in given.items())
    for name in sorted(table.keys() - fields.keys()):
        meant = did_you_mean(name, [*keys_of(cls), *also])
        problems.append((key, f"unknown key {name!r} ({meant})"))
    if problems:
        raise _Wrong(problems)
    try:
        return cls(**{fields[name].alias: value for name, value in values.items()})
    except Exception as error:  # a plugin's validator may raise anything
        text = str(error)
        field_name = re.match("'([a-z_]+)' (?=must )", text)  # by a validator of attrs
        if field_name is not None:
            key, text = _dotted(key, field_name[1]), text[field_name.end() :]
        raise _Wrong([(key, text)]) from error


def _all(
    reads: Iterable[tuple[Any, str, Callable[[str], Any]]],
) -> tuple[dict[Any, Any], list[tuple[str, str]]]:
    """Call readers; return their values by name, and all that is wrong.

    :param reads: (name, key, reader) of each; a reader is given the key.
    """
    values: dict[Any, Any] = {}
    problems: list[tuple[str, str]] = []
    for name, key, read in reads:
        try:
            values[name] = read(key)
        except _Wrong as wrong:
            problems += wrong.problems
        except BackendError:  # the class is wrong, not the value
            raise
        except Exception as error:  # of any kind: they are gathered
            problems.append((key, str(error)))
    return values, problems


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _missing(name: str, _key: str) -> Any:
    raise ValueError(f"key {name!r} is missing")


def _read(kind: Any, value: Any, key: str) -> Any:
    """Return a value as a type says.

    :raises ValueError: it can't be one of that type.
    """
    if kind is Any:
        return value
    if kind in _PLAIN:
        return _plain(kind, value)
    if attrs.has(kind):
        return _table(kind, value, key)
    read = _COMPOSED.get(get_origin(kind))
    if read is None:
        raise BackendError(f"{key}: a table can't set a field of the type {kind}")
    return read(get_args(kind), value, key)


_PLAIN: dict[Any, str] = {
    str: "a string", int: "a whole number", bool: "true or false", float: "a number",
    Path: "a path", Size: "a size",
}  # fmt: skip


def _plain(kind: Any, value: Any) -> Any:
    if kind == Size:
        return parse_size(value)
    fits = isinstance(value, {Path: str, float: int | float}.get(kind, kind))
    if isinstance(value, bool) and kind is not bool:
        fits = False
    if kind is Path:
        fits = fits and value != "" and "\0" not in value
    if not fits:
        raise ValueError(f"must be {_PLAIN[kind]}, not {value!r}")
    if kind is Path:
        return Path(value).expanduser()
    return float(value) if kind is float else value


def _choice(choices: Sequence[Any], value: object, _key: str) -> object:
    if value not in choices:
        raise ValueError(f"must be {' or '.join(map(repr, choices))}, not {value!r}")
    return value


def _one_of(kinds: Sequence[Any], value: object, key: str) -> Any:
    """Return a value as the first of several types says that it fits."""
    if value is None and NoneType in kinds:
        return None
    wrong = ValueError("can't be set")
    for kind in (kinds := [kind for kind in kinds if kind is not NoneType]):
        try:
            return _read(kind, value, key)
        except ValueError as error:
            wrong = error
    if len(kinds) > 1 and _PLAIN.keys() >= set(kinds):
        names = " or ".join(text for kind, text in _PLAIN.items() if kind in kinds)
        raise ValueError(f"must be {names}, not {value!r}")
    raise wrong


def _array(args: Sequence[Any], value: Any, key: str) -> tuple[Any, ...]:
    member, *_ = args  # and an ellipsis: a tuple of any length
    is_list = isinstance(value, list | tuple)
    if member is str and not (is_list and all(isinstance(item, str) for item in value)):
        raise ValueError(f"must be a list of strings, not {value!r}")
    if not is_list:
        what = f"an array of tables{_header(key, '[[{}]]')}" if attrs.has(member) else "a list"
        raise ValueError(f"must be {what}, not {_described(value, key)}")
    return tuple(_members(member, enumerate(value), key).values())


def _mapping(args: Sequence[Any], value: object, key: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a table{_header(key)}, not {_described(value, key)}")
    return _members(args[1], value.items(), key)


_COMPOSED: dict[Any, Callable[[Sequence[Any], Any, str], Any]] = {
    Literal: _choice,
    Union: _one_of,
    UnionType: _one_of,
    tuple: _array,
    list: lambda args, value, key: list(_array(args, value, key)),
    Mapping: _mapping,
}


def _members(member: Any, items: Iterable[tuple[Any, Any]], key: str) -> dict[Any, Any]:
    """Read the members of an array or a table.

    :param items: (index or key, value) of each.
    """
    values, problems = _all(
        (name, f"{key}[{name!r}]", functools.partial(_read, member, item)) for name, item in items
    )
    if problems:
        raise _Wrong(problems)
    return values


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}".lstrip(".")


def _header(key: str, form: str = "[{}]") -> str:
    """Return a table's header in a file, for a message; empty for a member of a list."""
    return "" if not key or key.endswith("]") else f", {form.format(key.rpartition('.')[2])}"


def _described(value: object, key: str) -> str:
    """Return what a value is in TOML, for a message."""
    if isinstance(value, Mapping):
        return f"a table{_header(key)}"
    if isinstance(value, list):
        tables = bool(value) and all(isinstance(item, Mapping) for item in value)
        return f"an array of tables{_header(key, '[[{}]]')}" if tables else f"a list, {value!r}"
    return repr(value)
