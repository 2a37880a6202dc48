"""Read a lab's file: strictly, and with the line of each key for messages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError, did_you_mean, shown
from vmcloner_core.labs.model import Lab, LabFleet, LabNetwork, place
from vmcloner_core.model import Script, Values
from vmcloner_core.names import check_fleet, check_lab, check_owner, check_template, clone_name
from vmcloner_core.plan import Sizes, check_identical, check_timeout
from vmcloner_core.tomlfile import InvalidTable, keys_of, parse_toml, path_of, structure
from vmcloner_core.trusted_files import exists, read_file
from vmcloner_core.values_file import check_value, read_values, values_in

MAX_FILE = 256 * 1024
"""Bytes of a lab's file."""
_TOKEN = re.compile(
    r"""\"{3}(?:\\.|(?!"{3}).)*"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*'|\#[^\n]*|[][{}\n]""",
    re.DOTALL,
)
"""What tells where a statement of TOML ends: strings, comments, brackets and ends of lines."""


def read_lab(file: Path) -> Lab:
    """Return the lab in a file.

    The file and what it names are code: they are used only if no other user could have written
    them (:mod:`vmcloner_core.trusted_files`).

    :raises NotFound: it, or a file that it names, doesn't exist.
    :raises InvalidRequest: it is wrong; names file, line and key, and the reason.
    """
    if not exists(file):
        raise NotFound(f"lab file {file} doesn't exist", hint=f"vmcloner lab example > {file}")
    content = read_file(file, trusted=True, limit=MAX_FILE)
    try:
        data = parse_toml(content, file)
    except InvalidRequest as error:
        raise _not_toml(file, content, error) from error
    lines = key_lines(content.decode())
    _check_reserved(file, lines, data)
    try:
        lab = structure(data, Lab, where=str(file))
    except InvalidTable as error:
        raise _wrong(file, lines, error.problems) from error
    except InvalidRequest as error:
        raise InvalidRequest(error.message, hint=error.hint) from error
    lab = attrs.evolve(lab, file=file, lines=lines)
    _check_named(lab)
    fleets = {name: _Reader(lab, name, fleet)() for name, fleet in lab.fleets.items()}
    lab = attrs.evolve(lab, fleets=fleets)
    lab.levels()
    return lab


def _not_toml(file: Path, content: bytes, error: InvalidRequest) -> InvalidRequest:
    """Return an error of the TOML parser with the line where it is expected."""
    text = error.message.removeprefix(f"{file}: ").removeprefix("not TOML: ")
    lines = content.decode(errors="replace").split("\n")
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", text)
    if at is None:
        return InvalidRequest(f"{file}: {text}")
    number = int(at[1] or max(1, len(lines)))
    key = re.split("[=#]", lines[number - 1])[0].strip(" []\t") if lines else ""
    text = text.removesuffix(at[0])
    if re.match("Cannot (declare|overwrite)", text):
        text = "is there twice"
    return InvalidRequest(f"{file}:{number}: {key}: {text}" if key else f"{file}:{number}: {text}")


def _wrong(
    file: Path, lines: Mapping[str, int], problems: Sequence[tuple[str, str]]
) -> InvalidRequest:
    """Return an error for what is wrong with keys, the first in the file first."""
    texts: list[tuple[int, str]] = []
    for path, reason in problems:
        key = re.sub(r"""\[(['"])(.*?)\1\]""", r".\2", path).lstrip(".")
        text = re.sub(r"^key '[^']*' is missing", "is missing", reason)
        unknown = re.match(r"unknown key '([^']*)' \((.*)\)$", reason)
        if unknown is not None:
            key, text = f"{key}.{unknown[1]}".lstrip("."), f"unknown key ({unknown[2]})"
        texts.append((lines.get(key, MAX_FILE), f"{place(file, lines, key)}: {text}"))
    first, *others = [text for _, text in sorted(texts)]
    return InvalidRequest(f"{first} (and {len(others)} more)" if others else first)


