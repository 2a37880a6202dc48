"""A file of values for each clone of a fleet: CSV or TOML.

CSV starts with a line of column names, one of them ``clone`` (or ``index``); an empty cell is no
value. TOML has a table for each clone. Both give a clone's name or its index::

    clone,memory,address,role          [1]
    1,1GiB,192.0.2.11/24,primary       memory = "1GiB"
    web-2,,192.0.2.12/24,replica       role = "primary"
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.model import Template, Values
from vmcloner_core.names import MAX_INDEX, split_clone
from vmcloner_core.placeholders import names_in
from vmcloner_core.tomlfile import read_toml
from vmcloner_core.trusted_files import read_file
from vmcloner_core.units import parse_size

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_FIXED = frozenset({"name", "fleet", "index", "template", "owner", "run", "mac", "macs"})
_USED = frozenset({"memory", "vcpus", "disk_size", "address", "hostname", "machine_id"})
"""Values that vmcloner itself uses."""
_COLUMNS = ("clone", "index", "name")


def read_values(path: Path, fleet: str) -> dict[int, Values]:
    """Return the values of a fleet's clones, by index.

    :raises InvalidRequest: names the file, the clone (and line), and the reason.
    """
    return _checked(_toml(path) if path.suffix.lower() == ".toml" else _csv(path), fleet)


def values_in(
    tables: Mapping[str, Mapping[str, object]], fleet: str, where: str
) -> dict[int, Values]:
    """Return the values of a fleet's clones, by index, from a table for each clone.

    :raises InvalidRequest: as :func:`read_values`; ``where`` says where the tables are.
    """
    return _checked(((f"{where}.{name}", name, own) for name, own in tables.items()), fleet)


def _checked(
    rows: Iterable[tuple[str, str, Mapping[str, object]]], fleet: str
) -> dict[int, Values]:
    found: dict[int, Values] = {}
    for where, clone, values in rows:
        index = _index(clone, fleet, where)
        if index in found:
            raise InvalidRequest(f"{where}: {fleet}-{index} is listed twice")
        found[index] = {key: check_value(key, value, where) for key, value in values.items()}
    return found


def _toml(path: Path) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    for clone, values in read_toml(path, trusted=False).items():
        where = f"{path}: [{clone}]"
        if not isinstance(values, dict):
            raise InvalidRequest(f"{path}: {clone}: must be a table of a clone's values")
        yield where, clone, values


def _csv(path: Path) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    try:
        text = read_file(path, trusted=False).decode("utf-8-sig")
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        key = next((name for name in _COLUMNS if name in columns), None)
        if key is None or len(set(columns)) != len(columns):
            raise InvalidRequest(
                f"{path}: line 1 must name each column once, with 'clone' among them"
            )
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row or None in row.values():
                raise InvalidRequest(f"{where}: must have {len(columns)} cells, like line 1")
            cells = {name: cell.strip() for name, cell in row.items()}
            clone = cells.pop(key)
            yield where, clone, {name: cell for name, cell in cells.items() if cell}
    except csv.Error as error:
        raise InvalidRequest(f"{path}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: not UTF-8") from error


def _index(clone: str, fleet: str, where: str) -> int:
    named = split_clone(clone)
    if named is not None and named[0] != fleet:
        raise InvalidRequest(f"{where}: {clone} is not in fleet {fleet!r}")
    text = clone if named is None else str(named[1])
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text) or int(text) > MAX_INDEX:
        raise InvalidRequest(f"{where}: {clone!r} is not a clone", hint=f"use {fleet}-3 or 3")
    return int(text)


def check_columns(values: Mapping[int, Values], template: Template) -> None:
    """Check that no value of clones has a misspelt name.

    :raises InvalidRequest: one has no use, but nearly the name of one that has; suggests that.
    """
    keys = {key for own in values.values() for key in own} - _USED - template.values.keys()
    if not keys:
        return
    known = {*_USED, *template.values, *_placeholders(template)}
    for key in sorted(keys - known):
        from difflib import get_close_matches

        close = get_close_matches(key, known, n=1, cutoff=0.7)
        if close:
            raise InvalidRequest(
                f"values: nothing in template {template.name} uses {key!r}",
                hint=f"did you mean {close[0]!r}? If not, declare it in the template's [values]",
            )


def _placeholders(template: Template) -> frozenset[str]:
    """Return the names of all placeholders in a template's texts, and in the files it names."""
    texts: list[str] = []

    def gather(value: object) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, Path):
            if value in (template.domain.xml, spec.user_data, spec.network_config):
                texts.append(read_file(value, trusted=False).decode(errors="replace"))
        elif isinstance(value, Mapping):
            for member in value.values():
                gather(member)
        elif isinstance(value, list | tuple):
            for member in value:
                gather(member)

    spec = template.identity
    gather(attrs.asdict(template))
    return frozenset().union(*map(names_in, texts))


def check_value(key: str, value: object, where: str) -> str | int:
    """Return a clone's value, checked.

    :raises InvalidRequest: it is invalid; names ``where``, the key and the reason.
    """
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"{where}: invalid key {key!r}", hint="use letters, digits and _")
    if key in _FIXED:
        raise InvalidRequest(f"{where}: {key} is set by vmcloner")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequest(f"{where}: {key}: must be a string or an integer, not {value!r}")
    try:
        if key in ("memory", "disk_size") and parse_size(value) <= 0:
            raise InvalidRequest("must be positive")
        if key == "vcpus" and not 1 <= int(value) <= 4096:
            raise InvalidRequest(f"must be 1 to 4096, not {value}")
    except (VmclonerError, ValueError) as error:
        reason = error.message if isinstance(error, VmclonerError) else f"not a number: {value!r}"
        raise InvalidRequest(f"{where}: {key}: {reason}") from error
    return value
