"""Read TOML into attrs classes, strictly: errors about unknown keys or wrong types name the key."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError, did_you_mean
from vmcloner_core.trusted_files import read_file
from vmcloner_core.units import Size, parse_size

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


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

    Fields with ``metadata={"key": False}`` cannot be set by a file.

    :param also: other valid keys of the file, which were removed from ``data``.
    :param where: the file (and table) of the data, for messages.
    :raises InvalidRequest: names the key and what is wrong with it; for an unknown key it suggests
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
        raise InvalidRequest(f"{where}: {_first(problems)}") from error


def keys_of(cls: type) -> list[str]:
    """Return the fields of an attrs class that a file may set."""
    return [field.name for field in attrs.fields(cls) if field.metadata.get("key", True)]


def _required(cls: type) -> bool:
    """Return whether an attrs class has fields without a default."""
    return any(field.default is attrs.NOTHING for field in attrs.fields(cls))


def _first(problems: list[str]) -> str:
    """Return the first problem as ``key: reason``; cattrs formats it as ``reason @ .key``."""
    reason, _, key = problems[0].rpartition(" @ ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (f"{key.lstrip('.')}: {reason}" if key.lstrip(".") else reason or problems[0]) + more


def _explain(error: BaseException, _type: type | None, also: Mapping[type, Sequence[str]]) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [*keys_of(error.cl), *also.get(error.cl, ())]
        key = sorted(error.extra_fields)[0]
        return f"unknown key {key!r} ({did_you_mean(key, known)})"
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


@functools.cache
def _converter() -> Converter:
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(str, _strict(str, "a string"))
    converter.register_structure_hook(int, _strict(int, "a whole number"))
    converter.register_structure_hook(bool, _strict(bool, "true or false"))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, lambda value, _: _path(value))
    converter.register_structure_hook_func(lambda kind: kind == str | int, _text_or_number)
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _tuple_of_strings)
    converter.register_structure_hook_func(
        lambda kind: kind == Size, lambda value, _: parse_size(value)
    )
    return converter


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be a path, not {value!r}")
    return Path(value).expanduser()
