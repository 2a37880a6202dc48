"""GRUB's menus: their entries, the one that is the default, and those to fall back to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from vmcloner_boot.disk_image import Unreadable
from vmcloner_boot.grub_conditions import number
from vmcloner_boot.grub_interpreter import BAD_ARGUMENT, SUCCESS, Call, Option, options
from vmcloner_boot.grub_parser import Statement

MAX_ENTRIES = 1000
"""Entries of one menu."""
_OPTIONS = (
    Option(long="class", value=True),
    Option(long="users", value=True, optional=True),
    Option(long="hotkey", value=True),
    Option(long="source", value=True),
    Option(long="id", value=True),
    Option(long="unrestricted"),
)


@attrs.frozen
class Entry:
    """An entry of a menu; ``body`` is run when it is chosen, with ``arguments``.

    :param script: what the script that it is part of is called in messages.
    :param bls: whether it is one of the Boot Loader Specification's.
    """

    title: str
    identifier: str = ""
    body: tuple[Statement, ...] = ()
    submenu: bool = False
    arguments: tuple[str, ...] = ()
    script: str = ""
    bls: bool = False


class Menus:
    """The menu of each context: of the configuration, within it a submenu's, and so on."""

    def __init__(self) -> None:
        self._menus: list[list[Entry]] = [[]]

    @property
    def current(self) -> list[Entry]:
        """The entries of the menu that is being filled."""
        return self._menus[-1]

    def open(self) -> None:
        """Begin a menu within the present one."""
        if len(self._menus) > 16:
            raise Unreadable("a GRUB script has more than 16 menus within one another")
        self._menus.append([])

    def close(self) -> None:
        """Go back to the menu before."""
        self._menus.pop()

    def add(self, entry: Entry) -> None:
        """Add an entry.

        :raises Unreadable: there are too many.
        """
        if len(self.current) >= MAX_ENTRIES:
            raise Unreadable(f"a GRUB menu has more than {MAX_ENTRIES} entries")
        self.current.append(entry)

    def command(self, call: Call, script: str) -> int:
        """Carry out ``menuentry`` or ``submenu``."""
        given = options(call.arguments, _OPTIONS, dashes=True)
        if given is None or not given.rest:
            return BAD_ARGUMENT
        if "source" in given:
            raise Unreadable(f"{script}: {call.name} --source isn't understood here")
        if call.block is None:
            return BAD_ARGUMENT
        title = given.rest[0]
        self.add(
            Entry(
                title,
                given.last("id") or title,
                call.block,
                call.name == "submenu",
                tuple(given.rest),
                script,
            )
        )
        return SUCCESS


def find_entry(menu: Sequence[Entry], wanted: str) -> Entry | None:
    """Return the entry with a number, a title or an identifier, None where there is none.

    :raises Unreadable: it is a number to GRUB as it is, and a name to that of Fedora.
    """
    first = split_default(wanted)[0]
    named = next((e for e in menu if first in (e.title, e.identifier)), None)
    match = re.match(r"\s*(0[xX][0-9a-fA-F]+|[0-9]+)", first)
    if match is None or (named is not None and named.bls):
        return named
    index = number(match[1]) if len(match[1]) < 10 else len(menu)
    numbered = menu[index] if index < len(menu) else None
    strict = first[match.end() :][:1] in ("", " ", "\t", "\n")
    other = named if named is not None or not strict else numbered
    if (numbered or menu[0]) is not (other or menu[0]):
        raise Unreadable(f"its default {wanted!r} may be a number or a name, by the kind of GRUB")
    return numbered


def split_default(wanted: str) -> tuple[str, str]:
    """Return the entry of a menu that a default names, and the rest for the submenu there."""
    match = re.match(r"((?:[^>]|>>)*)(?:>(.*))?\Z", wanted, re.DOTALL)
    if match is None:
        return wanted, ""
    return match[1].replace(">>", ">"), match[2] or ""
