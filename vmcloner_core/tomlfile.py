"""Read TOML into attrs classes, strictly: errors about unknown keys or wrong types name the key."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import attrs

from vmcloner_core import kept_code
from vmcloner_core.errors import InvalidRequest, VmclonerError, did_you_mean
from vmcloner_core.trusted_files import read_file
from vmcloner_core.units import Duration, Size, parse_duration, parse_size

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")
_KEY = "\ue000"
"""Stands for the key in the reason of a problem, which is found without knowing the key."""


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
    return parse_toml(read_file(path, trusted=trusted), path)


def parse_toml(content: bytes, path: Path) -> dict[str, Any]:
    """Return the contents of a TOML file that was read; see :func:`read_toml`."""
    try:
        table = tomllib.loads(content.decode())
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

    Fields with ``metadata={"key": False}`` cannot be set by a file.

    :param also: other valid keys of the file, which were removed from ``data``.
    :param where: the file (and table) of the data, for messages.
    :raises InvalidTable: names the key and what is wrong with it; for an unknown key it suggests
        the most similar known one.
    """
    if not data and not _required(into):
        return into()  # most tables are absent, and importing cattrs takes a while
    from cattrs import BaseValidationError, transform_error
    from cattrs.errors import ForbiddenExtraKeysError

    try:
        return _converter().structure(data, into)
    except VmclonerError as error:
        raise InvalidRequest(f"{where}: {error.message}", hint=error.hint) from error
    except (BaseValidationError, ForbiddenExtraKeysError, TypeError, ValueError) as error:
        problems = transform_error(
            error, format_exception=functools.partial(_explain, also={into: also}), path=""
        )
        raise InvalidTable(where, list(_problems(problems))) from error


def keys_of(cls: type) -> list[str]:
    """Return the fields of an attrs class that a file may set."""
    return [field.name for field in attrs.fields(cls) if field.metadata.get("key", True)]


def _required(cls: type) -> bool:
    """Return whether an attrs class has fields without a default."""
    return any(field.default is attrs.NOTHING for field in attrs.fields(cls))


def _problems(found: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield each problem as (key, reason); cattrs formats it as ``reason @ .key``."""
    for problem in found:
        reasons, _, key = problem.rpartition(" @ ")
        key = key.lstrip(".")
        for reason in (reasons or problem).split("\n"):
            # The member of a list has no key of its own.
            text = reason.replace(f", [{_KEY}]", "") if key.endswith("]") else reason
            field = re.match("'([a-z_]+)' (?=must )", text)  # by a validator of attrs
            if field is not None:
                yield f"{key}.{field[1]}".lstrip("."), text[field.end() :]
            else:
                yield key, text.replace(_KEY, key.rpartition(".")[2])


def _explain(error: BaseException, _type: type | None, also: Mapping[type, Sequence[str]]) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [*keys_of(error.cl), *also.get(error.cl, ())]
        return "\n".join(
            f"unknown key {key!r} ({did_you_mean(key, known)})"
            for key in sorted(error.extra_fields)
        )
    if isinstance(error, KeyError):
        return f"key {error.args[0]!r} is missing"
    return str(error)


def _strict(kind: type, name: str) -> Any:
    def hook(value: object, _: object) -> object:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"must be {name}, not {value!r}")
        return value

    return hook


def _number(value: object, _: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {value!r}")
    return float(value)


def _text_or_number(value: object, _: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"must be a string or a whole number, not {value!r}")
    return value


def _tuple_of_strings(value: object, _: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of strings, not {value!r}")
    return tuple(value)


def _kind_of(value: object) -> str:
    """Return what a value is in TOML, for a message."""
    if isinstance(value, Mapping):
        return f"a table, [{_KEY}]"
    if isinstance(value, list):
        tables = bool(value) and all(isinstance(item, Mapping) for item in value)
        return f"an array of tables, [[{_KEY}]]" if tables else f"a list, {value!r}"
    return repr(value)


def _table_of(read: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a hook that reads a table only."""

    def hook(value: object, kind: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a table, [{_KEY}], not {_kind_of(value)}")
        return read(value, kind)

    return hook


def _members(items: Iterable[tuple[Any, Any]], read: Callable[[Any], Any], kind: Any) -> list[Any]:
    """Read the members of an array or a table; an error names all that are wrong.

    :param items: (index or key, value) of each.
    """
    from cattrs.errors import IterableValidationError, IterableValidationNote

    read_members, errors = [], []
    for index, value in items:
        try:
            read_members.append((index, read(value)))
        except Exception as error:  # of any kind: they are gathered
            error.add_note(IterableValidationNote("", index, kind))
            errors.append(error)
    if errors:
        raise IterableValidationError("", errors, kind)
    return read_members


def _array_hook(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    member = get_args(kind)[0]

    def hook(value: object, _: object) -> object:
        if not isinstance(value, list | tuple):
            what = f"an array of tables, [[{_KEY}]]" if attrs.has(member) else "a list"
            raise ValueError(f"must be {what}, not {_kind_of(value)}")
        read = _members(enumerate(value), lambda item: converter.structure(item, member), kind)
        return tuple(item for _, item in read)

    return hook


def _mapping_hook(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    member = get_args(kind)[1]

    def read(value: Any, _: object) -> object:
        return dict(_members(value.items(), lambda item: converter.structure(item, member), kind))

    return _table_of(read)


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _choice(value: object, kind: object) -> object:
    choices = get_args(kind)
    if value not in choices:
        raise ValueError(f"must be {' or '.join(map(repr, choices))}, not {value!r}")
    return value


@functools.cache
def _converter() -> Converter:
    import cattrs.gen
    from cattrs import Converter

    if kept_code.used is not None:
        kept_code.used.serve(cattrs.gen)
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook_factory(
        attrs.has, lambda cls: _table_of(converter.gen_structure_attrs_fromdict(cls))
    )
    converter.register_structure_hook_factory(
        lambda kind: _origin(kind) is tuple, lambda kind: _array_hook(kind, converter)
    )
    converter.register_structure_hook_factory(
        lambda kind: _origin(kind) in (Mapping, dict), lambda kind: _mapping_hook(kind, converter)
    )
    converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _choice)
    converter.register_structure_hook(str, _strict(str, "a string"))
    converter.register_structure_hook(int, _strict(int, "a whole number"))
    converter.register_structure_hook(bool, _strict(bool, "true or false"))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, lambda value, _: path_of(value))
    converter.register_structure_hook_func(lambda kind: kind == str | int, _text_or_number)
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _tuple_of_strings)
    converter.register_structure_hook_func(
        lambda kind: kind == Size, lambda value, _: parse_size(value)
    )
    converter.register_structure_hook_func(
        lambda kind: kind == Duration, lambda value, _: parse_duration(value)
    )
    return converter


def path_of(value: object) -> Path:
    """Return a path that is in a file.

    :raises ValueError: it can't be one, or begins with ``~USER`` of a user who isn't there.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be a path, not {value!r}")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{value!r}: {error}") from error
