"""What may follow the words of a command line: commands, options, and the names that exist.

Names of clones are those of the records in the state folder, so no hypervisor is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmcloner_core.errors import VmclonerError

if TYPE_CHECKING:
    from vmcloner_core.cli.app import Shell
    from vmcloner_core.model import Host
    from vmcloner_core.settings import Settings

READINESS = ("running", "ip", "ssh", "agent", "port:", "console:")


def candidates(shell: Shell, words: Sequence[str]) -> list[str] | None:
    """Return what the last of some words may be; None if it may be a file.

    :param words: those after the program's name; the last may be incomplete, or empty.
    """
    *before, current = map(_unquoted, words)
    found: Iterable[str] | None
    before, found = _globals(shell, before)
    if found is None:
        asks_help = before[:1] == ["help"]
        found = _commands(shell, before[asks_help:])
        if not before and current.startswith("-"):
            found = [o for a in shell.parser._actions for o in a.option_strings]
        elif not found and not asks_help:
            found = _in_command(shell, before, current)
    return None if found is None else sorted({w for w in found if w.startswith(current)})


def _unquoted(word: str) -> str:
    """Return a word as the program would get it; the last quote may be open."""
    try:
        return "".join(shlex.split(word))
    except ValueError:
        return word.lstrip("'\"").replace("\\", "")


def _globals(shell: Shell, words: Sequence[str]) -> tuple[list[str], Iterable[str] | None]:
    """Take global options from words, as the program does; returns the rest, and what may follow.

    The second is None if the last word isn't an option with a value.
    """
    rest, options = [], iter(words)
    for word in options:
        if word not in ("--config", "--host", "--log-file") or "--" in rest:
            rest.append(word)
            continue
        value = next(options, None)
        if value is None:
            return rest, _hosts(shell) if word == "--host" else ()
        kept = Path(value) if word == "--config" else value
        setattr(shell.options, word[2:].replace("-", "_"), kept)
    return [word for word in rest if word not in _FLAGS], None


_FLAGS = ("-v", "--verbose", "-q", "--quiet", "--debug", "--no-color")


def _commands(shell: Shell, before: Sequence[str]) -> list[str]:
    """Return the next words of commands that begin with some words."""
    start = "".join(f"{word} " for word in before)
    names = (name for name, _ in shell.command_manager if name.startswith(start))
    return [name[len(start) :].split(" ")[0] for name in names]


def _in_command(shell: Shell, before: Sequence[str], current: str) -> Iterable[str] | None:
    """Return what may follow within a command's own words, None if it may be a file."""
    try:
        factory, name, words = shell.command_manager.find_command(list(before))
    except (ValueError, IndexError, VmclonerError):
        if before:
            return ()
        options = [o for a in shell.parser._actions for o in a.option_strings]
        return [*_commands(shell, before), *(o for o in options if current.startswith("-"))]
    if "--" in words:
        return ()
    command = factory(shell, shell.options, cmd_name=name)
    parser = command.get_parser(name)
    action = _expected(parser, words)
    if current.startswith("-") and (action is None or not action.option_strings):
        return [o for a in parser._actions for o in a.option_strings]
    return _values(shell, action, getattr(command, "columns", ()), current)


def _expected(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Action | None:
    """Return the option or the argument that the next word is the value of, if any."""
    known = parser._option_string_actions
    places = [a for a in parser._actions if not a.option_strings]
    wanted: argparse.Action | None = None
    for word in words:
        if wanted is not None:
            wanted = None
        elif word.startswith("-") and len(word) > 1:
            option = known.get(word)
            wanted = option if option is not None and option.nargs != 0 else None
        elif places and places[0].nargs not in ("*", "+"):
            places.pop(0)
    return wanted or (places[0] if places else None)


def _values(
    shell: Shell, action: argparse.Action | None, columns: Sequence[str], current: str
) -> Iterable[str] | None:
    """Return the values of an option or an argument, None if it may be a file."""
    if action is None or action.nargs == argparse.REMAINDER:
        return ()
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.type is Path or action.metavar in ("FILE", "FILE_OR_URL"):
        return None
    if action.dest == "columns":
        return columns
    find = _NAMES.get(action.dest)
    with contextlib.suppress(VmclonerError):
        return find(shell, current) if find is not None else ()
    return ()


# --- names that exist -------------------------------------------------------------------------


def _settings(shell: Shell) -> Settings:
    from vmcloner_core.settings import Settings

    return Settings.load(shell.options.config)


def _host(shell: Shell) -> Host:
    return _settings(shell).host(shell.options.host)


def _hosts(shell: Shell, _current: str = "") -> Iterable[str]:
    with contextlib.suppress(VmclonerError):
        return ["local", *_settings(shell).hosts]
    return ()


def _fleets_of_host(shell: Shell) -> dict[str, list[str]]:
    """Return the names of the clones that have records, by fleet."""
    from vmcloner_core.names import split_clone
    from vmcloner_core.records import Records

    fleets: dict[str, list[str]] = {}
    for name in Records(_host(shell).records).names():
        parts = split_clone(name)
        if parts is not None:
            fleets.setdefault(parts[0], []).append(name)
    return fleets


def _clones(shell: Shell, _current: str) -> Iterable[str]:
    return [name for names in _fleets_of_host(shell).values() for name in names]


def _fleets(shell: Shell, _current: str) -> Iterable[str]:
    return _fleets_of_host(shell)


def _targets(shell: Shell, current: str) -> Iterable[str]:
    """Return fleets, and of the fleet whose name is typed its clones and their node set."""
    found: list[str] = []
    for fleet, names in _fleets_of_host(shell).items():
        found.append(fleet)
        if current.startswith(f"{fleet}-"):
            found += names
            if len(names) > 1:
                from vmcloner_core.names import fold

                found.append(fold(names))
    return found


def _templates(shell: Shell, _current: str) -> Iterable[str]:
    from vmcloner_core.catalog import Catalog

    return filter(_is_plain, Catalog(_host(shell).templates).files())


def _is_plain(name: str) -> bool:
    """Tell whether a template's name is one: the shell may run what is in another's."""
    from vmcloner_core.names import check_template

    with contextlib.suppress(VmclonerError):
        return bool(check_template(name))
    return False


def _backends(shell: Shell, _current: str, kinds: Sequence[str]) -> Iterable[str]:
    host = _host(shell)
    return [name for kind in kinds for name in getattr(host, kind)]


_NAMES: dict[str, Callable[[Shell, str], Iterable[str]]] = {
    "targets": _targets,
    "clone": _clones,
    "fleet": _fleets,
    "template": _templates,
    "storage": partial(_backends, kinds=("storage",)),
    "hypervisor": partial(_backends, kinds=("hypervisors",)),
    "backends": partial(_backends, kinds=("storage", "hypervisors")),
    "readiness": lambda _shell, _current: READINESS,
}
"""How to find the values of options and arguments, by their names in parsers."""