def _check_reserved(file: Path, lines: Mapping[str, int], data: Mapping[str, Any]) -> None:
    """Check that no key is that of a field which only the reader sets."""
    fleets = data.get("fleets")
    tables: list[tuple[str, type, object]] = [("", Lab, data)]
    for name, table in fleets.items() if isinstance(fleets, dict) else ():
        tables.append((f"fleets.{name}.", LabFleet, table))
    for where, kind, table in tables:
        reserved = attrs.fields_dict(kind).keys() - keys_of(kind)
        for key in sorted(reserved & (table.keys() if isinstance(table, dict) else set())):
            hint = did_you_mean(key, keys_of(kind))
            raise InvalidRequest(f"{place(file, lines, where + key)}: unknown key ({hint})")


def key_lines(text: str) -> dict[str, int]:
    """Return the line of each key of a TOML text, by its dotted path: ``fleets.web.count``.

    The text is cut into its statements, and each of them is read by the parser itself.

    :param text: the parser has read it without an error.
    """
    found: dict[str, int] = {}
    table, counts = "", dict[str, int]()
    for first, statement in _statements(text):
        data = tomllib.loads(statement)
        header = statement.lstrip().startswith("[")
        if header:
            table, array = _header(data)
            if array:
                counts[table] = counts.get(table, -1) + 1
                found.setdefault(table, first)
                table = f"{table}[{counts[table]}]"
            for end in (at for at, letter in enumerate(f"{table}.") if letter == "."):
                found.setdefault(table[:end], first)
        else:
            for key in _paths(data, table):
                found.setdefault(key, first)
    return found


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each statement of TOML that is right.

    One ends at the end of a line, outside of strings and brackets.
    """
    begin, line, number, depth = 0, 1, 1, 0
    for token in _TOKEN.finditer(text):
        number += token[0].count("\n")
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if token[0] == "\n" and depth == 0:
            yield line, text[begin : token.end()]
            begin, line = token.end(), number
    yield line, text[begin:]


def _header(data: object) -> tuple[str, bool]:
    """Return the dotted path of a table's header, and whether it is of an array of tables."""
    keys: list[str] = []
    while isinstance(data, dict) and data:
        ((key, data),) = data.items()
        keys.append(key)
    return ".".join(keys), isinstance(data, list)


