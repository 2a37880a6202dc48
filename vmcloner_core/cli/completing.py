"""What may follow the words of a command line: commands, options, and the names that exist.

Names of clones are those of the records in the state folder, so no hypervisor is asked, and no
other host is contacted. Only for names of networks, this machine's hypervisor is.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import shlex
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmcloner_core.cli.app import VALUED
from vmcloner_core.errors import VmclonerError

if TYPE_CHECKING:
    from vmcloner_core.cli.app import Shell
    from vmcloner_core.model import Host
    from vmcloner_core.settings import Settings

READINESS = ("running", "ip", "ssh", "cloud-init", "agent", "port:", "console:")
FILE_METAVARS = ("FILE", "FILE_OR_URL")
_PLAIN = re.compile(r"[\w@%+=:,.\[\]/-]+")
"""Words of which no shell runs a part, even in quotes: files and networks may have other names."""
ANSWERS_WITHIN = 1.0
"""Seconds that this machine's hypervisor has to name its networks."""


def candidates(shell: Shell, words: Sequence[str]) -> list[str] | None:
    """Return what the last of some words may be; None if it may be a file.

    Never raises and prints nothing: at a prompt, an error would be in the way of the line.

    :param words: those after the program's name; the last may be incomplete, or empty.
    """
    options = dict(vars(shell.options))
    logging.disable()
    try:
        return _candidates(shell, words)
    except (Exception, SystemExit):
        return []
    finally:
        logging.disable(logging.NOTSET)
        vars(shell.options).update(options)


def _candidates(shell: Shell, words: Sequence[str]) -> list[str] | None:
    *before, current = map(_unquoted, words)
    option, equals, value = current.partition("=")
    start = ""  # what precedes the value in the word
    if current == "=":  # bash makes three words of --template=tiny
        current = ""
    elif equals and option.startswith("--"):
        before, current, start = [*before, option], value, f"{option}="
    before, pending = _globals(shell, _apart(before))
    found: Iterable[str] | None
    if pending is not None:
        found = _of_global(shell, pending, current)
    else:
        asks_help = before[:1] == ["help"]
        found = _commands(shell, before[asks_help:])
        if not before and current.startswith("-"):
            found = [o for a in shell.parser._actions for o in a.option_strings]
        elif not found and not asks_help:
            found = _in_command(shell, before, current)
    if found is None:
        return None
    fits = {word for word in found if word.startswith(current) and _PLAIN.fullmatch(word)}
    return sorted(f"{start}{word}" for word in fits)


def _apart(words: Sequence[str]) -> list[str]:
    """Return words with options and their values apart: ``--count=3`` is two, as ``--count 3``."""
    parts: list[str] = []
    for word in words:
        own = word.startswith("--") and "--" not in parts
        parts += word.split("=", 1) if own else [word]
    return [word for word in parts if word != "="]


def _unquoted(word: str) -> str:
    """Return a word as the program would get it; the last quote may be open."""
    try:
        return "".join(shlex.split(word))
    except ValueError:
        return word.lstrip("'\"").replace("\\", "")


def _globals(shell: Shell, words: Sequence[str]) -> tuple[list[str], str | None]:
    """Take global options from words, as the program does.

    :returns: the other words, and the option whose value comes next, None if none does.
    """
    rest: list[str] = []
    options = iter(words)
    for word in options:
        of_ansible = word == "--host" and rest[:1] == ["inventory"]
        if word not in VALUED or "--" in rest or of_ansible:
            rest.append(word)
            continue
        value = next(options, None)
        if value is None:
            return rest, word
        kept = Path(value) if word == "--config" else value
        setattr(shell.options, word[2:].replace("-", "_"), kept)
    return [word for word in rest if word not in _FLAGS], None


def _of_global(shell: Shell, option: str, current: str) -> Iterable[str] | None:
    """Return the values of a global option, None if it may be a file."""
    if option in ("--config", "--log-file"):
        return None
    find = NAMES.get({"--host": "host", "--without": "hosts"}.get(option, ""))
    return find(shell, current) if find is not None else ()


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
    actions = _expected(parser, words)
    if current.startswith("-") and not any(action.option_strings for action in actions):
        return [o for a in parser._actions for o in a.option_strings]
    found: list[str] = []
    for action in actions:
        values = _values(shell, action, getattr(command, "columns", ()), current)
        if values is None:
            return None
        found += values
    return found