def _paths(value: object, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else key
            yield below
            yield from _paths(inner, below)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield f"{path}[{number}]"
            yield from _paths(inner, f"{path}[{number}]")


def _check_named(lab: Lab) -> None:
    """Check the names of a lab's parts, and its networks and images."""
    _checked(lab, "name", lambda: check_lab(lab.name))
    for name, network in lab.networks.items():
        _checked(lab, f"networks.{name}", lambda n=name, w=network: _request(n, w))
    for name, image in lab.images.items():
        key = f"images.{name}"
        _checked(lab, key, lambda n=name: check_template(n))
        if image.pull and image.options:
            error = InvalidRequest("a built image can't be pulled", hint="remove one of these keys")
            raise lab.located(error, f"{key}.pull")


def _request(name: str, network: LabNetwork) -> object:
    return network.request(name)


def _checked(lab: Lab, key: str, check: Any) -> Any:
    """Return what a check returns; its error gets the key's place."""
    try:
        return check()
    except VmclonerError as error:
        raise lab.located(error, key) from error


class _Reader:
    """Reads what one fleet's table names, and checks its keys."""

    def __init__(self, lab: Lab, name: str, fleet: LabFleet) -> None:
        self._lab, self._name, self._fleet = lab, name, fleet
        self._folder = lab.file.absolute().parent

    def __call__(self) -> LabFleet:
        """Return the fleet with its values and scripts."""
        lab, name, fleet = self._lab, self._name, self._fleet
        self._check("", lambda: check_fleet(name))
        self._check("count", lambda: clone_name(name, max(1, fleet.count)))
        self._check("template", lambda: check_template(fleet.template))
        self._check("ready", lambda: fleet.readiness)
        self._check("ttl", lambda: fleet.lease)
        self._check(
            "identical", lambda: check_identical(identical=fleet.identical, warm=fleet.warm)
        )
        self._check("per_host", lambda: fleet.where)
        if fleet.owner is not None:
            self._check("owner", lambda: check_owner(fleet.owner or ""))
        self._check("memory", lambda: Sizes(memory=fleet.memory))
        self._check("vcpus", lambda: Sizes(vcpus=fleet.vcpus))
        self._check("disk_size", lambda: Sizes(disk=fleet.disk_size))
        if fleet.timeout is not None:
            self._check("timeout", lambda: check_timeout(fleet.timeout or 0))
        for number, other in enumerate(fleet.after):
            self._check(f"after[{number}]", lambda other=other: self._known(other))
        if (fleet.run or fleet.playbook) and not fleet.start:
            key = "run" if fleet.run else "playbook"
            self._fail(key, "needs clones that are started", "remove it, or start = false")
        if (fleet.run or fleet.playbook) and fleet.identical:
            key = "run" if fleet.run else "playbook"
            self._fail(key, "nothing logs in to exact copies", "remove it, or identical = true")
        own = self._own()
        scripts = [self._script(f"run[{n}]", word) for n, word in enumerate(fleet.run)]
        if fleet.playbook is not None:
            scripts.append(self._script("playbook", fleet.playbook, playbook=True))
        for key, script in zip([f"run[{n}]" for n in range(len(fleet.run))], scripts, strict=False):
            if sum(each.name == script.name for each in scripts) > 1:
                self._fail(key, f"{script.name} is there twice", "each is run once: remove one")
        self._check("network", lambda: lab.request(name))
        return attrs.evolve(fleet, own=own, scripts=tuple(scripts))

    def _key(self, key: str) -> str:
        return f"fleets.{self._name}.{key}" if key else f"fleets.{self._name}"

    def _check(self, key: str, check: Any) -> Any:
        return _checked(self._lab, self._key(key), check)

    def _fail(self, key: str, message: str, hint: str) -> None:
        raise self._lab.located(InvalidRequest(message, hint=hint), self._key(key))

    def _known(self, other: str) -> None:
        if other not in self._lab.fleets:
            known = [name for name in self._lab.fleets if name != self._name]
            raise InvalidRequest(f"no fleet {other!r} here", hint=did_you_mean(other, known))
        if not self._lab.fleets[other].start:
            raise InvalidRequest(
                f"fleet {other!r} isn't started, so it never gets ready",
                hint=f"remove start = false from fleets.{other}",
            )

    def _own(self) -> dict[int, Values]:
        """Return the values of single clones: of the file that is named, then the table's."""
        fleet = self._fleet
        for key, value in fleet.values.items():
            check_value(key, value, self._lab.where(self._key(f"values.{key}")))
        found: dict[int, Values] = {}
        if fleet.values_file is not None:
            file = self._folder / fleet.values_file
            found = self._check("values_file", lambda: self._values(file))
        tables = self._check("clones", lambda: values_in(fleet.clones, self._name, "clones"))
        for index, values in tables.items():
            found[index] = {**found.get(index, {}), **values}
        for index in found:
            if index > fleet.count:
                key = "clones" if index in tables else "values_file"
                name = clone_name(self._name, index)
                self._fail(key, f"{name} is outside the fleet", f"count is {fleet.count}")
        return found

    def _values(self, file: Path) -> dict[int, Values]:
        self._there(file)
        return read_values(file, self._name)

    def _script(self, key: str, word: str, *, playbook: bool = False) -> Script:

        def read() -> tuple[Path, bytes]:
            try:
                file = self._folder / path_of(word)
            except ValueError as error:
                raise InvalidRequest(str(error)) from error
            self._there(file)
            return file, read_file(file, trusted=True)

        file, content = self._check(key, read)
        return Script(name=word, content=content, playbook=file if playbook else None)

    @staticmethod
    def _there(file: Path) -> None:
        if not exists(file):
            raise NotFound(
                f"{shown(str(file))} doesn't exist", hint="paths are relative to the lab's file"
            )