def _expected(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[argparse.Action]:
    """Return the option, or the arguments, that the next word may be a value of."""
    known = parser._option_string_actions
    places = [a for a in parser._actions if not a.option_strings]
    option, missing = None, 0
    for word in words:
        if missing:
            missing -= 1
        elif word.startswith("-") and len(word) > 1:
            option = known.get(word)
            missing = 0 if option is None else _number(option)
        elif places and places[0].nargs not in ("*", "+"):
            places.pop(0)
    if option is not None and missing:
        return [option]
    # After a list another argument may follow: a snapshot's name, a host.
    return places[: 2 if places and places[0].nargs in ("*", "+") else 1]


def _number(option: argparse.Action) -> int:
    """Return how many values an option has."""
    return option.nargs if isinstance(option.nargs, int) else 1


def _values(
    shell: Shell, action: argparse.Action, columns: Sequence[str], current: str
) -> Iterable[str] | None:
    """Return the values of an option or an argument, None if it may be a file."""
    if action.nargs == argparse.REMAINDER:
        return ()
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.type is Path or action.metavar in FILE_METAVARS:
        return None
    if action.dest == "columns":
        return columns
    find = NAMES.get(action.dest)
    return find(shell, current) if find is not None else ()


# --- names that exist -------------------------------------------------------------------------


def _settings(shell: Shell) -> Settings:
    from vmcloner_core.settings import Settings

    return Settings.load(shell.options.config)


def _host(shell: Shell) -> Host:
    return _settings(shell).host(shell.options.host)


def _hosts(shell: Shell, _current: str) -> Iterable[str]:
    return ["local", *_settings(shell).hosts]


def _host_sets(shell: Shell, current: str) -> Iterable[str]:
    """Return hosts and groups; of a list that is typed, what may follow its last comma."""
    settings = _settings(shell)
    head, comma, _ = current.rpartition(",")
    groups = (f"@{name}" for name in settings.groups)
    return [f"{head}{comma}{name}" for name in ("local", *settings.hosts, *groups)]


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

    return Catalog(_host(shell).templates).files()


def _backends(shell: Shell, _current: str, kinds: Sequence[str]) -> Iterable[str]:
    host = _host(shell)
    return [name for kind in kinds for name in getattr(host, kind)]


def _sides(shell: Shell, current: str) -> Iterable[str] | None:
    """Return clones and fleets as ``cp`` names them, None if a file is meant."""
    return [f"{w}:" for w in _targets(shell, current) if w.startswith(current)] or None


def _pools(shell: Shell, _current: str) -> Iterable[str]:
    from vmcloner_core.pools import Definitions

    return Definitions(_host(shell).pools).names()


def _snapshots(shell: Shell, _current: str) -> Iterable[str]:
    from vmcloner_core.snapshot_folders import SnapshotFolders

    return SnapshotFolders(_host(shell).snapshots).names()


def _runs(shell: Shell, _current: str) -> Iterable[str]:
    return [file.stem for file in _host(shell).runs.glob("*.jsonl")]


def _reports(shell: Shell, current: str) -> Iterable[str]:
    return [*_fleets(shell, current), *_runs(shell, current)]


def _networks(shell: Shell, _current: str) -> Iterable[str]:
    """Return the networks of this machine. Its hypervisor is not waited for if it hangs."""
    from vmcloner_core.model import NetworkRequest

    found = [NetworkRequest().name]

    def ask() -> None:
        from vmcloner_core.engine import Engine

        # An engine of its own, which nothing closes: that would wait for the hypervisor.
        with contextlib.suppress(Exception):
            engine = Engine.open(settings=_settings(shell), host=shell.options.host)
            found.extend(network.name for network in engine.networks())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWERS_WITHIN)
    return tuple(found)


NAMES: dict[str, Callable[[Shell, str], Iterable[str] | None]] = {
    "targets": _targets,
    "words": _sides,
    "clone": _clones,
    "fleet": _fleets,
    "template": _templates,
    "pool": _pools,
    "snapshot": _snapshots,
    "network": _networks,
    "host": _hosts,
    "hosts": _host_sets,
    "run": _runs,
    "of": _reports,
    "compare": _reports,
    "storage": partial(_backends, kinds=("storage",)),
    "hypervisor": partial(_backends, kinds=("hypervisors",)),
    "backends": partial(_backends, kinds=("storage", "hypervisors")),
    "readiness": lambda _shell, _current: READINESS,
    "ready": lambda _shell, _current: READINESS,
}
"""How to find the values of options and arguments, by their names (``dest``) in parsers."""
